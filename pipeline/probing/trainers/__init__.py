"""Training of many heads at once: all layers, learning rates and seeds in one pass.

In: features and targets. Out: a `HeadResult` per head.
"""
