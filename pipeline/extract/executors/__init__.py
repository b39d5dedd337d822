"""Executors: where the workers of an extraction run, in this process or in Ray actors.

In: units to extract (`UnitTask`). Out: an `Outcome` for each. `base.py` is the contract; an
implementation does not access the store. Only the files whose names begin with `ray` import Ray.
"""
