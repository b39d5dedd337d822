"""Feeding single frames to a training loop, shuffled over the whole corpus.

In: a `FeatureDataset`. Out: batches of frames. `axis.py` numbers the frames in the order of the
disk, `order.py` plans the order of an epoch (both are arithmetic), `windows.py` reads it into
bounded memory, and `loader.py` divides it into batches.
"""
