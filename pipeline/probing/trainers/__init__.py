"""Trainers of many heads at once: all layers and learning rates in one pass over the data.

In: features and labels. Out: a `HeadResult` per head. `pooled.py` trains utterance tasks on the
stacked heads of `head_stack.py`, or of `fused_stack.py` where C code (`native/`) computes them;
`ctc.py` trains frame tasks on the data of `frame_data.py`.
"""
