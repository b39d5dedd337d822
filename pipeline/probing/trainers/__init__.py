"""Trainers of many heads at once: all layers, learning rates and seeds in one pass.

In: features and labels. Out: a `HeadResult` per head. `pooled.py` trains utterance tasks on the
stacked heads of `head_stack.py`; `ctc.py` trains frame tasks on the data of `frame_data.py`.
"""
