"""Feeding stored features to a training loop: datasets, batches, loaders.

In: an open store. Out: padded batches (`Batch`). Contract: `dataset.py`. Imports neither Ray,
datasets nor torchaudio; `hf.py` loads datasets when it is asked to convert to it.
"""
