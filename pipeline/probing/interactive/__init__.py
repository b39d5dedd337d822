"""The result of a sweep in Python: `SweepResult`, with table, charts and report.

In: a finished sweep. `pipeline.sweep`, which returns it, is in `pipeline/comparing/interactive/`.
"""
