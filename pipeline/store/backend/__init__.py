"""Where the bytes of a store lie: objects under keys, on a file system or in memory.

In: keys and bytes. Out: bytes. `base.py` is the contract, `opening.py` makes a backend of a path,
and each other file is one kind of storage. Nothing outside this folder touches the file system for
a store.
"""
