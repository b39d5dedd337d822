"""Parts of the self-check: comparisons of encodings, and what they found in words."""
