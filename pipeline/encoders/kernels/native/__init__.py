"""Attention for CPUs in C, which torch computes at half the speed or less. Optional.

`attention.c` and `attention_body.h` compute, `attention.py` calls them and says whether they are
there. `scripts/build_native.py` compiles them when Strata is installed on a machine with a C
compiler.
"""
