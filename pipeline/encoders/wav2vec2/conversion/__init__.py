"""Conversion of Hugging Face checkpoints to the models of `bundles.py`.

In: configurations and state dicts of transformers. Out: a `ModelSpec`, and weights by the names of
its model. Nothing here imports transformers or reads files.
"""
