"""Checkpoints in Hugging Face form: which files they have, and what is wrong with them.

A checkpoint is a directory, or a commit on the hub. `checkpoint.py` finds its files,
`config_file.py` reads config.json, and `weight_files.py` checks the files with the weights before
they are loaded.
"""
