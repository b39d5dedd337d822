"""wav2vec 2.0, HuBERT, WavLM and models of the same architecture.

In: checkpoints of torchaudio or Hugging Face. Out: a `SpeechEncoder`. `families.py` loads one from
a configuration, `encoder.py` from Python. Its parts are `frontend.py` (convolutions), `position.py`
and `transformer.py`.
"""
