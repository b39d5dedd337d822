"""Feeding stored features to a training loop: datasets, batches, loaders.

In: an open store. Out: padded batches. `dataset.py` defines `FeatureDataset` and `Batch`, the
contract of the room; `batching.py` plans the batches of an epoch, `batch_reader.py` reads them, and
`loader.py` does both, in worker processes if asked. Imports neither Ray, datasets nor torchaudio,
except `hf.py`, which is imported on a conversion to a Hugging Face dataset.
"""
