"""Exports of a store in the file formats of other tools.

In: a store, or a selection of it. Out: a folder of files, with an index beside them. `base.py` has
the contract of a format, and each format has a module. `run.py` runs an export, `reading.py` reads
its utterances, `state.py` records what it exports and which parts of it are done.
"""
