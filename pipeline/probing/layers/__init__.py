"""Layer statistics: what the layers of a store, or of the stores of several encoders, look like.

In: stores, and spans for statistics with labels. Out: numbers, a page with charts, JSON.
`statistics.py` measures the layers of one store without labels, `with_labels.py` with labels of
spans, and `between.py` compares the layers of several encoders. The arithmetic is in `cka.py`,
`cca.py` and `information.py`, the pages are in `report.py`, `comparison_report.py`
and `label_report.py`.
"""
