"""Reports: a self-contained HTML page each, and figures, tables and text for a paper.

In: the results of a sweep (`sweep_report.py`). Out: a page with its charts, which are also in
`figures/`; `tables/` and methods.txt. Reports of layer statistics (`probing/layers/`) use the same.
`html.py` builds pages; `charts.py` draws, and only it uses matplotlib.
"""
