"""The store format as pure arithmetic: no input, no output.

`layout.py` (shapes, sizes, keys) is the contract; beside it the plan, the identity, the rows of the
index, and the codecs of frame values.
"""
