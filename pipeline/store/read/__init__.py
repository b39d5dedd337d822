"""Reading of a store: any layer of any utterance, or a weighted sum, without the encoder.

In: ids or positions. Out: tensors. `features.py` has the public `FeatureStore`. This package
imports torch, zarr and pyarrow, but neither ray, datasets nor torchaudio.
"""
