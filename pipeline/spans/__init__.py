"""Spans: labelled intervals of utterances, such as phones, words and speaker turns.

In: files of spans (`reading.py`; one module a format) and a store. Out: a table (`table.py`), the
frames of each span (`placing.py`), a label for each frame (`frame_labels.py`), and statistics over
the frames of each span (`pooling.py`).
"""
