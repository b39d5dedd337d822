"""Datasets as records: which utterances there are, where their audio lies, what else is known.

In: the dataset's configuration. Out: a `Source` of `Segment` records, with a fingerprint and the
columns to carry. Contract: `base.py`. Nothing here decodes audio; only `hub.py` imports `datasets`.
"""
