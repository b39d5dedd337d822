"""Storage of stores: objects under keys, on a file system or in memory.

In: keys and bytes. Out: bytes. `base.py` is the contract, `opening.py` returns the backend of a
path, `local.py` and `memory.py` are implementations. Only this package accesses the files of a
store.
"""
