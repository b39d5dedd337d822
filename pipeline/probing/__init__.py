"""Linear probing: which layer is best for a task?

In: an open store and the configuration of a sweep. Out: trained heads, scores with confidence
intervals, and a report. `run.py` is a sweep from start to end; `results.py` is the contract of its
steps, `tasks/base.py` that of a task. `layers/` describes layers and compares encoders,
`fidelity/` what their dtype costs.
"""
