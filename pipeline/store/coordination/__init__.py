"""What keeps concurrent drivers and workers from harming a store.

One live driver (`lease.py`), one slot per attempt (`ledger.py`), records of worker failures
(`worker_failures.py`) and the log of runs (`run_log.py`).
"""
