"""The store of features: its format, and how it is written, read, coordinated and maintained.

In: features of units (`write/`). Out: features of utterances (`read/`). `format/` is the contract
of what lies on the disk, as pure arithmetic; `index.py` lists the committed utterances.
`reader.py`, `catalogue.py` and `layout.py` are old paths, kept because pickled stores name them.
"""
