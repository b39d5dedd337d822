"""The command `strata`: verbs, progress bars and tables.

In: the command line. Out: the answer on stdout, everything else on stderr, and an exit code.
`app.py` has the verbs; nothing imports this room.
"""
