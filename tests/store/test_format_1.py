"""A store of format version 1, made by version 0.1.0, can be read by every reader."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import io
import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorstore
import torch
import zarr

import pipeline
from pipeline.config import load_config
from pipeline.extract import run
from pipeline.store import index as index_files
from pipeline.store.maintain.status import read_status
from pipeline.store.maintain.verify import verify_store

FOLDER = Path(__file__).parents[1] / "data" / "format-1"
EXPECTED: dict[str, dict[str, Any]] = json.loads((FOLDER / "expected.json").read_text())


def sha256(values: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(values).tobytes()).hexdigest()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A copy of the store that tests may write to."""
    return Path(shutil.copytree(FOLDER / "store", tmp_path / "store"))


def test_every_utterance_is_read_as_it_was_written() -> None:
    """Features and pooled means have the bytes that version 0.1.0 read."""
    store = pipeline.open_store(FOLDER / "store")
    assert store.ids == list(EXPECTED)
    pooled = store.pooled()
    for i, (name, expected) in enumerate(EXPECTED.items()):
        features = store.read(name)
        assert list(features.shape) == expected["shape"]
        assert sha256(features.numpy()) == expected["features"]
        assert sha256(pooled[i].numpy()) == expected["pooled"]


def test_read_many_slices_and_weighted_sums_agree_with_read() -> None:
    """Merged reads, slices of an utterance and sums use the same bytes."""
    store = pipeline.open_store(FOLDER / "store")
    for name, features in zip(store.ids, store.read_many(store.ids), strict=True):
        assert sha256(features.numpy()) == EXPECTED[name]["features"]
        middle = features.shape[1] // 2
        assert torch.equal(store.read(name, [6], middle), features[1:2, middle:])
        expected = 0.5 * features[0].float() + 0.25 * features[2].float()
        assert torch.equal(store.weighted_sum(name, [0.5, 0.0, 0.25]), expected)


@pytest.mark.parametrize("reader", ["zarr", "tensorstore"])
def test_any_zarr_reader_reads_the_same(reader: str) -> None:
    """`frame_start` and `n_frames` of the index are places on the frame axis of the array."""
    path = FOLDER / "store" / "features.zarr" / "frames"
    if reader == "zarr":
        array: Any = zarr.open_array(path, mode="r")[:]
    else:
        spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(path)}}
        array = tensorstore.open(spec, read=True).result().read().result()
    pieces: dict[str, list[np.ndarray]] = {}
    table = index_files.read_index(FOLDER / "store").sort_by([("row", "ascending")])
    for row in sorted(table.to_pylist(), key=lambda row: (row["row"], row["piece"])):
        if row["status"] == "ok":
            start = row["frame_start"]
            pieces.setdefault(row["id"], []).append(array[:, start : start + row["n_frames"]])
    found = {name: sha256(np.concatenate(parts, axis=1)) for name, parts in pieces.items()}
    assert found == {name: expected["features"] for name, expected in EXPECTED.items()}


def test_a_store_that_was_opened_and_pickled_by_0_1_0_opens() -> None:
    """Its pickle names modules by their old paths, and its state by the old attributes."""

    class Moved(pickle.Unpickler):
        def find_class(self, module: str, name: str) -> Any:
            if module == "pathlib":  # the pickle has an absolute path; the store is elsewhere now
                return lambda *parts: FOLDER / "store"
            return super().find_class(module, name)

    store = Moved(io.BytesIO((FOLDER / "opened.pickle").read_bytes())).load()
    assert isinstance(store, pipeline.FeatureStore)
    assert store.ids == list(EXPECTED)
    for name, expected in EXPECTED.items():
        assert sha256(store.read(name).numpy()) == expected["features"]


def test_metadata_and_quarantine_are_read() -> None:
    """Columns keep their types, and the empty file has its reason."""
    store = pipeline.open_store(FOLDER / "store")
    assert store.metadata.column_names == ["id", "word", "speaker", "score"]
    assert store.metadata["score"].to_pylist() == [0.0, 0.25, 0.5, 0.75, 1.0, 1.5, 1.75]
    assert store.quarantined.to_pylist() == [
        {"id": "clip-5.wav", "reason": "the file holds no samples"}
    ]
    assert (store.layers, store.feature_dim, store.frame_rate_hz) == ((0, 6, 12), 48, 50.0)


def test_batches_for_a_trainer() -> None:
    """`make_loader` returns the same frames, padded."""
    dataset = pipeline.FeatureDataset(pipeline.open_store(FOLDER / "store"), columns=["word"])
    seen = {}
    for batch in pipeline.make_loader(dataset, max_frames_per_batch=400, shuffle=False):
        for i, name in enumerate(batch.ids):
            features = batch.features[i, :, : batch.lengths[i]]
            seen[name] = sha256(features.numpy())
    assert seen == {name: expected["features"] for name, expected in EXPECTED.items()}


def test_it_is_verified_and_described(root: Path) -> None:
    """`verify` finds it sound; `status` counts its utterances."""
    found = verify_store(root)
    assert (found.ok, found.units_committed, found.utterances_ok) == (True, 4, 7)
    status = read_status(root)
    assert (status.utterances_ok, status.utterances_quarantined) == (7, 1)
    assert status.audio_seconds == pytest.approx(11.7, abs=0.2)


def test_it_is_collapsed(root: Path, tmp_path: Path) -> None:
    """The weighted sum of a version 1 store is a store of one layer."""
    pipeline.collapse(root, tmp_path / "sum", [0.5, 0.25, 0.25])
    store, parent = pipeline.open_store(tmp_path / "sum"), pipeline.open_store(root)
    for name in parent.ids:
        expected = parent.weighted_sum(name, [0.5, 0.25, 0.25])
        torch.testing.assert_close(store.read(name)[0].float(), expected, rtol=1e-3, atol=1e-3)


def test_it_is_resumed(root: Path, tmp_path: Path) -> None:
    """A unit that is missing is extracted again, with the features that were there.

    On the hardware and with the versions that made the store they are the same bytes; elsewhere
    they agree to rounding.
    """
    spec = importlib.util.spec_from_file_location("make", FOLDER / "make.py")
    assert spec is not None
    assert spec.loader is not None
    make = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(make)
    make.write_clips(tmp_path / "clips")
    before = pipeline.open_store(FOLDER / "store")
    (root / "index" / "unit-1.parquet").unlink()
    dataset = ["dataset=audiofolder", f"dataset.path={tmp_path / 'clips'}"]
    status = run.extract(load_config([*dataset, *make.SETTINGS, f"store={root}"]))
    assert (status.units_committed, status.utterances_ok) == (4, 7)
    after = pipeline.open_store(root)
    assert after.ids == before.ids
    for name in before.ids:
        torch.testing.assert_close(after.read(name), before.read(name), rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize(
    ("old", "name"),
    [
        ("reader", "FeatureStore"),
        ("catalogue", "Catalogue"),
        ("layout", "Layout"),
        ("norm", "FinalNorm"),
    ],
)
def test_classes_that_old_pickles_name_are_there(old: str, name: str) -> None:
    """Also the final norm, which a pickle of 0.1.0 holds if it was used before."""
    found = getattr(importlib.import_module(f"pipeline.store.{old}"), name)
    assert found.__name__ == name
    assert found.__module__ != f"pipeline.store.{old}"
