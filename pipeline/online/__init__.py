"""Training from the first epoch on, while features are made.

`open_or_extract` (`opening.py`). In: settings as of `strata extract`, and a store. Out: a dataset
for `make_loader`. Contract: `OnlineDataset` in `dataset.py`. If units are missing, a process beside
the trainer (`extraction.py`) runs `beside.py`, with `shares.py` for several ranks; `loader.py`
yields the first epoch unit by unit.

`cached` (`cached.py`). In: ids and waveforms from a trainer's own dataset. Out: features, encoded
once (`collecting.py`) and kept in a store without a dataset (`cache_store.py`).
"""
