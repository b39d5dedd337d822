"""Audio encoders of transformers that are not of the wav2vec 2.0 shape: Whisper, w2v-BERT, ...

In: a checkpoint of Hugging Face. Out: a `SpeechEncoder` that runs transformers' own module and
captures the outputs of its blocks. `architectures.py` lists what is known;
`families.py` chooses between this package and the packed implementation of `wav2vec2/`.
"""
