"""Steps of stacked heads in C, which takes several passes over the memory in torch. Optional.

`heads.c` and `heads_body.h` compute, `heads.py` calls them and says whether they are there.
`scripts/build_native.py` compiles them when Strata is installed on a machine with a C compiler.
"""
