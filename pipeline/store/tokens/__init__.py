"""Tokens of a store: the k-means code of every frame, kept beside the frames.

In: a store. Out: tokens of utterances, and the codebooks that they were made with. `stored.py` has
what lies in the storage, `view.py` what readers see. `pipeline/tokens` makes tokens;
`store/format/tokens.py` says how they are stored.
"""
