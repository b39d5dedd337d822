"""Extraction: run an encoder over a source and commit the features to a store, unit by unit.

In: a configuration. Out: a store. `run.py` prepares and finalises, `driver.py` hands out units and
retries them, an executor (`executors/`) runs workers, and `worker.py` does one unit, with the steps
in `stages/`. Contract between driver and worker: `messages.py`.
"""
