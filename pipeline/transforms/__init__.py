"""From one store to another, without the encoder.

In: a store. Out: a store: `collapse.py` writes a weighted sum of layers.
"""
