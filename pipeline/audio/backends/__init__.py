"""Decoders, one file for each library; in `pipeline.audio` only that file imports the library.

`soundfile` reads what libsndfile reads; `torchcodec` reads the rest where FFmpeg is installed.
"""
