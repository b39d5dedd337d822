"""Reports as one self-contained HTML page each.

In: the results of a sweep, or the layer statistics. Out: a page. Only `charts.py` uses matplotlib.
"""
