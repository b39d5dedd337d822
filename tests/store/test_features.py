"""A reader returns exactly the committed features."""

from __future__ import annotations

import pickle
import uuid
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import fsspec
import numpy as np
import pytest

import pipeline
from pipeline.errors import StoreNotFoundError, UtteranceNotFoundError
from pipeline.store.backend.base import Location
from pipeline.store.index import compact
from pipeline.store.read.opening import open_store
from tests.helpers.backends import in_bucket, in_memory
from tests.helpers.fake_store import FakeStore, begin_store
from tests.servers.gcs import upload
from tests.servers.web import serve_folder

READABLE = [row for row in range(11) if row != 3]
Place = Callable[[Path], Location]


@pytest.fixture(params=["folder", "memory", "s3", "azurite", "gcs", "http", "fsspec"])
def place(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    """The location that a store is read from: its folder, or a copy elsewhere."""
    name = uuid.uuid4().hex[:12]
    if request.param == "s3":
        uri = request.getfixturevalue("s3")
        yield lambda root: in_bucket(root, uri).uri
    elif request.param == "azurite":
        az = request.getfixturevalue("azurite").use(monkeypatch)
        yield lambda root: in_bucket(root, f"{az}/{name}").uri
    elif request.param == "gcs":
        gcs = request.getfixturevalue("gcs")
        gs = gcs.use(monkeypatch)
        yield lambda root: copied(root, f"{gs}/{name}", lambda key: partial(upload, gcs, key))
    elif request.param == "http":
        with serve_folder(Path("/")) as address:
            yield lambda root: f"{address}{root}"
    elif request.param == "fsspec":
        files = fsspec.filesystem("memory")
        yield lambda root: copied(root, f"memory://{name}", lambda key: partial(files.pipe, key))
    else:
        yield in_memory if request.param == "memory" else lambda root: root


def copied(root: Path, uri: str, writer: Callable[[str], Callable[[bytes], object]]) -> str:
    """Write the files of a store below a URI that Strata can only read; return the URI."""
    folder = uri.partition("://")[2].removeprefix("bucket/")
    for path in root.rglob("*"):
        if path.is_file():
            writer(f"{folder}/{path.relative_to(root)}")(path.read_bytes())
    return uri


def test_every_utterance_is_read_as_it_was_written(store: FakeStore, place: Place) -> None:
    """All layers, one layer, layers in another order, and a slice of frames."""
    reader = open_store(place(store.root))
    assert reader.ids == [f"utterance-{row}" for row in READABLE]
    assert reader.layers == store.layout.layers
    for i, row in enumerate(READABLE):
        expected = store.features(row)
        np.testing.assert_array_equal(reader.read(i).numpy(), expected)
        np.testing.assert_array_equal(reader.read(f"utterance-{row}", [6]).numpy(), expected[1:2])
        np.testing.assert_array_equal(reader.read(i, [12, 1]).numpy(), expected[[2, 0]])
        np.testing.assert_array_equal(reader.read(i, start=3, stop=-2), expected[:, 3:-2])


def test_read_many_keeps_the_given_order(store: FakeStore, place: Place) -> None:
    """With repeated keys and across units."""
    reader = open_store(place(store.root))
    rows = [10, 0, 5, 0, 7, 2]
    found = reader.read_many([f"utterance-{row}" for row in rows])
    for row, features in zip(rows, found, strict=True):
        np.testing.assert_array_equal(features.numpy(), store.features(row))


def test_weighted_sum_and_pooled_agree_with_numpy(store: FakeStore, place: Place) -> None:
    """float32 sums over layers; pooled is the mean over frames."""
    reader = open_store(place(store.root))
    weights = [0.25, -1.0, 0.5]
    pooled = reader.pooled().numpy()
    for i, row in enumerate(READABLE):
        features = store.features(row).astype(np.float64)
        expected = np.tensordot(weights, features, axes=1)
        np.testing.assert_allclose(reader.weighted_sum(i, weights).numpy(), expected, rtol=1e-6)
        np.testing.assert_array_equal(pooled[i], features.mean(axis=1).astype(np.float32))


def test_metadata_belongs_to_its_utterance(store: FakeStore, place: Place) -> None:
    """Columns keep their types; the quarantined utterance is listed with its reason."""
    reader = open_store(place(store.root))
    assert reader.metadata["id"].to_pylist() == reader.ids
    assert reader.metadata["speaker"].to_pylist() == [f"s{row % 3}" for row in READABLE]
    assert reader.metadata["digit"].to_pylist() == [row % 10 for row in READABLE]
    assert reader.quarantined.to_pylist() == [{"id": "utterance-3", "reason": "the file is empty"}]


def test_only_committed_units_are_visible(tmp_path) -> None:
    """A unit with shards but without a commit is invisible; `refresh` finds later commits."""
    store = begin_store(tmp_path, [300, 300, 300])
    store.commit(2)
    reader = open_store(tmp_path)
    assert reader.ids == ["utterance-2"]
    np.testing.assert_array_equal(reader.read(0).numpy(), store.features(2))
    store.commit(0, slot=1)
    assert reader.ids == ["utterance-2"]
    reader.refresh()
    assert reader.ids == ["utterance-0", "utterance-2"]
    np.testing.assert_array_equal(reader.read(0).numpy(), store.features(0))


def test_it_reads_the_same_through_the_compaction(store: FakeStore) -> None:
    """Ids, numbers and metadata."""
    before = open_store(store.root)
    compact(store.root)
    after = open_store(store.root)
    assert after.ids == before.ids
    assert after.metadata.equals(before.metadata)
    assert (after.pooled() == before.pooled()).all()


def test_it_pickles(store: FakeStore, place: Place) -> None:
    """The workers of a trainer receive it by pickle and read the same features."""
    reader = pipeline.open_store(place(store.root))
    reader.read(0)
    again = pickle.loads(pickle.dumps(reader))
    np.testing.assert_array_equal(again.read(4).numpy(), reader.read(4).numpy())


def test_missing_stores_and_utterances_are_reported(store: FakeStore, tmp_path) -> None:
    """No store, an unknown utterance, a quarantined one with its reason."""
    with pytest.raises(StoreNotFoundError, match="nowhere"):
        open_store(tmp_path / "nowhere")
    (tmp_path / "file").write_text("x")
    with pytest.raises(StoreNotFoundError):
        open_store(tmp_path / "file")
    reader = open_store(store.root)
    with pytest.raises(UtteranceNotFoundError, match="utterance-99"):
        reader.read("utterance-99")
    with pytest.raises(UtteranceNotFoundError, match="quarantined: the file is empty"):
        reader.read("utterance-3")
    with pytest.raises(IndexError):
        reader.read(10)
