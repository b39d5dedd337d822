"""Several stores as one: ids, columns, classes, layers and forms."""

from __future__ import annotations

import pyarrow as pa
import pytest
import torch

import pipeline
from pipeline.errors import ConfigError, IdentityError, StoreError
from pipeline.store.format.codecs import BFLOAT16, FLOAT32, INT8
from pipeline.store.maintain.verify import verify_store
from pipeline.transforms.copy import CopySettings, copy_stores
from tests.helpers.copied_stores import identity_of, set_identity
from tests.helpers.feature_stores import default_columns, make_store, noise

LENGTHS = [40, 200, 7]


@pytest.fixture
def pair(tmp_path):
    """Two stores `a` and `b` with the same ids and other columns."""
    make_store(tmp_path / "a", LENGTHS, features=noise, pieces={1: 2})
    columns = pa.table({"speaker": ["x", "y", None], "age": pa.array([30, None, 50], pa.int64())})
    make_store(tmp_path / "b", LENGTHS, features=noise, pieces={1: 2}, columns=columns, codec=INT8)
    return tmp_path / "a", tmp_path / "b"


def rename_columns(root, name, class_names, values):
    """Give a new store one column of classes."""
    columns = pa.table({name: pa.array(values, pa.int64())})
    make_store(root, [5] * len(values), columns=columns)
    described = {"name": name, "type": "int64", "class_names": class_names}
    set_identity(root, source={"columns": [described]})


def test_ids_of_two_stores_are_refused_or_prefixed(pair, tmp_path):
    """The first ids are named, and the remedy. With prefixes, conditions see the new ids."""
    with pytest.raises(StoreError, match=r"3 ids .*'utt-0000', 'utt-0001'.* prefix=true"):
        copy_stores(pair, tmp_path / "out")
    settings = CopySettings(prefix=True, where="not id like 'a/%7' and id != 'b/utt-0000'")
    done = copy_stores(pair, tmp_path / "out", settings)
    store = pipeline.open_store(tmp_path / "out")
    assert store.ids == ["a/utt-0000", "a/utt-0001", "a/utt-0002", "b/utt-0001", "b/utt-0002"]
    assert done.utterances == 5
    first, second = (pipeline.open_store(root) for root in pair)
    for name in store.ids:
        parent, own = (first if name[0] == "a" else second), name[2:]
        assert torch.equal(store.read(name), parent.read(own))
    checked = verify_store(tmp_path / "out")
    assert checked.ok, checked.damages


def test_a_choice_can_make_ids_unique(pair, tmp_path):
    """Only chosen utterances are compared."""
    settings = CopySettings(where="(digit is not null and n_frames > 50) or age = 30")
    copy_stores(pair, tmp_path / "out", settings)
    assert pipeline.open_store(tmp_path / "out").ids == ["utt-0001", "utt-0000"]


def test_columns_are_joined(pair, tmp_path):
    """Missing ones are null. The form is that of the first store, and values are converted."""
    copy_stores(pair, tmp_path / "out", CopySettings(prefix=True))
    store = pipeline.open_store(tmp_path / "out")
    assert store.metadata.column_names == ["id", "speaker", "digit", "score", "age"]
    assert store.metadata["speaker"].to_pylist() == [
        *default_columns(3)["speaker"].to_pylist(),
        *("x", "y", None),
    ]
    assert store.metadata["digit"].to_pylist() == [0, 1, 2, None, None, None]
    assert store.metadata["age"].to_pylist() == [None, None, None, 30, None, 50]
    assert store.class_names["digit"] == ["zero", "one", "two", "three"]
    names = [column["name"] for column in identity_of(tmp_path / "out")["source"]["columns"]]
    assert names == store.metadata.column_names[1:]
    assert store.select(digit="two").ids == ["a/utt-0002"]


def test_classes_are_mapped_by_name(tmp_path):
    """New names follow those of the first store; unknown classes stay unknown."""
    rename_columns(tmp_path / "a", "word", ["no", "yes"], [0, 1, -1, None])
    rename_columns(tmp_path / "b", "word", ["maybe", "no", "yes"], [0, 1, 2, -1])
    done = copy_stores(
        [tmp_path / "a", tmp_path / "b"], tmp_path / "out", CopySettings(prefix=True)
    )
    store = pipeline.open_store(tmp_path / "out")
    assert store.class_names == {"word": ["no", "yes", "maybe"]}
    assert store.metadata["word"].to_pylist() == [0, 1, -1, None, 2, 0, 1, -1]
    assert store.select(word="yes").ids == ["a/utt-0001", "b/utt-0002"]
    assert done.sources == (str(tmp_path / "a"), str(tmp_path / "b"))


def test_a_column_without_values_fits_any_type(tmp_path):
    """A dataset whose column is empty everywhere does not know its type."""
    make_store(tmp_path / "a", [5], columns=pa.table({"age": pa.nulls(1)}))
    make_store(tmp_path / "b", [5], columns=pa.table({"age": pa.array([7], pa.int64())}))
    copy_stores([tmp_path / "a", tmp_path / "b"], tmp_path / "out", CopySettings(prefix=True))
    store = pipeline.open_store(tmp_path / "out")
    assert store.metadata["age"].to_pylist() == [None, 7]
    assert identity_of(tmp_path / "out")["source"]["columns"][0]["type"] == "int64"


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"score": ["high"]}, "column score is double in .*a and string in .*b; .*relabel"),
        ({"digit": pa.array([3], pa.int64())}, None),
        ({"speaker": pa.array([3], pa.int64())}, "column speaker is string in .* int64 in"),
    ],
)
def test_other_types_of_a_column_are_refused(tmp_path, columns, message):
    """By name, with both stores."""
    make_store(tmp_path / "a", [5])
    make_store(tmp_path / "b", [5], columns=pa.table(columns))
    stores, settings = [tmp_path / "a", tmp_path / "b"], CopySettings(prefix=True)
    if message is None:
        copy_stores(stores, tmp_path / "out", settings)
        return
    with pytest.raises(StoreError, match=message):
        copy_stores(stores, tmp_path / "out", settings)
    assert not (tmp_path / "out.copying").exists()


def test_numbers_are_not_mixed_with_classes(tmp_path):
    """A number is not the name of a class."""
    make_store(tmp_path / "a", [5])
    make_store(tmp_path / "b", [5])
    plain = [{"name": name, "type": "x", "class_names": None} for name in ("digit", "speaker")]
    set_identity(tmp_path / "b", source={"columns": plain})
    with pytest.raises(StoreError, match=r"digit is int64 classes in .*a and int64 in .*b"):
        copy_stores([tmp_path / "a", tmp_path / "b"], tmp_path / "out", CopySettings(prefix=True))


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"encoder": {"layers": [1, 2, 3], "precision": "bf16"}}, "encoder.precision is nothing"),
        ({"audio": {"mono": "left"}}, "audio.mono is mean there, left here"),
        ({"collapse": {"layers": [1], "weights": [1.0]}}, "collapse.layers is nothing there"),
    ],
)
def test_other_features_are_refused(pair, tmp_path, parts, message):
    """The difference is named."""
    set_identity(pair[1], **parts)
    with pytest.raises(IdentityError, match=f"cannot be joined, .*{message}"):
        copy_stores(pair, tmp_path / "out", CopySettings(prefix=True))


def test_other_shapes_are_refused(tmp_path):
    """As for other encoders."""
    make_store(tmp_path / "a", [5])
    make_store(tmp_path / "b", [5], dim=4)
    with pytest.raises(IdentityError, match="feature_dim is 8 there, 4 here"):
        copy_stores([tmp_path / "a", tmp_path / "b"], tmp_path / "out")


def test_a_resampler_that_one_store_needed_is_no_difference(pair, tmp_path):
    """It is stated only by stores with audio of such sample rates."""
    key = "resampler_for_large_factors"
    set_identity(pair[1], audio={"mono": "mean", key: {"name": "soxr"}})
    copy_stores(pair, tmp_path / "out", CopySettings(prefix=True))
    assert identity_of(tmp_path / "out")["audio"][key] == {"name": "soxr"}
    set_identity(pair[0], audio={"mono": "mean", key: {"name": "other"}})
    with pytest.raises(IdentityError, match=f"{key}.name is other there, soxr here"):
        copy_stores(pair, tmp_path / "out2", CopySettings(prefix=True))


def test_layers_that_both_have_are_joined(tmp_path):
    """Other layers are refused, and the remedy names the common ones."""
    make_store(tmp_path / "a", [5], layers=(1, 2, 3))
    make_store(tmp_path / "b", [5], layers=(2, 3, 4))
    stores = [tmp_path / "a", tmp_path / "b"]
    with pytest.raises(
        IdentityError, match=r"a has layers \[1, 2, 3\], .*; layers=\[2, 3\] copies"
    ):
        copy_stores(stores, tmp_path / "out", CopySettings(prefix=True))
    copy_stores(stores, tmp_path / "out", CopySettings(layers=[3, 2], prefix=True))
    store = pipeline.open_store(tmp_path / "out")
    assert store.layers == (2, 3)
    other = pipeline.open_store(tmp_path / "b")
    assert torch.equal(store.read("b/utt-0000"), other.read("utt-0000", layers=[2, 3]))


def test_stores_without_frames_are_joined(tmp_path):
    """If all keep the statistics, of values of the same dtype; a store with frames fits, too."""
    make_store(tmp_path / "a", LENGTHS, keep=("pooled",), statistics=("mean", "max"))
    make_store(tmp_path / "b", LENGTHS, features=noise)
    make_store(tmp_path / "c", LENGTHS, keep=("pooled",))
    make_store(tmp_path / "d", LENGTHS, keep=("pooled",), codec=FLOAT32)
    stores, prefix = [tmp_path / name for name in "abcd"], CopySettings(prefix=True)
    copy_stores(stores[:2], tmp_path / "out", prefix)
    store = pipeline.open_store(tmp_path / "out")
    parents = [pipeline.open_store(root) for root in stores[:2]]
    for name in ("mean", "max"):
        expected = torch.cat([parent.pooled(statistic=name) for parent in parents])
        assert torch.equal(store.pooled(statistic=name), expected)
    assert verify_store(tmp_path / "out").ok
    with pytest.raises(ConfigError, match="c keeps neither frames nor the statistics max; it has"):
        copy_stores([stores[0], stores[2]], tmp_path / "no", prefix)
    with pytest.raises(IdentityError, match="d keeps statistics of float32 values and no frames"):
        copy_stores([stores[2], stores[3]], tmp_path / "no", prefix)
    with pytest.raises(ConfigError, match=r"a keeps no frames to copy.* set keep=\[pooled\]"):
        copy_stores([stores[1], stores[0]], tmp_path / "no", prefix)
    assert not (tmp_path / "no.copying").exists()


def test_bfloat16_and_float16_become_float32(tmp_path):
    """Each keeps its values."""
    make_store(tmp_path / "a", LENGTHS, features=noise)
    make_store(tmp_path / "b", LENGTHS, features=noise, codec=BFLOAT16)
    stores = [tmp_path / "a", tmp_path / "b"]
    copy_stores(stores, tmp_path / "out", CopySettings(prefix=True, dtype="float32"))
    store = pipeline.open_store(tmp_path / "out")
    for name in store.ids:
        parent = pipeline.open_store(tmp_path / name[0])
        assert torch.equal(store.read(name), parent.read(name[2:]).float())
