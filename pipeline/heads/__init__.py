"""Linear heads for frozen features, and CTC.

In: batches of features. Out: logits and losses. Contract: the public heads in `modules.py`.
`ctc.py` and `vocabulary.py` are for transcripts.
"""
