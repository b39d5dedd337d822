"""Code in C, for what takes several passes in Python. All of it is optional.

`scripts/build_native.py` compiles it when Strata is installed on a machine with a C compiler.
"""
