"""Trainers of many heads at once, for all layers and learning rates.

In: features and labels. Out: a `HeadResult` per head. `pooled.py` trains utterance tasks on the
stacked heads of `head_stack.py`, or of `fused_stack.py` where C code (`native/`) computes them;
`ctc.py` trains linear heads of frame tasks on the data of `frame_data.py`; `sequences.py` trains
heads that need the frames of whole utterances, on the lessons of `sequence_data.py` and
`frame_lessons.py`.
"""
