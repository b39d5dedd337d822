"""Encoded audio in, waveforms out.

In: a record of one utterance (`pipeline.sources.base.Segment`) and the encoder's sample rate.
Out: the facts of its header (`probe.py`), or mono float32 samples at that rate (`decode.py`).
Contract: `types.py`. In this package only `backends/` imports decoding libraries.
"""
