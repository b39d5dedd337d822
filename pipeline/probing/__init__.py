"""Linear probing: which layer carries a task best?

In: an open store and the configuration of a sweep. Out: trained heads, scores with confidence
intervals, and a report. `run.py` is a sweep from start to end; contract of its steps: `results.py`.
`layer_statistics.py` describes layers without labels.
"""
