"""Transforms of a store into another store, without the encoder.

In: a store. Out: a store. `collapse.py` writes a weighted sum of layers.
"""
