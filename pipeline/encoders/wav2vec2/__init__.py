"""wav2vec 2.0, HuBERT, WavLM and models of the same architecture.

In: checkpoints of torchaudio or Hugging Face. Out: a `SpeechEncoder`, whose features depend on
their own utterance only. `encoder.py` is the entry point; the stages are `frontend.py`
(convolutions), `position.py` and `transformer.py`.
"""
