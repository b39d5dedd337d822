"""The store of features: its format, and how it is written, read, coordinated and maintained.

In: features of units (`write/`). Out: features of utterances (`read/`). `format/` is the contract
of the stored bytes, as pure arithmetic; `backend/` is the storage that holds them; `documents.py`
reads and writes the plan and the attributes; `index.py` lists the committed utterances.
`reader.py`, `catalogue.py`, `layout.py` and `norm.py` are kept so that stores pickled by version
0.1.0 can be unpickled.
"""
