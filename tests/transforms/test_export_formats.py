"""Exported files, read back by the library that each format is for."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import datasets
import kaldiio
import numpy as np
import pyarrow as pa
import pytest
import torch
import webdataset
from safetensors import safe_open
from safetensors.torch import load_file

import pipeline
from pipeline.store.format.codecs import CODECS, codec_of
from tests.helpers.feature_stores import make_store, noise

LENGTHS = [40, 100, 3, 250, 17, 700, 60, 90, 256, 1]
COLUMNS = pa.table(
    {
        "speaker": ["ann", "bob", None, "c d", "ann", "bob", "x", "ann", "bob", "ann"],
        "text": ["one", "two  words", None, "a\nline", "ä", "", "x", "y", "z", "%"],
        "digit": pa.array([0, 1, 2, 3, None, 1, 0, 1, 2, 3], pa.int64()),
        "score": pa.array([0.5, float("nan"), 1, 2, 3, 4, 5, 6, 7, 8], pa.float64()),
        "path": ["a"] * 10,
        "tags": [["a"], [], None, ["b", "c"], [], [], [], [], [], []],
    }
)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A store of three layers, with a long utterance in pieces and a quarantined one."""
    path = tmp_path_factory.mktemp("formats") / "store"
    make_store(path, LENGTHS, features=noise, pieces={5: 4}, lost=(6,), columns=COLUMNS)
    return path


@pytest.fixture(scope="module")
def store(root):
    """The same, open."""
    return pipeline.open_store(root)


def manifest(out):
    """Return the lines of the index."""
    return [json.loads(line) for line in Path(out, "manifest.jsonl").read_text().splitlines()]


def equal(found, expected):
    """Whether an array, or what can become one, has these values and this dtype."""
    found, expected = np.asarray(found), expected.numpy()
    return found.dtype == expected.dtype and np.array_equal(found, expected)


def test_npy_of_one_layer_has_no_axis_of_layers(root, store, tmp_path):
    """[n_frames, dim] in the stored dtype; the manifest has the path of every utterance."""
    done = pipeline.export(root, tmp_path / "out", "npy", layers=[2])
    assert (done.axes, done.dtype) == (("n_frames", "dim"), "float16")
    for entry in manifest(tmp_path / "out"):
        found = np.load(tmp_path / "out" / entry["path"], mmap_mode="r")
        assert equal(found, store.read(entry["id"], [2])[0])
        assert entry["n_frames"] == len(found)
    assert [entry["id"] for entry in manifest(tmp_path / "out")] == store.ids


@pytest.mark.parametrize("layers", [None, [3, 1]])
def test_npy_of_several_layers(root, store, tmp_path, layers):
    """[n_layers, n_frames, dim], in the order that is asked for."""
    pipeline.export(root, tmp_path / "out", "npy", layers=layers, dtype="float32")
    for entry in manifest(tmp_path / "out"):
        found = np.load(tmp_path / "out" / entry["path"])
        assert equal(found, store.read(entry["id"], layers).float())


@pytest.mark.parametrize(("layers", "shape"), [([2], (8,)), (None, (3, 8))])
def test_npy_of_pooled_means(root, store, tmp_path, layers, shape):
    """[dim] of one layer, [n_layers, dim] of several, in float32."""
    pipeline.export(root, tmp_path / "out", "npy", layers=layers, pooled=True)
    means = store.pooled(layers)
    for i, entry in enumerate(manifest(tmp_path / "out")):
        found = np.load(tmp_path / "out" / entry["path"])
        assert found.shape == shape
        assert equal(found, means[i].reshape(shape))


def test_the_manifest_has_the_columns(root, tmp_path):
    """Class names for class numbers, null for missing values and NaN, lists as lists."""
    pipeline.export(root, tmp_path / "out", "npy", layers=[1])
    lines = manifest(tmp_path / "out")
    assert lines[1]["columns"] == {
        "speaker": "bob",
        "text": "two  words",
        "digit": "one",
        "score": None,
        "path": "a",
        "tags": [],
    }
    assert lines[4]["columns"]["digit"] is None
    facts = json.loads((tmp_path / "out" / "export.json").read_text())
    assert facts["class_names"] == {"digit": ["zero", "one", "two", "three"]}
    assert facts["axes"] == ["n_frames", "dim"]


def test_safetensors(root, store, tmp_path):
    """A tensor `features`; id, layers and columns are in the metadata."""
    pipeline.export(root, tmp_path / "out", "safetensors", layers=[1, 3])
    for entry in manifest(tmp_path / "out"):
        path = tmp_path / "out" / entry["path"]
        assert torch.equal(load_file(path)["features"], store.read(entry["id"], [1, 3]))
        with safe_open(path, "pt") as file:
            metadata = file.metadata()
        assert metadata["id"] == entry["id"]
        assert json.loads(metadata["layers"]) == [1, 3]
        assert json.loads(metadata["columns"]) == entry["columns"]


@pytest.mark.parametrize(
    ("kind", "expected"), [("safetensors", torch.bfloat16), ("npy", torch.float32)]
)
def test_bfloat16_is_kept_where_the_format_has_it(root, tmp_path, monkeypatch, kind, expected):
    """Elsewhere it becomes float32, which holds every value."""
    read, read_many = pipeline.FeatureStore.read, pipeline.FeatureStore.read_many
    half = torch.bfloat16
    monkeypatch.setattr(
        pipeline.FeatureStore, "read", lambda *args, **more: read(*args, **more).to(half)
    )
    monkeypatch.setattr(
        pipeline.FeatureStore,
        "read_many",
        lambda *args, **more: [values.to(half) for values in read_many(*args, **more)],
    )
    done = pipeline.export(root, tmp_path / "out", kind, layers=[2])
    for entry in manifest(tmp_path / "out"):
        path = tmp_path / "out" / entry["path"]
        found = load_file(path)["features"] if kind != "npy" else torch.from_numpy(np.load(path))
        assert found.dtype == expected
        assert torch.equal(found, pipeline.open_store(root).read(entry["id"], [2])[0].to(expected))
    assert f"torch.{done.dtype}" == str(expected)


@pytest.mark.parametrize("codec", [item.name for item in CODECS])
@pytest.mark.parametrize("kind", ["npy", "hf"])
def test_every_codec_is_exported_as_it_is_read(codec, kind, tmp_path):
    """Decoded, in the dtype that readers return."""
    make_store(tmp_path / "store", LENGTHS, features=noise, pieces={5: 4}, codec=codec_of(codec))
    store = pipeline.open_store(tmp_path / "store")
    done = pipeline.export(tmp_path / "store", tmp_path / "out", kind, layers=[2])
    expected = store.read_many(slice(None), [2])
    if kind == "npy":
        found = [np.load(tmp_path / "out" / entry["path"]) for entry in manifest(tmp_path / "out")]
    else:
        loaded = datasets.load_from_disk(tmp_path / "out")
        found = loaded.with_format("numpy", dtype=np.dtype(done.dtype))["features"][:]
    assert all(equal(a, b[0]) for a, b in zip(found, expected, strict=True))


def test_a_store_that_keeps_means_alone(tmp_path):
    """Its means are exported; frames are refused with what to do."""
    make_store(tmp_path / "store", LENGTHS, features=noise, pieces={5: 4}, keep=("pooled",))
    means = pipeline.open_store(tmp_path / "store").pooled([2])
    pipeline.export(tmp_path / "store", tmp_path / "out", "npy", layers=[2], pooled=True)
    for entry, mean in zip(manifest(tmp_path / "out"), means, strict=True):
        assert equal(np.load(tmp_path / "out" / entry["path"]), mean[0])
    with pytest.raises(pipeline.errors.StoreError, match="keeps no frames"):
        pipeline.export(tmp_path / "store", tmp_path / "frames", "npy")
    assert not (tmp_path / "frames").exists()


STATISTICS = ["std", "mean", "max"]


@pytest.mark.parametrize("kept", [("mean",), ("max", "mean", "std")], ids=["computed", "kept"])
@pytest.mark.parametrize("kind", ["npy", "safetensors", "kaldi", "webdataset", "hf"])
def test_several_statistics_follow_each_other_in_a_vector(kind, kept, tmp_path):
    """In the given order, in every format, whether they are kept or computed from the frames."""
    make_store(tmp_path / "store", LENGTHS, features=noise, pieces={5: 4}, statistics=kept)
    store, out = pipeline.open_store(tmp_path / "store"), tmp_path / "out"
    result = pipeline.export(store, out, kind, layers=[2], pooled=True, pooling=STATISTICS)
    parts = [store.pooled([2], statistic=name)[:, 0] for name in STATISTICS]
    assert (result.axes, result.bytes) == (("dim",), len(store) * 3 * 8 * 4)
    for found, expected in zip(vectors(kind, out), torch.cat(parts, 1), strict=True):
        assert equal(found, expected)


def vectors(kind, out):
    """Return the vectors of an export of one layer, in the order of the store, by its library."""
    if kind == "hf":
        return datasets.load_from_disk(str(out)).with_format("numpy", dtype=np.float32)["features"]
    if kind == "webdataset":
        shards = sorted(map(str, out.glob("*.tar")))
        read = webdataset.WebDataset(shards, shardshuffle=False, empty_check=False).decode()
        return [sample["npy"] for sample in read]
    if kind == "kaldi":
        found = kaldiio.load_scp(str(out / "feats.scp"))
        return [found[entry["id"]] for entry in manifest(out)]
    paths = [out / entry["path"] for entry in manifest(out)]
    if kind == "npy":
        return [np.load(path) for path in paths]
    return [load_file(path)["features"].numpy() for path in paths]


def test_a_statistic_that_cannot_be_had_is_refused(tmp_path):
    """Before anything is written; the message has what the store keeps."""
    make_store(tmp_path / "store", LENGTHS[:4], keep=("pooled",))
    with pytest.raises(pipeline.errors.StoreError, match=r"neither the statistic std nor frames"):
        pipeline.export(tmp_path / "store", tmp_path / "out", "npy", pooled=True, pooling=["std"])
    assert not (tmp_path / "out").exists()


def test_means_that_are_computed_from_frames_are_verified(tmp_path):
    """A store without means has none that could be compared with a checksum of their own."""
    make_store(tmp_path / "store", [40, 50], features=noise, keep=("frames",))
    means = pipeline.open_store(tmp_path / "store").pooled()
    pipeline.export(tmp_path / "store", tmp_path / "out", "kaldi", pooled=True)
    found = kaldiio.load_scp(str(tmp_path / "out" / "feats.scp"))
    assert equal(found["utt-0001"], means[1])
    shard = tmp_path / "store" / "features.zarr/frames/c/1/0/0"
    raw = bytearray(shard.read_bytes())
    raw[5] ^= 1
    shard.write_bytes(raw)
    with pytest.raises(pipeline.errors.DamagedError, match="'utt-0000' has a wrong checksum"):
        pipeline.export(tmp_path / "store", tmp_path / "damaged", "kaldi", pooled=True)


def words(path):
    """Return the lines of a list of Kaldi, split once."""
    lines = path.read_text().split("\n")[:-1]
    assert lines == sorted(lines, key=str.encode)
    return dict(line.split(" ", 1) for line in lines)


def test_kaldi_of_one_layer(root, store, tmp_path):
    """Matrices of float32, with text and utt2spk; values have no white space of their own."""
    pipeline.export(root, tmp_path / "out", "kaldi", layers=[2])
    found = kaldiio.load_scp(str(tmp_path / "out" / "feats.scp"))
    assert sorted(found) == sorted(store.ids)
    for name in store.ids:
        assert equal(found[name], store.read(name, [2])[0].float())
    text = words(tmp_path / "out" / "text")
    assert text["utt-0001"] == "two words"
    assert text["utt-0003"] == "a line"
    assert text["utt-0005"] == ""
    assert "utt-0002" not in text
    speakers = words(tmp_path / "out" / "utt2spk")
    assert speakers["utt-0003"] == "c%20d"
    assert speakers["utt-0002"] == "utt-0002"
    assert speakers.keys() == found.keys()


def test_kaldi_of_several_layers_has_a_folder_for_each(root, store, tmp_path):
    """Each with its own arks and lists."""
    pipeline.export(root, tmp_path / "out", "kaldi")
    for layer in store.layers:
        folder = tmp_path / "out" / f"layer_{layer}"
        found = kaldiio.load_scp(str(folder / "feats.scp"))
        for name in store.ids:
            assert equal(found[name], store.read(name, [layer])[0].float())
        assert words(folder / "utt2spk").keys() == found.keys()


@pytest.mark.parametrize(("layers", "shape"), [([2], (8,)), (None, (3, 8))])
def test_kaldi_of_pooled_means(root, store, tmp_path, layers, shape):
    """A vector of one layer, a matrix of several."""
    pipeline.export(root, tmp_path / "out", "kaldi", layers=layers, pooled=True)
    found = kaldiio.load_scp(str(tmp_path / "out" / "feats.scp"))
    for name, mean in zip(store.ids, store.pooled(layers), strict=True):
        assert equal(found[name], mean.reshape(shape))


@pytest.mark.filterwarnings("ignore")  # of the library
def test_webdataset(root, store, tmp_path):
    """Samples of an array and the columns, in the order of the store."""
    done = pipeline.export(root, tmp_path / "out", "webdataset")
    shards = sorted(map(str, Path(done.out).glob("*.tar")))
    samples = list(webdataset.WebDataset(shards, shardshuffle=False).decode())
    assert [sample["json"]["id"] for sample in samples] == store.ids
    for sample in samples:
        name = sample["json"]["id"]
        assert sample["__key__"] == name
        assert equal(sample["npy"], store.read(name))
        assert sample["json"]["n_frames"] == store.n_frames(name)
    assert samples[1]["json"]["speaker"] == "bob"
    assert samples[1]["json"]["digit"] == "one"


def test_shards_are_bounded_and_samples_are_together(tmp_path):
    """A shard has at most shard_mb; the members of a sample follow each other."""
    lengths = [2000] * 20
    make_store(tmp_path / "store", lengths, dim=32, frames_per_unit=16_384)
    pipeline.export(tmp_path / "store", tmp_path / "out", "webdataset", shard_mb=1)
    shards = sorted((tmp_path / "out").glob("shard-*.tar"))
    assert len(shards) == 10
    names = []
    for shard in shards:
        assert shard.stat().st_size < 1.1 * 2**20
        with tarfile.open(shard) as tar:
            names += [member.name for member in tar]
    expected = [f"utt-{i:04d}.{suffix}" for i in range(20) for suffix in ("npy", "json")]
    assert names == expected
    paths = [entry["path"] for entry in manifest(tmp_path / "out")]
    assert paths == [shards[i // 2].name for i in range(20)]


def test_hf_of_one_layer(root, store, tmp_path):
    """A column `features` of frames; columns have their types, and classes their names."""
    pipeline.export(root, tmp_path / "out", "hf", layers=[2])
    loaded = datasets.load_from_disk(tmp_path / "out")
    assert loaded.features["features"] == datasets.Array2D((None, 8), "float16")
    assert loaded.features["digit"].names == ["zero", "one", "two", "three"]
    assert loaded.features["score"] == datasets.Value("float64")
    assert loaded["id"][:] == store.ids
    rows = loaded.with_format("numpy", dtype=np.float16)
    for name, row in zip(store.ids, rows, strict=True):
        assert equal(row["features"], store.read(name, [2])[0])
    plain = loaded.remove_columns(["features", "n_frames"]).to_list()
    assert str(plain) == str(store.metadata.to_pylist())  # NaN is not equal to itself
    assert loaded["n_frames"][:] == store.frame_counts.tolist()


@pytest.mark.parametrize("pooled", [False, True])
def test_hf_of_several_layers(root, store, tmp_path, pooled):
    """A column for each layer, also through a stream of the dataset."""
    pipeline.export(root, tmp_path / "out", "hf", layers=[3, 1], pooled=pooled)
    loaded = datasets.load_from_disk(tmp_path / "out").with_format("numpy")
    means = store.pooled([3, 1])
    for i, row in enumerate(loaded.to_iterable_dataset()):
        expected = means[i] if pooled else store.read(i, [3, 1]).float()  # as it formats floats
        assert equal(row["layer_3"], expected[0])
        assert equal(row["layer_1"], expected[1])


def test_hf_can_be_processed_and_saved_again(root, tmp_path):
    """As any dataset: map, filter, save_to_disk."""
    pipeline.export(root, tmp_path / "out", "hf", layers=[2])
    loaded = datasets.load_from_disk(tmp_path / "out")
    long = loaded.filter(lambda row: row["n_frames"] > 80, load_from_cache_file=False)
    long.save_to_disk(tmp_path / "again")
    again = datasets.load_from_disk(tmp_path / "again").with_format("numpy")
    assert [len(row["features"]) for row in again] == again["n_frames"][:].tolist()
    assert again.features == loaded.features


def test_hf_refuses_a_column_of_the_name_of_its_features(tmp_path):
    """And names it."""
    make_store(tmp_path / "store", [3], columns=pa.table({"features": ["x"]}))
    with pytest.raises(pipeline.errors.ConfigError, match="column 'features'"):
        pipeline.export(tmp_path / "store", tmp_path / "out", "hf", layers=[1])
