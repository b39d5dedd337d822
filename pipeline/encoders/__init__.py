"""Speech encoders: waveforms in, hidden layers out.

In: waveforms at the encoder's sample rate. Out: features of every requested layer.
Contract: `base.py` (`Encoder`, `FrameGeometry`). `registry.py` finds an encoder by its
configuration; each family of models has a folder of its own.
"""
