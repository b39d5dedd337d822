"""Maintenance of a store: verify, repair, clean up, status, inspect.

In: a store. Out: a report of its content, or of the damage that was found and repaired.
"""
