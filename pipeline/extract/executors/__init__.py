"""What runs the workers: this process, or Ray actors.

In: units to do (`UnitTask`). Out: an `Outcome` for each. Executors
know nothing of the store; only the files whose names begin with `ray` import Ray.
"""
