"""Extraction of audio that is embedded in Parquet files, against the same clips as files."""

from __future__ import annotations

from pathlib import Path

import datasets
import pyarrow as pa
import pytest
import torch

import pipeline
from pipeline.config import load_config
from pipeline.extract import run
from pipeline.sources import hub, opening
from pipeline.sources.repository.source import open_hub
from pipeline.store.maintain.verify import verify_store
from tests.helpers.corpus import mixed_lengths, write_folder
from tests.helpers.extraction import INLINE, configured, contents, extract
from tests.helpers.parquet_files import audio, write_parquet


@pytest.fixture
def clips(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of clips, and an empty cache of `datasets`."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return write_folder(tmp_path / "clips", mixed_lengths(12), metadata=False)


def table(clips: Path, first: int = 0, stop: int = 12) -> pa.Table:
    files = sorted(clips.glob("*.wav"))[first:stop]
    column = audio([file.read_bytes() for file in files], [file.name for file in files])
    return pa.table({"audio": column, "word": [file.stem for file in files]})


@pytest.mark.parametrize("codec", ["none", "zstd"])
def test_the_features_are_those_of_the_clips_as_files(
    tmp_path: Path, clips: Path, codec: str
) -> None:
    """Bit for bit, also where the pages are compressed; a second run has nothing to do."""
    options = {"compression": codec, "row_group_size": 2}
    write_parquet(tmp_path / "data/a-0.parquet", table(clips, 0, 5), **options)
    write_parquet(tmp_path / "data/a-1.parquet", table(clips, 5), **options)
    extract(clips, tmp_path / "files", *INLINE)
    settings = ["dataset=parquet", f"dataset.path={tmp_path}/data/*.parquet"]
    config = configured(clips, tmp_path / "store", *INLINE, *settings)
    estimate = run.plan(config)
    assert estimate.utterances == 12
    status = run.extract(config)
    assert status.utterances_ok == 12
    files, store = (pipeline.open_store(tmp_path / name) for name in ("files", "store"))
    assert store.ids == files.ids
    for name in files.ids:
        assert torch.equal(store.read(name), files.read(name))
    assert store.metadata["word"].to_pylist() == [name.removesuffix(".wav") for name in store.ids]
    before = contents(tmp_path / "store")
    run.extract(config)
    assert contents(tmp_path / "store") == before
    assert verify_store(tmp_path / "store").ok


def test_a_store_of_load_dataset_goes_on(
    tmp_path: Path, clips: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A store that was made through the copy of `datasets` is complete, and takes new rows."""
    path = tmp_path / "repo/data/train-00000-of-00001.parquet"
    write_parquet(path, table(clips, 0, 7), compression="snappy", use_dictionary=True)
    settings = ["dataset=hub", f"dataset.name={tmp_path}/repo", "dataset.split=train"]
    model = ["model=tiny", "plan.frames_per_unit=512", f"store={tmp_path / 'store'}"]
    config = load_config([*settings, *model, *INLINE])
    monkeypatch.setitem(opening._OPENERS, "hub", hub.open_hub)
    run.extract(config)
    before = contents(tmp_path / "store")
    copies = [*(tmp_path / "cache").rglob("*.arrow")]
    assert copies
    monkeypatch.setitem(opening._OPENERS, "hub", open_hub)
    run.extract(config)
    assert contents(tmp_path / "store") == before
    write_parquet(path, table(clips))
    status = run.extract(config)
    assert status.utterances_ok == 12
    found = contents(tmp_path / "store")
    assert {name: found[name] for name in before} == before
    assert [*(tmp_path / "cache").rglob("*.arrow")] == copies
