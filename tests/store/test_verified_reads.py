"""Reads that compare what they return with its checksums, before they return it."""

from __future__ import annotations

import pickle
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pytest
import torch

import pipeline
from pipeline.errors import DamagedError
from pipeline.store import index as index_files
from pipeline.store.backend.local import LocalBackend
from pipeline.store.format.codecs import INT8
from pipeline.store.format.layout import Layout
from pipeline.store.serialization import parquet_bytes
from tests.helpers.feature_stores import make_store, noise

LENGTHS = [100, 700, 60, 200, 1, 256]
PIECES = {1: 3}
LAYERS, DIM = (1, 2, 3), 8
FRAME_BYTES = DIM * 2


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with an utterance in three pieces, which nothing changes."""
    root = tmp_path_factory.mktemp("verified") / "store"
    make_store(root, LENGTHS, LAYERS, DIM, 512, features=noise, pieces=PIECES)
    return root


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The same store, to be damaged."""
    root = tmp_path / "store"
    make_store(root, LENGTHS, LAYERS, DIM, 512, features=noise, pieces=PIECES)
    return root


def everything(store: pipeline.FeatureStore) -> Iterator[torch.Tensor]:
    """All kinds of reads: whole utterances, parts of them, sums, means, batches."""
    yield from store[:]
    for i, n_frames in enumerate(LENGTHS):
        middle = n_frames // 2
        for start, stop in ((0, 1), (middle, middle + 1), (middle, None), (-1, None), (1, 1)):
            yield store.read(i, [3, 1], start, stop)
        yield store.weighted_sum(i, [0.5, 0.0, 2.0])
    yield from store.read_many([5, 1, 1], [2])
    yield store.pooled()
    yield store.pooled([2])
    dataset = pipeline.FeatureDataset(store, [2, 3], max_frames=50)
    for batch in pipeline.make_loader(dataset, max_frames_per_batch=900, seed=1):
        yield batch.features


def test_a_verified_read_returns_what_a_plain_one_does(sound: Path) -> None:
    """Of whole utterances, of parts of any piece, and through a loader."""
    plain, verified = (pipeline.open_store(sound, verify=verify) for verify in (False, True))
    for a, b in zip(everything(plain), everything(verified), strict=True):
        assert torch.equal(a, b)
    assert torch.equal(plain.read(1, verify=True), plain.read(1))


def flip(path: Path, at: int) -> None:
    """Flip a bit of a file."""
    raw = bytearray(path.read_bytes())
    raw[at] ^= 4
    path.write_bytes(raw)


def damage_frame(root: Path, row: int, layer: int, frame: int) -> Path:
    """Flip a bit in one frame of the first piece of an utterance; return the shard."""
    store = pipeline.open_store(root)
    record = store.record(row)
    slot, first = divmod(record["frame_start"], 512)
    path = root / store._layout.shard_key(LAYERS.index(layer), slot)
    flip(path, (first + frame) * FRAME_BYTES + 5)
    return path


READS: dict[str, Callable[[pipeline.FeatureStore], object]] = {
    "read": lambda store: store.read("utt-0003"),
    "a part before": lambda store: store.read("utt-0003", [2], 3, 9),
    "a part after": lambda store: store.read("utt-0003", [2], 150, 151),
    "read_many": lambda store: store.read_many([0, 3, 2], [2]),
    "a slice": lambda store: store[2:5],
    "weighted_sum": lambda store: store.weighted_sum(3, [0.0, 1.0, 0.0]),
    "pooled": lambda store: store.pooled([2]),
    "a dataset": lambda store: pipeline.FeatureDataset(store, [2])[3],
    "a loader": lambda store: list(
        pipeline.make_loader(pipeline.FeatureDataset(store, [2]), max_frames_per_batch=900)
    ),
    "a selection": lambda store: store.select(pc.field("n_frames") == 200).read(0),
    "a pickle": lambda store: pickle.loads(pickle.dumps(store)).read(3),
}


@pytest.mark.parametrize("name", READS)
def test_a_changed_frame_is_found(root: Path, name: str) -> None:
    """Also if it is beside the frames that are returned; the error names file and utterance."""
    path = damage_frame(root, 3, 2, 120)
    named = f"layer 2 of utterance 'utt-0003' has a wrong checksum in {re.escape(str(path))}"
    with pytest.raises(DamagedError, match=named):
        READS[name](pipeline.open_store(root, verify=True))
    READS[name](pipeline.open_store(root))


def test_other_frames_are_not_in_question(root: Path) -> None:
    """Other layers and utterances of a damaged shard are read and verified."""
    damage_frame(root, 3, 2, 120)
    store = pipeline.open_store(root, verify=True)
    assert np.array_equal(store.read(3, [1, 3])[1].numpy(), noise(3, 3, 200, DIM))
    assert torch.equal(store.weighted_sum(3, [1.0, 0.0, 0.0]), store.read(3, [1])[0].float())
    assert store.read(3, [2], 7, 7).shape[1] == 0
    assert torch.equal(store.read(3, verify=False), pipeline.open_store(root).read(3))
    for i in (0, 1, 2, 4, 5):
        store.read(i)


def test_each_piece_has_its_own_checksum(root: Path) -> None:
    """Of a long utterance, reads of the undamaged pieces go on."""
    damage_frame(root, 1, 1, 10)
    store = pipeline.open_store(root, verify=True)
    counts = store._catalogue.n_frames[store._catalogue.first_piece[1] :].tolist()
    assert np.array_equal(
        store.read(1, [1], counts[0])[0].numpy(), noise(1, 1, 700, DIM)[counts[0] :]
    )
    for start, stop in ((0, 1), (counts[0] - 1, None), (20, 300)):
        with pytest.raises(DamagedError, match="'utt-0001'"):
            store.read(1, [1], start, stop)


def test_the_first_piece_that_is_touched_may_be_any(root: Path) -> None:
    """Parts that begin and end in the second piece are compared with the second checksum."""
    store = pipeline.open_store(root)
    catalogue = store._catalogue
    second = int(catalogue.first_piece[1]) + 1
    path = root / store._layout.shard_key(0, int(catalogue.slot[second]))
    flip(path, (int(catalogue.start[second]) + 1) * FRAME_BYTES)
    first = int(catalogue.n_frames[second - 1])
    opened = pipeline.open_store(root, verify=True)
    assert opened.read(1, [1], 0, first).shape[1] == first
    with pytest.raises(DamagedError, match="layer 1 of utterance 'utt-0001'"):
        opened.read(1, [1], first + 100, first + 110)


def test_swapped_means_are_found(root: Path) -> None:
    """Two files of means, each with its right checksum, and a mean of other frames."""
    layout: Layout = pipeline.open_store(root)._layout
    paths = [root / layout.pooled_key(slot) for slot in (0, 1)]
    contents = [path.read_bytes() for path in paths]
    for path, content in zip(paths, reversed(contents), strict=True):
        path.write_bytes(content)
    store = pipeline.open_store(root)
    store.pooled()
    with pytest.raises(DamagedError, match=r"layer 1 .* pooled mean .* \(.*pooled/c/0"):
        store.pooled(verify=True)


def test_an_index_that_changed_since_it_was_opened_is_found(root: Path) -> None:
    """E.g. by a repair: the frames may be those of another attempt. Opened again, all is well."""
    store, used = (pipeline.open_store(root, verify=True) for _ in range(2))
    used.read(0)
    raw = index_files.read_unit(root, 0)
    moved = raw.set_column(
        raw.schema.get_field_index("id"), "id", [["x", *raw["id"].to_pylist()[1:]]]
    )
    moved = moved.cast(raw.schema)
    LocalBackend(root).put("index/unit-0.parquet", [parquet_bytes(moved)])
    with pytest.raises(DamagedError, match=r"unit-0\.parquet has no utterance 'utt-0000' at the"):
        store.read(0)
    for opened in (store, used):
        opened.refresh()
        opened.read("x")


def test_the_checksums_of_a_unit_are_read_once(
    sound: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When they are first needed; a plain reader reads none."""
    units: list[int] = []
    read_unit = index_files.read_unit
    monkeypatch.setattr(
        index_files, "read_unit", lambda store, unit: units.append(unit) or read_unit(store, unit)
    )
    plain = pipeline.open_store(sound)
    plain.read(0)
    assert units == []
    store = pipeline.open_store(sound, verify=True)
    for _ in range(3):
        store.read(0)
        store.select(pc.field("n_frames") == 100).read(0)
    assert units == [0]


def test_the_scales_of_one_of_several_stores_are_named(tmp_path: Path) -> None:
    """As the file that is there, whatever number the slot has among all stores."""
    for name in ("a", "b"):
        ids = [f"{name}{i}" for i in range(3)]
        make_store(tmp_path / name, [40] * 3, codec=INT8, ids=ids)
    shard = tmp_path / "b/features.zarr/frames/c/0/0/0"
    raw = bytearray(shard.read_bytes())
    raw[50] ^= 1
    shard.write_bytes(raw)
    store = pipeline.open_store([tmp_path / "a", tmp_path / "b"])
    with pytest.raises(DamagedError, match=r"/b/features\.zarr/scale/c/0/0/0/0/0;"):
        store.read("b0", verify=True)
