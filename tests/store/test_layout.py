"""Keys, offsets and sizes of a store."""

from __future__ import annotations

import json
import struct
import warnings
from pathlib import Path

import google_crc32c
import numpy as np
import pytest
import tensorstore as ts
import zarr
from hypothesis import given
from hypothesis import strategies as st

from pipeline.store.documents import write_group
from pipeline.store.format.layout import FRAMES, GROUP, POOLED, Layout
from tests.helpers.fake_store import FakeStore, attributes

layouts = st.builds(
    Layout,
    layers=st.lists(st.integers(0, 24), min_size=1, max_size=5, unique=True).map(tuple),
    dim=st.integers(1, 9),
    frames_per_unit=st.integers(1, 5).map(lambda n: 256 * n),
    utterances_per_slot=st.integers(1, 7),
)


@given(layouts, st.integers(0, 10_000), st.integers(0, 10_000))
def test_no_two_slots_share_a_file_or_a_frame(layout: Layout, a: int, b: int) -> None:
    """Each slot has its own files, and frames next to those of its neighbours."""
    files = {slot: {*layout.shard_keys(slot), layout.pooled_key(slot)} for slot in (a, b)}
    assert len(files[a]) == layout.n_layers + 1
    assert a == b or not files[a] & files[b]
    assert layout.slot_start(a + 1) - layout.slot_start(a) == layout.frames_per_unit


@given(layouts)
def test_the_shard_index_is_that_of_the_sharding_codec(layout: Layout) -> None:
    """Offset and length of each chunk in order, then their crc32c."""
    raw, n = layout.shard_index, layout.chunks_per_shard
    pairs = np.frombuffer(raw[:-4], "<u8").reshape(n, 2)
    size = 256 * layout.dim * 2
    assert pairs[:, 0].tolist() == [i * size for i in range(n)]
    assert pairs[:, 1].tolist() == [size] * n
    assert struct.unpack("<I", raw[-4:])[0] == google_crc32c.value(raw[:-4])
    assert layout.shard_bytes == layout.frames_per_unit * layout.dim * 2 + len(raw)


@pytest.mark.parametrize("frames", [0, -256, 255, 257])
def test_a_unit_that_is_no_multiple_of_a_chunk_is_refused(frames: int) -> None:
    """Shards consist of whole chunks."""
    with pytest.raises(ValueError, match="multiple of 256"):
        Layout((1,), 4, frames, 1)


@pytest.mark.parametrize("n_frames", [1024, 700])
def test_shards_are_byte_for_byte_what_zarr_python_writes(
    store: FakeStore, tmp_path: Path, n_frames: int
) -> None:
    """With the same documents and values zarr-python writes the same files, with their index."""
    layout = store.layout
    write_group(tmp_path / "theirs", layout, 2, attributes(layout))
    frames = np.full(layout.frames_shape(2), np.nan, np.float16)
    frames[:, :n_frames] = np.random.default_rng(0).standard_normal(
        (layout.n_layers, n_frames, layout.dim)
    )
    with zarr.config.set({"array.write_empty_chunks": True}):
        array = zarr.open_array(tmp_path / "theirs" / FRAMES, mode="r+")
        array[:] = frames
    for slot in (0, 1):
        part = frames[:, layout.slot_start(slot) : layout.slot_start(slot + 1)]
        for axis, key in enumerate(layout.shard_keys(slot)):
            theirs = (tmp_path / "theirs" / key).read_bytes()
            assert theirs == part[axis].tobytes() + layout.shard_index


def test_pooled_chunks_are_byte_for_byte_what_zarr_python_writes(
    store: FakeStore, tmp_path: Path
) -> None:
    """The codecs of the pooled array are bytes and crc32c."""
    ours = zarr.open_array(store.path(POOLED), mode="r")[:]
    n_slots = store.plan.n_units
    write_group(tmp_path / "theirs", store.layout, n_slots, attributes(store.layout))
    with zarr.config.set({"array.write_empty_chunks": True}):
        zarr.open_array(tmp_path / "theirs" / POOLED, mode="r+")[:] = ours
    for slot in range(n_slots):
        key = store.layout.pooled_key(slot)
        assert (tmp_path / "theirs" / key).read_bytes() == store.path(key).read_bytes()


def expected_frames(store: FakeStore) -> np.ndarray:
    """Return the whole frames array that a fake store must have."""
    shape = store.layout.frames_shape(store.plan.n_units)
    frames = np.full(shape, np.nan, np.float16)
    for unit in range(store.plan.n_units):
        start = store.layout.slot_start(unit)
        for row in store.plan.unit_rows(unit)["row"].to_pylist():
            if row not in store.reasons:
                values = store.features(row)
                frames[:, start : start + values.shape[1]] = values
                start += values.shape[1]
    return frames


def test_zarr_python_reads_the_stored_values_without_a_warning(
    store: FakeStore,
) -> None:
    """A plain Zarr v3 group; unused frames of a unit are NaN."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        group = zarr.open_group(store.path(GROUP), mode="r")
        assert sorted(name for name, _ in group.arrays()) == ["frames", "pooled"]
        assert group.attrs["layers"] == list(store.layout.layers)
        frames = group["frames"]
        assert frames.metadata.dimension_names == ("layer", "frame", "feature")
        values = frames[:]
    np.testing.assert_array_equal(values, expected_frames(store))
    assert np.isnan(values).any()


def test_tensorstore_reads_the_same_numbers(store: FakeStore) -> None:
    """A second implementation of Zarr, on frames and pooled means."""
    spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(store.path(FRAMES))}}
    array = ts.open(spec).result()
    assert array.domain.labels == ("layer", "frame", "feature")
    np.testing.assert_array_equal(array.read().result(), expected_frames(store))
    spec["kvstore"]["path"] = str(store.path(POOLED))
    pooled = ts.open(spec).result().read().result()
    np.testing.assert_array_equal(pooled[0, 1], store.features(1).astype(np.float64).mean(axis=1))
    assert np.isnan(pooled[1, 0]).all()  # quarantined


def test_a_shard_maps_as_one_flat_matrix(store: FakeStore) -> None:
    """np.memmap of [frames_per_unit, dim] at offset 0 is one layer of the unit."""
    shape = (store.layout.frames_per_unit, store.layout.dim)
    frames = expected_frames(store)
    for unit in range(store.plan.n_units):
        for axis, key in enumerate(store.layout.shard_keys(unit)):
            matrix = np.memmap(store.path(key), "<f2", mode="r", shape=shape)
            start = store.layout.slot_start(unit)
            np.testing.assert_array_equal(matrix, frames[axis, start : start + shape[0]])


@given(layouts, st.integers(0, 9))
def test_documents_are_plain_json(layout: Layout, n_slots: int) -> None:
    """The Zarr documents of any layout survive a round trip through JSON."""
    for document in (layout.frames_document(n_slots), layout.pooled_document(n_slots)):
        assert json.loads(json.dumps(document, allow_nan=False)) == document
