"""Parquet files with embedded audio, read in place: of folders, and of repositories of the hub.

In: configurations of datasets. Out: `Source`. `thrift`, `footer`, `pages` and `values` find the
audio of a column chunk; `finding` that of a file; `embedded` reads it.
"""
