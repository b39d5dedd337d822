"""Tokens: k-means over the frames of a layer, and the code of every frame of a store.

In: a store. Out: its codebook, and tokens beside its frames. `run.py` has the public call. The
arithmetic is in `kmeans.py`, which frames are trained on in `frames.py`, how units get their tokens
in `assigning.py`, and measures of their quality in `quality.py`. Their format and their readers are
in `store/format/tokens.py` and `store/tokens`.
"""
