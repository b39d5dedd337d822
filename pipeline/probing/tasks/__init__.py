"""Kinds of task: a class or a number per utterance, a class per span or frame, or a transcript.

In: a store, labels and folds. Out: trained heads, their errors, and baselines. Contract: `base.py`;
`utterance.py` learns classes, `regression.py` numbers, `frame.py` transcripts by
CTC, `spans.py` classes of spans and `framewise.py` classes of frames.
"""
