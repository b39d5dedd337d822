"""Writing a store: one unit at a time, into a slot.

In: a unit's features (`buffer.py`) and index rows. Out: a commit. `slot.py` is the commit protocol.
"""
