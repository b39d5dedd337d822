"""Feeding stored features to a training loop: datasets, batches, loaders.

In: an open store. Out: padded batches. Contract: `FeatureDataset` and `Batch` in `dataset.py`.
`batching.py` plans the batches of an epoch, `batch_reader.py` reads them, and `loader.py` does
both, with `num_workers` in worker processes. `resuming.py` is what it shares with the loader of
single frames, which is in `frames/`. Imports neither Ray, datasets nor torchaudio, except `hf.py`,
which is imported on a conversion to a Hugging Face dataset.
"""
