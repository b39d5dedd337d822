"""Names of layers in a store: derived or written, read, copied, and never taken for positions."""

from __future__ import annotations

import json

import numpy as np
import pytest

import pipeline
from pipeline.errors import ConfigError, DamagedError, IdentityError, StoreError
from pipeline.store.documents import check_format_shape, group_attributes, layout_of
from pipeline.store.format.geometry import FrameGeometry
from pipeline.store.format.layers import label_layers, label_of, number_layers, standard_name
from pipeline.store.format.layout import Layout
from pipeline.transforms.collapse import collapse
from pipeline.transforms.copy.run import copy_stores
from pipeline.transforms.copy.settings import CopySettings
from pipeline.transforms.export.run import export
from tests.helpers.feature_stores import make_store

LAYERS = (-1, 0, 1, 2, 3)
NAMES = ("conv", "input", "block_1", "block_2", "final_norm")  # of a model with two blocks
GEOMETRY = FrameGeometry(16_000, 320, 400)


def attributes_of(layers, names=()):
    """Attributes of the group of a new store."""
    layout = Layout(layers, 8, 256, 4, names=names)
    identity = {"encoder": {"layers": list(layers)}}
    return group_attributes(layout, GEOMETRY, None, 2, identity, {})


@pytest.fixture
def root(tmp_path):
    """A store of five layers, of which three have no block's number."""
    make_store(tmp_path / "s", [5, 6, 7], LAYERS, attributes={"layer_names": list(NAMES)})
    return tmp_path / "s"


def test_names_that_follow_from_the_numbers_are_not_written():
    """The attributes of a store with layers 0 to N stay those of earlier versions."""
    plain = attributes_of((0, 1, 12), ("input", "block_1", "block_12"))
    assert "layer_names" not in plain
    assert plain == attributes_of((0, 1, 12))
    assert layout_of(plain).layer_names == ("input", "block_1", "block_12")
    assert "layer_names" not in attributes_of((-1,), ("conv",))
    assert attributes_of((1, 3), ("block_1", "final_norm"))["layer_names"] == [
        "block_1",
        "final_norm",
    ]
    assert attributes_of((1,), ("collapsed",))["layer_names"] == ["collapsed"]  # of a module
    modules = attributes_of((1, 2), ("encoder.layers.3", "norm"))
    assert layout_of(modules).layer_names == ("encoder.layers.3", "norm")


def test_a_store_without_the_attribute_has_standard_names(tmp_path):
    """As those of earlier versions."""
    make_store(tmp_path / "s", [5], (0, 1, 6))
    store = pipeline.open_store(tmp_path / "s")
    assert store.layer_names == ("input", "block_1", "block_6")
    assert store.read(0, ["block_6"]).equal(store.read(0, [6]))


def test_every_reader_takes_names_and_numbers(root):
    """Names, numbers, or both, in the order that is asked for."""
    store = pipeline.open_store(root)
    assert store.layer_names == NAMES
    for number, name in zip(LAYERS, NAMES, strict=True):
        one = store.read(1, [number])
        assert float(one[0, 0, 0]) == 16 + number  # what the layer holds
        assert one.equal(store.read(1, [name]))
        assert store.read_many([0, 1], [name])[1].equal(one)
        assert store.pooled([name]).equal(store.pooled([number]))
        dataset = pipeline.FeatureDataset(store, layers=[name])
        assert dataset.layers == (number,)
        assert dataset[1].features.equal(one)
    mixed = store.read(2, ["final_norm", 0, "conv"])
    assert mixed.equal(store.read(2, [3, 0, -1]))
    frames = pipeline.make_frame_loader(
        pipeline.FeatureDataset(store), frames_per_batch=4, layers=["conv", 2], shuffle=False
    )
    assert frames.layers == (-1, 2)
    assert next(iter(frames)).features[0, :, 0].tolist() == [-1, 2]


def test_a_negative_number_is_no_position(tmp_path):
    """-1 is conv, not the last layer; -2 is no layer."""
    make_store(tmp_path / "s", [5], (1, 2, 3))
    store = pipeline.open_store(tmp_path / "s")
    for read in (store.read, store.read_many):
        message = (
            r"no layers \[-1\] in the store; it has \[1, 2, 3\]; .*\(-1 is conv\): the last .* 3$"
        )
        with pytest.raises(StoreError, match=message):
            read([0] if read == store.read_many else 0, [-1])
    with pytest.raises(ConfigError, match=r"no layers \[-1\]"):
        copy_stores(tmp_path / "s", tmp_path / "c", CopySettings(layers=[-1]))
    with pytest.raises(ConfigError, match=r"no layers \[-1\]"):
        pipeline.drop(tmp_path / "s", layers=[-1])


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        (["block_9"], r"no layers \[block_9\] in the store; it has \[conv, 0, 1, 2, final_norm\]"),
        ("conv", r"layers is 'conv'; expected some of \[conv, 0, 1, 2, final_norm\], .* in a list"),
        ([], r"layers=\[\] names no layers"),
        ([["conv"]], r"no layers \[\['conv'\]\] in the store; it has \[conv, .*norm\]$"),
        (["blok_2"], r"it has .*final_norm\]; did you mean block_2\?$"),
        (["finalnorm", 1], r"no layers \[finalnorm\] .*; did you mean final_norm\?$"),
        ([9], r"it has .*; extract.layers=\[9\] with another store= extracts them, if the model"),
        (["block_9"], r"; extract.layers=\[block_9\] with another store= extracts them"),
        ([-2], r"; negative numbers do not count from the end: the last layer is final_norm$"),
    ],
)
def test_unknown_names_are_refused_with_those_that_there_are(root, layers, message):
    """A name alone is no list of names: it would be read letter by letter."""
    with pytest.raises(StoreError, match=message):
        pipeline.open_store(root).read(0, layers)


def test_letters_of_a_text_are_no_names(tmp_path):
    """Even where there are layers of these names."""
    make_store(tmp_path / "s", [5], (1, 2), attributes={"layer_names": ["a", "b"]})
    store = pipeline.open_store(tmp_path / "s")
    assert store.read(0, ["b", "a"]).equal(store.read(0, [2, 1]))
    with pytest.raises(StoreError, match=r"layers is 'ab'; expected some of \[a, b\]"):
        store.read(0, "ab")


def test_names_survive_copies_joins_and_drops(root, tmp_path):
    """A copy of plain layers alone needs no names."""
    copy_stores(root, tmp_path / "two", CopySettings(layers=["final_norm", 1]))
    two = pipeline.open_store(tmp_path / "two")
    assert (two.layers, two.layer_names) == ((1, 3), ("block_1", "final_norm"))
    assert two.read(1, ["final_norm"]).equal(pipeline.open_store(root).read(1, [3]))
    copy_stores(root, tmp_path / "plain", CopySettings(layers=["block_1", 2]))
    assert "layer_names" not in pipeline.open_store(tmp_path / "plain").attributes
    ids = [f"b-{i}" for i in range(2)]
    named = {"layer_names": list(NAMES)}
    make_store(tmp_path / "b", [5, 6], LAYERS, attributes=named, ids=ids)
    assert pipeline.open_store([root, tmp_path / "b"]).layer_names == NAMES
    make_store(tmp_path / "c", [5, 6], LAYERS, ids=["c-0", "c-1"])  # layer 3 is a block
    with pytest.raises(IdentityError, match="layer_names"):
        pipeline.open_store([root, tmp_path / "c"])
    pipeline.drop(root, layers=["conv", "block_2"], confirm=True)
    left = pipeline.open_store(root)
    assert left.layer_names == ("input", "block_1", "final_norm")
    with pytest.raises(StoreError, match=r"it has \[0, 1, final_norm\] \(layers \[-1, 2\] were"):
        left.read(0, ["conv"])


def test_datasets_know_their_layers_after_a_drop(root):
    """A position on the layer axis is not one among the layers that are left."""
    pipeline.drop(root, layers=["conv", 0], confirm=True)
    store = pipeline.open_store(root)
    dataset = pipeline.FeatureDataset(store, layers=[3, "block_1"])
    assert dataset.layers == (3, 1)
    assert pipeline.make_frame_loader(dataset, frames_per_batch=4).layers == (3, 1)


def test_a_weighted_sum_is_called_collapsed(root, tmp_path):
    """The number -1 is conv elsewhere; what a store is is known from its identity."""
    collapse(root, tmp_path / "sum", [0, 0, 0, 0.5, 0.5])
    store = pipeline.open_store(tmp_path / "sum")
    assert (store.layers, store.layer_names) == ((-1,), ("collapsed",))
    assert store.is_collapsed
    assert "layer_names" not in store.attributes
    assert store.read(0, ["collapsed"]).equal(store.read(0, [-1]))
    with pytest.raises(
        StoreError, match=r"no layers \[conv\] in the store; it has \[collapsed\]; only"
    ):
        store.read(0, ["conv"])
    copy_stores(tmp_path / "sum", tmp_path / "again", CopySettings(layers=["collapsed"]))
    assert pipeline.open_store(tmp_path / "again").layer_names == ("collapsed",)


def test_a_store_of_conv_alone_is_no_weighted_sum(root, tmp_path):
    """Its copy keeps the layers in its identity, which readers compare."""
    copy_stores(root, tmp_path / "c", CopySettings(layers=["conv"]))
    store = pipeline.open_store(tmp_path / "c")
    assert (store.layer_names, store.is_collapsed) == (("conv",), False)
    assert store.attributes["identity"]["encoder"]["layers"] == [-1]
    wrong = {"identity": {"encoder": {"layers": [0]}, "source": {"columns": []}}, "checksum": None}
    make_store(tmp_path / "d", [5], (-1,), attributes=wrong)
    with pytest.raises(DamagedError, match="do not match"):
        pipeline.open_store(tmp_path / "d")


def test_exports_name_the_layers(root, tmp_path):
    """Folders and columns have the names of layers that are no blocks."""
    export(root, tmp_path / "k", "kaldi", layers=["conv", 2, 3], dtype="float32")
    folders = sorted(path.name for path in (tmp_path / "k").glob("layer_*"))
    assert folders == ["layer_2", "layer_conv", "layer_final_norm"]
    with pytest.raises(ConfigError, match="has a layer twice"):
        export(root, tmp_path / "n", "npy", layers=["conv", -1])


def test_a_name_that_is_no_file_name_gives_the_number(tmp_path):
    """Of a module whose name has a slash, which would be a folder."""
    make_store(tmp_path / "s", [5], (1, 2), attributes={"layer_names": ["a/b", "block_2"]})
    export(tmp_path / "s", tmp_path / "k", "kaldi", dtype="float32")
    folders = sorted(path.name for path in (tmp_path / "k").glob("layer_*"))
    assert folders == ["layer_1", "layer_2"]


def test_changed_names_are_noticed(root):
    """They are under the checksum of the attributes, and compared with those of a run."""
    path = root / "features.zarr/zarr.json"
    document = json.loads(path.read_text())
    document["attributes"]["layer_names"][0] = "konv"
    path.write_text(json.dumps(document))
    with pytest.raises(DamagedError, match="was changed after it was written"):
        pipeline.open_store(root)
    for wrong in (["a"], ["a", "b", "b"]):
        with pytest.raises(DamagedError, match="cannot have the names"):
            layout_of(attributes_of((1, 2, 3)) | {"layer_names": wrong})
    layout = Layout((1, 3), 8, 256, 4, names=("block_1", "block_3"))
    with pytest.raises(IdentityError, match=r"has the layers block_1, final_norm, and this run"):
        check_format_shape(attributes_of((1, 3), ("block_1", "final_norm")), layout, "store")


def test_labels_are_numbers_of_blocks_and_else_names():
    """A module that is numbered like a block does not go by the number."""
    assert label_layers((0, 12, -1, 13), ("input", "block_12", "conv", "final_norm")) == {
        0: "0",
        12: "12",
        -1: "conv",
        13: "final_norm",
    }
    assert label_of(3, "encoder.layers.3") == "encoder.layers.3"
    assert label_of(1, "0") == "1"  # of a torch.nn.Sequential; "0" would look like another layer
    assert label_layers((-1, 6)) == {-1: "conv", 6: "6"}
    assert standard_name(6) == "block_6"


def test_numbers_of_numpy_are_numbers():
    """Layers often come out of arrays and tensors."""
    names = {1: "block_1", 2: "block_2"}
    assert number_layers(np.array([2, 1]), names) == (2, 1)
    assert number_layers([np.int64(2), "block_1"], names) == (2, 1)
    with pytest.raises(StoreError, match=r"no layers \[1.5\]"):
        number_layers([1.5], names)
    with pytest.raises(ConfigError, match=r"no layers \[x\] in it; it has \[1, 2\]"):
        number_layers(["x"], names, "it", error=ConfigError)


def test_the_final_norm_is_not_applied_twice(tmp_path):
    """Layer N is normalised on request, layer N + 1, which has been, never."""
    norm = {"layer": 2, "weight": [2.0] * 8, "bias": [1.0] * 8, "eps": 1e-5}
    named = {"layer_names": ["block_2", "final_norm"], "final_norm": norm}
    make_store(tmp_path / "s", [5], (2, 3), attributes=named)
    store = pipeline.open_store(tmp_path / "s")
    raw, normed = store.read(0), store.read(0, final_norm=True)
    assert normed[1].equal(raw[1])
    assert not normed[0].equal(raw[0])
    dataset = pipeline.FeatureDataset(store, layers=["final_norm"], final_norm=True)
    assert dataset[0].features.equal(raw[1:])
    make_store(tmp_path / "t", [5], (1, 3), attributes={"layer_names": ["block_1", "final_norm"]})
    with pytest.raises(StoreError, match=r"read layers=\['final_norm'\], which has it"):
        pipeline.open_store(tmp_path / "t").read(0, final_norm=True)
