"""Stores of every form: codecs, what is kept, and statistics, through every reader."""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import tensorstore
import torch
import zarr
from crc32c import crc32c

import pipeline
from pipeline.errors import DamagedError, StoreError
from pipeline.store.backend.base import Location
from pipeline.store.documents import layout_of
from pipeline.store.format.codecs import BFLOAT16, CODECS, FLOAT16, FLOAT32, INT8, Codec
from pipeline.store.format.layout import FRAMES, KEPT, POOLED, SCALE
from pipeline.store.format.pooling import STATISTICS
from pipeline.store.maintain.inspection import describe_store
from pipeline.store.maintain.verify import verify_store
from tests.helpers.backends import in_bucket
from tests.helpers.feature_stores import make_store

LENGTHS = [100, 700, 60, 200, 1, 256]
PIECES = {1: 3}
LAYERS, DIM = (1, 2, 3), 8
LOST = (2,)
KEYS = [f"utt-{row:04d}" for row in range(len(LENGTHS)) if row not in LOST]
each_codec = pytest.mark.parametrize("codec", CODECS, ids=lambda codec: codec.name)


def varied(row: int, layer: int, n_frames: int, dim: int) -> np.ndarray:
    """Return float32 features; feature 1 is constant, and feature 2 has a large constant part."""
    random = np.random.default_rng([row, layer])
    values = random.standard_normal((n_frames, dim)).astype(np.float32)
    values[:, 1] = row - 1.5
    values[:, 2] += 60
    values[:, 3] *= 80
    return values


def write(root: Path, **form: object) -> Path:
    make_store(root, LENGTHS, LAYERS, DIM, 512, varied, LOST, PIECES, **form)
    return root


def truth(key: str) -> torch.Tensor:
    """The features before they were stored, float32 [n_layers, n_frames, dim]."""
    row = int(key[-4:])
    bounds = np.linspace(0, LENGTHS[row], PIECES.get(row, 1) + 1).astype(int).tolist()
    parts = []
    for start, stop in pairwise(bounds):
        layers = [varied(row, layer, stop, DIM)[start:] for layer in LAYERS]
        parts.append(torch.from_numpy(np.stack(layers)))
    return torch.cat(parts, dim=1)


def tolerance(codec: Codec, values: torch.Tensor) -> torch.Tensor:
    """The largest error of each feature, [n_layers, 1, dim]."""
    largest = values.abs().amax(1, keepdim=True)
    if codec == INT8:  # half a step, then the rounding to float16
        width = values.amax(1, keepdim=True) - values.amin(1, keepdim=True)
        return 0.51 * width / 254 + largest * 2**-11
    return largest * {FLOAT16: 2**-11, FLOAT32: 0.0, BFLOAT16: 2**-8}[codec]


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A store of each codec, which nothing changes."""
    root = tmp_path_factory.mktemp("forms")
    return {codec.name: write(root / codec.name, codec=codec) for codec in CODECS}


@pytest.fixture(scope="module", params=["folder", "s3"])
def places(request: pytest.FixtureRequest, stores: dict[str, Path]) -> dict[str, Location]:
    """Where the stores are read: in their folders, and in a bucket."""
    if request.param == "folder":
        return dict(stores)
    uri = request.getfixturevalue("s3_of_module")
    return {name: in_bucket(root, f"{uri}/{name}") for name, root in stores.items()}


@each_codec
def test_reads_return_the_features_within_the_codecs_rounding(
    places: dict[str, Location], codec: Codec
) -> None:
    """Whole utterances, pieces and parts of them, in the type that the codec's values have."""
    store = pipeline.open_store(places[codec.name])
    for key in KEYS:
        expected = truth(key)
        got = store.read(key)
        assert got.dtype == (torch.float16 if codec in (FLOAT16, INT8) else torch.float32)
        assert ((got.float() - expected).abs() <= tolerance(codec, expected)).all()
        n_frames = expected.shape[1]
        for start, stop in ((0, 1), (n_frames // 2, None), (n_frames - 1, n_frames), (3, 3)):
            part = store.read(key, [3, 1], start, stop)
            assert torch.equal(part, got[[2, 0], start:stop])


@each_codec
def test_all_readers_return_the_same_values(places: dict[str, Location], codec: Codec) -> None:
    """Many at a time, sums, loaders, pickles, and with verification."""
    store = pipeline.open_store(places[codec.name])
    wanted = [KEYS[4], KEYS[1], KEYS[1], KEYS[0]]
    for got, key in zip(store.read_many(wanted, [2]), wanted, strict=True):
        assert torch.equal(got, store.read(key, [2]))
    for key in KEYS:
        layers = store.read(key)
        assert torch.equal(store.read(key, verify=True), layers)
        assert torch.equal(store.read(key, [2], 5, 9, verify=True), layers[1:2, 5:9])
        weights = torch.tensor([0.25, 0.0, -2.0])
        total = store.weighted_sum(key, weights)
        assert torch.equal(store.weighted_sum(key, weights, verify=True), total)
        expected = (layers.float() * weights[:, None, None]).sum(0)
        # `read` rounds what int8 decodes to
        rounding = layers.float().abs().amax() * 2**-10 if codec == INT8 else 1e-5
        assert (total - expected).abs().max() <= rounding
    dataset = pipeline.FeatureDataset(store, [2, 3])
    for batch in pipeline.make_loader(dataset, max_frames_per_batch=900, seed=1):
        for i, key in enumerate(batch.ids):
            got = batch.features[i, :, : batch.lengths[i]]
            assert torch.equal(got, store.read(key, [2, 3]))
    again = pickle.loads(pickle.dumps(store))
    assert torch.equal(again.read(KEYS[1]), store.read(KEYS[1]))


def test_another_codec_changes_a_feature_only_by_its_own_utterance(tmp_path: Path) -> None:
    """Stored bytes and scales of an utterance are the same with other utterances in the unit."""
    whole = pipeline.open_store(write(tmp_path / "whole", codec=INT8))
    make_store(
        tmp_path / "alone", LENGTHS, LAYERS, DIM, 512, varied, (0, 1, 2, 4, 5), PIECES, codec=INT8
    )
    alone = pipeline.open_store(tmp_path / "alone")
    assert alone.record(KEYS[2])["crc32c"] == whole.record(KEYS[2])["crc32c"]
    assert torch.equal(alone.read(KEYS[2]), whole.read(KEYS[2]))


@each_codec
def test_the_attributes_state_the_form(stores: dict[str, Path], codec: Codec) -> None:
    """And the layout follows from them; only the default form has version 1."""
    store = pipeline.open_store(stores[codec.name])
    assert layout_of(store.attributes).codec == codec
    assert store.attributes["format_version"] == (1 if codec == FLOAT16 else 2)
    assert store.attributes["identity"]["dtype"] == codec.name
    assert verify_store(store.root).ok


def other_readers(root: Path, array: str) -> Iterator[np.ndarray]:
    """An array as zarr-python and as tensorstore read it."""
    yield np.asarray(zarr.open_array(root / array, mode="r")[...])
    spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(root / array)}}
    yield np.asarray(tensorstore.open(spec, open=True).result().read().result())


@each_codec
def test_other_zarr_readers_get_the_stored_values(stores: dict[str, Path], codec: Codec) -> None:
    """With the rule of the attributes they decode what Strata reads, by place of the record."""
    root = stores[codec.name]
    store = pipeline.open_store(root)
    record = store.record(KEYS[2])
    first, n_frames = record["frame_start"], record["n_frames"]
    for frames in other_readers(root, FRAMES):
        stored = frames[:, first : first + n_frames]
        values = stored.astype(np.float32)
        if codec == INT8:
            for scale in other_readers(root, SCALE):
                offset, step = np.moveaxis(scale[record["slot"], record["position"]], 1, 0)
                values = stored.astype(np.float32) * step[:, None] + offset[:, None]
        elif codec == BFLOAT16:
            values = (stored.astype(np.uint32) << 16).view(np.float32)
        expected = store.read(KEYS[2])
        assert torch.equal(torch.from_numpy(values).to(expected.dtype), expected)
    rule = json.loads((root / FRAMES / "zarr.json").read_bytes())["attributes"]
    assert bool(rule) == (codec in (INT8, BFLOAT16))
    assert codec.name in str(rule) or not rule


@each_codec
def test_all_statistics_are_kept(tmp_path: Path, codec: Codec) -> None:
    """Of the stored values, also of an utterance in pieces; and are equal if not kept."""
    kept = pipeline.open_store(write(tmp_path / "kept", codec=codec, statistics=STATISTICS))
    plain = pipeline.open_store(write(tmp_path / "plain", codec=codec, keep=("frames",)))
    assert kept.statistics == STATISTICS
    assert plain.statistics == ()
    assert not (tmp_path / "plain" / POOLED).exists()
    assert verify_store(kept.root).ok
    assert verify_store(plain.root).ok
    for name in STATISTICS:
        pooled = kept.pooled(statistic=name)
        assert pooled.shape == (len(KEYS), len(LAYERS), DIM)
        assert torch.equal(plain.pooled(statistic=name), pooled)
        assert torch.equal(kept.pooled([2], statistic=name, verify=True), pooled[:, 1:2])
        for i, key in enumerate(KEYS):
            values = kept.read(key).double()
            expected = {
                "mean": values.mean(1),
                "std": values.std(1, correction=0),
                "max": values.amax(1),
                "first": values[:, 0],
                "last": values[:, -1],
            }[name]
            allowed = values.abs().amax(1) * 2**-11 + 1e-6  # of the rounding to float16
            assert ((pooled[i] - expected).abs() <= allowed).all(), (name, key)
    assert torch.equal(kept.pooled(), kept.pooled(statistic="mean"))


def test_an_array_of_several_statistics_names_them(tmp_path: Path) -> None:
    """In its dimension names and attributes; any Zarr reader sees both."""
    root = write(tmp_path / "store", statistics=("mean", "std"))
    array = zarr.open_array(root / POOLED, mode="r")
    assert array.metadata.dimension_names == ("slot", "position", "statistic", "layer", "feature")
    assert array.attrs["statistics"] == ["mean", "std"]
    store = pipeline.open_store(root)
    record = store.record(KEYS[0])
    for pooled in other_readers(root, POOLED):
        own = pooled[record["slot"], record["position"]]
        assert np.array_equal(own[1], store.pooled(statistic="std")[0].numpy())


def test_a_store_without_frames_says_so(tmp_path: Path) -> None:
    """It has statistics and metadata; every read of frames is one line with the remedy."""
    root = write(tmp_path / "store", keep=("pooled",), statistics=("mean", "max"))
    whole = pipeline.open_store(write(tmp_path / "whole", statistics=("mean", "max")))
    store = pipeline.open_store(root)
    assert store.keeps_frames is False
    assert sorted(path.name for path in (root / "features.zarr").iterdir()) == [
        "pooled",
        "zarr.json",
    ]
    assert verify_store(root).ok
    assert store.ids == whole.ids
    for name in ("mean", "max"):
        assert torch.equal(store.pooled(statistic=name), whole.pooled(statistic=name))
        assert torch.equal(store.pooled(statistic=name, verify=True), store.pooled(statistic=name))
    no_frames = r"keeps no frames \(extract.keep=\[pooled\]\).*extract.keep=\[frames,pooled\]"
    for read in (
        lambda: store.read(0),
        lambda: store.read_many([0, 1], [2]),
        lambda: store.weighted_sum(0, [1, 0, 1]),
        lambda: pipeline.FeatureDataset(store),
    ):
        with pytest.raises(StoreError, match=no_frames):
            read()
    with pytest.raises(StoreError, match=r"neither the statistic std nor frames.*max,std\]"):
        store.pooled(statistic="std")
    with pytest.raises(StoreError, match="no statistic 'median'; there are mean, std"):
        store.pooled(statistic="median")


def test_inspect_states_the_bytes(tmp_path: Path) -> None:
    """Of the store on the disk, and of the forms that would take less."""
    for name, form in (
        ("float16", {}),
        ("int8", {"codec": INT8}),
        ("pooled", {"keep": ("pooled",)}),
    ):
        write(tmp_path / name, **form)
    shown = {
        name: describe_store(pipeline.open_store(tmp_path / name))["storage"]
        for name in ("float16", "int8", "pooled")
    }
    for name, storage in shown.items():
        arrays = tmp_path / name / "features.zarr"
        on_disk = sum(p.stat().st_size for p in arrays.rglob("*/c/**/0") if p.is_file())
        assert storage["bytes"] == on_disk
    assert shown["float16"]["bytes_as"] == {
        name: shown[name]["bytes"] for name in ("int8", "pooled")
    }
    assert list(shown["int8"]["bytes_as"]) == ["pooled"]
    assert shown["pooled"]["bytes_as"] == {}
    assert shown["pooled"]["bytes_per_layer"] == 0
    assert shown["float16"]["gb_per_hour"] == pytest.approx(3 * DIM * 2 * 50 * 3600 / 1e9, abs=1e-3)


def flip(path: Path, at: int) -> None:
    raw = bytearray(path.read_bytes())
    raw[at] ^= 4
    path.write_bytes(raw)


def test_a_changed_scale_is_found(tmp_path: Path) -> None:
    """By `verify`, and by a read that verifies; also if the chunk's checksum is right again."""
    root = write(tmp_path / "store", codec=INT8)
    store = pipeline.open_store(root)
    record = store.record(KEYS[0])
    layout = layout_of(store.attributes)
    path = root / layout.scale_key(record["slot"])
    raw = bytearray(path.read_bytes())
    values = np.frombuffer(raw, np.float32, len(raw) // 4 - 1).copy()
    values.reshape(layout.scale_shape(1)[1:])[record["position"], 1, 1, 3] *= 1.5
    path.write_bytes(values.tobytes() + crc32c(values.tobytes()).to_bytes(4, "little"))
    found = verify_store(root)
    assert any("layer 2 of utterance 'utt-0000' has a wrong" in d.problem for d in found.damages)
    named = f"layer 2 of utterance 'utt-0000' has a wrong checksum in .* or {path}; run"
    with pytest.raises(DamagedError, match=named):
        pipeline.open_store(root, verify=True).read(KEYS[0])
    pipeline.open_store(root, verify=True).read(KEYS[0], [1])


def test_a_damaged_or_missing_chunk_of_scales_is_found(tmp_path: Path) -> None:
    """Whatever part of it is read."""
    root = write(tmp_path / "store", codec=INT8)
    layout = layout_of(pipeline.open_store(root).attributes)
    path = root / layout.scale_key(0)
    flip(path, 9)
    assert [damage.unit for damage in verify_store(root).damages] == [0]
    path.unlink()
    assert verify_store(root).damaged_units == [0]
    with pytest.raises(DamagedError, match=r"scale/c/0/0/0/0/0 is missing; run `strata verify`"):
        pipeline.open_store(root).read(KEYS[0])


def test_changed_statistics_without_frames_are_found(tmp_path: Path) -> None:
    """They have checksums of their own in the index, besides the chunk's."""
    root = write(tmp_path / "store", keep=("pooled",))
    layout = layout_of(pipeline.open_store(root).attributes)
    other = root / layout.pooled_key(1)
    (root / layout.pooled_key(0)).write_bytes(other.read_bytes())  # its own checksum is right
    assert 0 in verify_store(root).damaged_units
    message = r"layer 1 of utterance .*: the statistics \(mean\) have a wrong checksum \(.*/c/0/0"
    with pytest.raises(DamagedError, match=message):
        pipeline.open_store(root, verify=True).pooled()


def test_frames_without_an_utterance_are_filled(tmp_path: Path) -> None:
    """With -128, which no value is stored as; `verify` finds anything else."""
    root = write(tmp_path / "store", codec=INT8)
    frames = np.asarray(zarr.open_array(root / FRAMES, mode="r")[...])
    layout = layout_of(pipeline.open_store(root).attributes)
    assert (frames[:, -1] == -128).all()
    path = root / layout.shard_key(0, 0)
    raw = bytearray(path.read_bytes())
    blank = next(i for i in range(0, len(raw), DIM) if raw[i : i + DIM] == b"\x80" * DIM)
    raw[blank] ^= 1
    path.write_bytes(raw)
    assert "frames without an utterance" in verify_store(root).damages[0].problem


def test_a_reader_of_version_1_refuses_the_others(tmp_path: Path) -> None:
    """By the version, which is all that it looks at before it reads."""
    for i, form in enumerate(
        ({"codec": INT8}, {"keep": ("frames",)}, {"statistics": ("mean", "std")})
    ):
        root = write(tmp_path / str(i), **form)
        attributes = json.loads((root / "features.zarr" / "zarr.json").read_bytes())["attributes"]
        assert attributes["format_version"] == 2
        assert attributes["identity"]["format_version"] == 2
        layout = layout_of(attributes)
        assert replace(layout, codec=FLOAT16, keep=KEPT, statistics=("mean",)).format_version == 1


def test_a_rewritten_chunk_of_scales_is_read_by_zarr(tmp_path: Path) -> None:
    """As shards and pooled chunks that another tool has compressed are."""
    root = write(tmp_path / "store", codec=INT8)
    before = pipeline.open_store(root).read(KEYS[1])
    array = zarr.open_array(root / SCALE, mode="r")
    values, chunks = array[...], array.chunks
    zarr.create_array(
        root / SCALE, data=values, chunks=chunks, compressors="auto", overwrite=True,
        dimension_names=array.metadata.dimension_names,
    )  # fmt: skip
    assert torch.equal(pipeline.open_store(root).read(KEYS[1]), before)
