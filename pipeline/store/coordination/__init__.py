"""Coordination of the drivers and workers of a store.

In: a store. Out: one live driver (`lease.py`), one slot per attempt (`ledger.py`), records of
worker failures (`worker_failures.py`) and a log of the runs (`run_log.py`).
"""
