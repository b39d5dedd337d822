"""The linear heads that are trained on frozen features, and CTC.

In: batches of features. Out: logits and losses. `modules.py` has the public heads.
"""
