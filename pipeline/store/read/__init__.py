"""Reading of a store: any layer of any utterance, or a weighted sum, without the encoder.

In: ids or positions. Out: tensors. `opening.py` has `open_store`, `features.py` the
public `FeatureStore`, `joined/` several stores as one. This package
imports torch, zarr and pyarrow, but neither ray, datasets nor torchaudio.
"""
