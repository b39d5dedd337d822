"""Files of weights, read without running what they contain.

In: the path of a file of PyTorch (.pt, .pth, .bin; both formats) or of safetensors. Out: the
weights by torchaudio's names, and the architecture that the file states. `files.py` opens a file,
`pickles.py` interprets a pickle as data, `forms.py` recognises what wrote it (fairseq, unilm,
s3prl, torchaudio), `names.py` maps the names, `architecture.py` reads the settings, `reading.py`
joins them, and `family.py` is the family of encoders.
"""
