"""Datasets whose files are in a bucket (s3://, gs://, az://) or on the hub (hf://).

Audio, Parquet and tar files are read by ranges of bytes and never stored. Tables and lists are
fetched whole. A file is named by its URI wherever a local one is named by its path.
"""
