"""Verbs of the command line that have a module of their own; the others are in `app.py`."""
