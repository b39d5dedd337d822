"""Kinds of task: a class per utterance (`utterance.py`), or a transcript by CTC (`frame.py`).

In: a store, labels and folds. Out: trained heads, their errors, and baselines. Contract: `base.py`.
"""
