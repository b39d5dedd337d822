"""Sweeps and comparisons from Python: `pipeline.sweep` and `pipeline.report`.

In: stores and settings as keywords, or folders of finished sweeps. Out: a `SweepResult` of one
sweep, a `ComparisonResult` of several. `sweeping.py` runs; `result.py` is what it returns.
"""
