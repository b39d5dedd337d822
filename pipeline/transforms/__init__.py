"""Transforms of a store into another store, or into files of other tools, without the encoder.

In: a store. Out: a store, or a folder of files. `collapse.py` writes a weighted sum of layers,
`copy/` some layers and utterances of one or several stores, both with `writer.py`; `export/` writes
files of other formats. `drop/` removes utterances or layers from the store itself.
"""
