"""Sweeps from Python, in a notebook or a program: `pipeline.sweep`.

In: a store and settings as keywords. Out: a `SweepResult` with the table of scores, the chart and
the report. `sweeping.py` runs; `result.py` is what it returns.
"""
