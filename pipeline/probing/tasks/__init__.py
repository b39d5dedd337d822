"""Kinds of task: a class or a number per utterance, or a transcript by CTC.

In: a store, labels and folds. Out: trained heads, their errors, and baselines. Contract: `base.py`;
`utterance.py` learns classes, `regression.py` numbers, `frame.py` transcripts.
"""
