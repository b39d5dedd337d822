"""Speech encoders: waveforms in, hidden layers out.

In: waveforms at the encoder's sample rate. Out: features of every requested layer.
Contract: `base.py` (`Encoder`, `EncoderFamily`). `registry.py` finds the family of a configuration;
each family has its own folder, and `selfcheck.py` measures the errors of an encoder.
"""
