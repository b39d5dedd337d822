"""The training side: batches of stored features, linear heads, collapsed stores."""
