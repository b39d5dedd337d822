"""Heads for frozen features, CTC, and trained heads as files.

In: batches of features, or the files of a sweep. Out: logits, losses, predictions. `modules.py` has
the public linear heads for a trainer, `networks.py` those beyond; `ctc.py` and `vocabulary.py` are
for transcripts. A trained head (`trained.py`) has a description (`facts.py`), a file (`files.py`),
arithmetic (`scoring.py`) and what it predicts (`prediction.py`).
"""
