"""Decoders, one file for each library; only that file imports it.

`soundfile` reads what libsndfile reads; `torchcodec` reads the rest where FFmpeg is installed.
"""
