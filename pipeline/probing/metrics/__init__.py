"""Metrics on test predictions, their confidence intervals, and significance tests.

In: predictions and references. Out: numbers.
"""
