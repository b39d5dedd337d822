"""The store format as pure arithmetic, without input or output.

In: shapes, rows and attributes. Out: keys, sizes and documents. `layout.py` is the contract. The
other files are the plan, the identity, the index rows, the frame geometry and the codecs.
"""
