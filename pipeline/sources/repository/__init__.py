"""A dataset of the Hugging Face hub: the Parquet files of its repository, read in place."""
