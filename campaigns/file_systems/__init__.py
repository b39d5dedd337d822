"""A campaign on other file systems: they are made and mounted here, and drivers are killed on them.

In: root, and the programs that make file systems. Out: file system × what was done × result.
`kinds.py` has the file systems, `steps.py` what is done, `faulty_mount.py` the faults of networks.
"""
