"""Reports, each a self-contained HTML page.

In: the results of a sweep (`sweep_report.py`), or layer statistics (`layers_report.py`). Out: a
page with its charts. `html.py` builds pages; `charts.py` draws, and only it uses matplotlib.
"""
