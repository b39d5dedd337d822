"""Comparison of sweeps: encoders, heads, shares of train, over one or several tasks.

In: finished sweeps, or stores and the settings of their sweeps. Out: a `Comparison`, its report,
charts and tables. `results.py` has what is compared; `reading.py` finds sweeps, `evaluating.py`
rebuilds their evaluations, `building.py` and `heads.py` compare them, `pairs.py` tests them;
`stores.py` and `running.py` make the
sweeps of several stores, heads and shares of train; `interactive/` is the Python interface.
"""
