"""Training from the first epoch on, while the features are extracted.

In: settings as of `strata extract`, and a store. Out: a dataset for `make_loader`. Contract:
`OnlineDataset` in `dataset.py`. `opening.py` opens a complete store, or starts a process that
extracts beside the trainer (`extraction.py`), in which `beside.py` runs. `loader.py` yields the
first epoch unit by unit. Imports `extract` only to compare settings with a store.
"""
