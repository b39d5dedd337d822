"""ABX: is an item closer to one of its own class than to one of another? Nothing is trained.

In: items with a class, a context and a speaker (`cells.py`), and their frames. Out: the error of
each cell (`errors.py`), by dynamic time warping (`warping.py`).

Schatz et al., "Evaluating speech features with the minimal-pair ABX task", Interspeech 2013; Dunbar
et al., "The Zero Resource Speech Challenge 2021", Interspeech 2021.
"""
