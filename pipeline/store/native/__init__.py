"""Code in C, for what takes several passes in Python, or cannot be done in it. All is optional.

`mapped.c` reads files through memory maps, `int8.c` decodes, and `rows.c` scatters rows; a module
of each says whether it is there. `scripts/build_native.py` compiles them when Strata is installed
on a machine with a C compiler.
"""
