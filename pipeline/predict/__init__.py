"""Predictions of a sweep's heads on new recordings or on stored features.

In: the folder of a sweep, and recordings, waveforms or a store. Out: labels, transcripts, numbers
or scores. `heads.py` opens a head, `encoding.py` makes the features that it was trained on,
`predictor.py` puts both together, and `export.py` writes a head for other programs.
"""
