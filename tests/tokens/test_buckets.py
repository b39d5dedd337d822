"""Tokens of stores in buckets: the same bytes, codebook, repairs and exports as in a folder."""

from __future__ import annotations

from pathlib import Path

import pipeline
from pipeline.store.backend.opening import open_backend
from pipeline.store.format.tokens import chunk_key
from pipeline.store.maintain.verify import verify_store
from pipeline.transforms.copy.run import copy_stores
from tests.helpers.token_stores import LAYER, LENGTHS, K, clustered_store, expected_tokens

NAME = "layer2-k5"


def test_tokens_in_a_bucket(s3: str, tmp_path: Path) -> None:
    """Made in the bucket, applied from it to a folder, damaged, repaired, exported and dropped."""
    clustered_store(tmp_path / "store")
    copy_stores(str(tmp_path / "store"), s3)
    result = pipeline.tokenize(s3, LAYER, K, sample_frames="all", memory=3000)
    assert result.codebook == f"{s3}/codebooks/{NAME}.safetensors"
    store = pipeline.open_store(s3)
    for position, n_frames in enumerate(LENGTHS):
        expected = expected_tokens(store, position, n_frames)
        assert store.tokens(position).tolist() == expected.tolist()
    found = verify_store(s3)
    assert (found.ok, found.orphans) == (True, ())
    there = pipeline.tokenize(tmp_path / "store", codebook=result.codebook)
    assert there.codebook_sha256 == result.codebook_sha256
    backend, local = open_backend(s3), open_backend(tmp_path / "store")
    key = chunk_key(NAME, 0)
    content = backend.read(key)
    assert local.read(key) == content
    backend.put(key, [content[:-1] + bytes([content[-1] ^ 1])])
    assert pipeline.tokenize(s3, name=NAME).units_written == 1
    assert backend.read(key) == content
    pipeline.export(s3, f"{s3}-units/all.txt", "units", dedup=True)
    lines = open_backend(f"{s3}-units").read("all.txt").decode().splitlines()
    assert [line.split("|")[0] for line in lines] == store.ids
    pipeline.drop(s3, tokens=NAME, confirm=True)
    assert pipeline.open_store(s3).token_names == []
    assert [item for item in backend.list() if "tokens" in item or "codebook" in item] == []
