"""Datasets as records: the utterances, the location of their audio, and their columns.

In: the dataset's configuration. Out: a `Source` of `Segment` records, with a fingerprint and the
columns to carry. Contract: `base.py`. This package decodes no audio, and only its `hub.py` imports
`datasets`.
"""
