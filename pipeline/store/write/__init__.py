"""Writing of a store: its documents, and one unit at a time into a slot.

In: a unit's features and index rows. Out: a commit. `slot.py` is the commit protocol.
"""
