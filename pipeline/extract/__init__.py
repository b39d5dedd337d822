"""Extraction: encode a dataset and commit the features to a store, unit by unit.

In: a configuration. Out: a store. `run.py` is the whole run: it plans, sets up the store
(`store_setup.py`) and starts `driver.py`, which gives units to an executor (`executors/`). The
executor runs them on workers (`worker.py`, with its steps in `stages/`). Contracts: `messages.py`
between driver and worker, `executors/base.py` between driver and executor.
"""
