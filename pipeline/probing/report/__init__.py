"""Reports: a self-contained HTML page each, and figures, tables and text for a paper.

In: the results of a sweep (`sweep_report.py`), or layer statistics (`layers_report.py`). Out: a
page with its charts, which are also in `figures/`; of a sweep `tables/` and methods.txt, too.
`html.py` builds pages; `charts.py` draws, and only it uses matplotlib.
"""
