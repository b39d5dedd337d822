"""Looking after a store: verify, repair, clean up, status, inspect.

In: a store. Out: a report of what is in it, or of what was found and repaired.
"""
