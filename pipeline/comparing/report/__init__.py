"""The report of a comparison: a page, charts, and tables for a paper.

In: a `Comparison`. Out: report.html, comparison.json, `figures/`, `tables/`, methods.txt.
`writing.py` writes them; `sentences.py` has the text, `grids.py` the tables, `charts.py` and
`curves.py` the charts.
"""
