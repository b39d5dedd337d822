"""Fidelity: what the dtype of a store costs, against a reference of the same features.

In: a store, and a reference: another store, or `pipeline.extract.reference`, which encodes a sample
again. Out: a `Fidelity`. `sampling.py` draws the utterances, `figures.py` has the arithmetic,
`run.py` reads and compares, `against.py` makes a store the reference, `sweeps.py` trains the same
heads on both, `verdict.py` says it in one line.
"""
