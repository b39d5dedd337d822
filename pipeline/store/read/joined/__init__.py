"""Several stores of one encoder, read as one.

In: opened stores. Out: a store with the utterances of all of them. `columns.py` joins their
metadata, `view.py` their catalogues, `store.py` their reads.
"""
