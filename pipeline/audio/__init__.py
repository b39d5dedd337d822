"""Encoded audio in, waveforms out.

In: a record of one utterance (`pipeline.sources.base.Segment`) and the encoder's sample rate.
Out: what its header says (`probe`), or mono float32 samples at that rate (`decode`).
Contract: `types.py`.
"""
