"""Reading a store: any layer of any utterance, or a weighted sum, without the encoder.

In: ids or positions. Out: tensors. `features.py` has the public `FeatureStore`. Imports torch, zarr
and pyarrow; neither Ray, datasets nor torchaudio.
"""
