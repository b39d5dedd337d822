"""Attention for CPUs in C, 1.5 to 6 times as fast as torch's. Optional.

`attention.c` and `attention_body.h` compute, `attention.py` calls them and says whether they are
there. `scripts/build_native.py` compiles them when Strata is installed on a machine with a C
compiler.
"""
