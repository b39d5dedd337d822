"""Several stores opened as one: every method returns what the single stores return."""

from __future__ import annotations

import os
import pickle
import re
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import pipeline
from pipeline.errors import (
    ConfigError,
    DamagedError,
    IdentityError,
    StoreError,
    UtteranceNotFoundError,
)
from pipeline.store.format.codecs import BFLOAT16, FLOAT32, INT8
from pipeline.store.labels import committed_labels, write_labels
from pipeline.store.read.shards import ShardReader
from tests.helpers.backends import in_memory
from tests.helpers.feature_stores import commit_units, default_columns, make_store, noise, rewrite

LAYERS = (1, 2, 3)
PARTS = ("clean-100", "clean-360", "other-500")


def named(letter, n):
    return [f"{letter}-{i:02d}" for i in range(n)]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Three stores: pieces and lost utterances, int8, other columns and classes."""
    root = tmp_path_factory.mktemp("several")
    lengths = [40, 700, 3, 250, 17, 60]
    make_store(
        root / PARTS[0], lengths, features=noise, ids=named("a", 6), pieces={1: 4}, lost=(4,)
    )
    make_store(
        root / PARTS[1],
        [30, 500, 90],
        features=lambda row, *rest: noise(row + 50, *rest),
        ids=["a-04", "b-1", "b-2"],
        pieces={1: 3},
        codec=INT8,
        columns=pa.table({"score": [5.0, None, 7.0], "gender": ["f", "m", "f"]}),
        statistics=("mean", "std"),
    )
    make_store(
        root / PARTS[2],
        [80, 20, 256, 9],
        features=lambda row, *rest: noise(row + 70, *rest),
        ids=named("c", 4),
        frames_per_unit=768,
        keep=("frames",),
    )
    return root


@pytest.fixture(scope="module")
def singles(root):
    return [pipeline.open_store(root / name) for name in PARTS]


@pytest.fixture(scope="module")
def joined(root):
    return pipeline.open_store([root / name for name in PARTS])


def whole(singles):
    """Store and position within it of each utterance of all stores."""
    return [(store, i) for store in singles for i in range(len(store))]


def test_utterances_come_one_store_after_the_other(joined, singles):
    """Ids, lengths, quarantined utterances and checksums are those of the stores."""
    assert joined.ids == [name for store in singles for name in store.ids]
    assert len(joined) == 12
    assert joined.frame_counts.tolist() == [n for s in singles for n in s.frame_counts.tolist()]
    assert [joined.n_frames(name) for name in joined.ids] == joined.frame_counts.tolist()
    assert joined.checksums() == [item for store in singles for item in store.checksums()]
    assert joined.quarantined.to_pylist() == singles[0].quarantined.to_pylist() != []
    assert joined.store_numbers.tolist() == [0] * 5 + [1] * 3 + [2] * 4
    assert [str(backend) for backend in joined.backends] == [str(s.backend) for s in singles]
    assert (joined.layers, joined.feature_dim) == (LAYERS, 8)
    assert (joined.geometry, joined.frame_rate_hz) == (singles[0].geometry, 50.0)
    assert joined.codec.value_dtype == np.float16
    assert joined.keeps_frames
    assert joined.statistics == ()  # the last store keeps none


@pytest.mark.parametrize("verify", [False, True])
def test_every_read_is_that_of_the_single_store(joined, singles, verify):
    """By id and by position, whole and in part, single and many, verified or not."""
    for position, (store, i) in enumerate(whole(singles)):
        name, stop = store.ids[i], store.n_frames(i) - 1
        assert torch.equal(joined.read(name, verify=verify), store.read(i))
        assert torch.equal(
            joined.read(position, [3, 1], 1, stop, verify=verify), store.read(i, [3, 1], 1, stop)
        )
        weights = [0.5, 0.0, -2.0]
        assert torch.equal(
            joined.weighted_sum(name, weights, verify=verify), store.weighted_sum(i, weights)
        )
        record = store.record(i)
        assert {k: joined.record(position)[k] for k in record} == record
    keys = [7, "a-00", 11, -2, "b-1", 0]
    found = joined.read_many(keys, [2], verify=verify)
    assert all(
        torch.equal(one, joined.read(key, [2])) for one, key in zip(found, keys, strict=True)
    )
    assert torch.equal(joined[-1], singles[2][-1])
    assert [len(item[0]) for item in joined[4:7]] == joined.frame_counts[4:7].tolist()


@pytest.mark.parametrize("verify", [False, True])
@pytest.mark.parametrize("statistic", ["mean", "std", "max", "first", "last"])
def test_statistics_are_those_of_the_single_stores(joined, singles, statistic, verify):
    """Whether a store keeps them or computes them, in the order of any selection."""
    expected = torch.cat([store.pooled([3, 1], statistic=statistic) for store in singles])
    assert torch.equal(joined.pooled([3, 1], statistic=statistic, verify=verify), expected)
    order = [11, 1, 6, 0, 8]
    some = joined.take(order).pooled([3, 1], statistic=statistic, verify=verify)
    assert torch.equal(some, expected[order])


def test_columns_are_joined(joined, singles):
    """A column that a store lacks is null there; classes are numbered over all stores."""
    metadata = joined.metadata
    assert metadata.column_names == ["id", "speaker", "digit", "score", "gender"]
    lacking = [None] * 3
    speakers = [store.metadata["speaker"].to_pylist() for store in (singles[0], singles[2])]
    assert metadata["speaker"].to_pylist() == [*speakers[0], *lacking, *speakers[1]]
    assert metadata["gender"].to_pylist() == [None] * 5 + ["f", "m", "f"] + [None] * 4
    assert metadata["score"].to_pylist()[5:8] == [5.0, None, 7.0]
    assert joined.whole_column("n_frames").to_pylist() == joined.frame_counts.tolist()
    assert joined.class_names == {"digit": ["zero", "one", "two", "three"]}


def test_selections_are_over_all_stores(joined, singles):
    """By value, class, null, text and expression; nested, shuffled, and empty."""
    assert joined.select(gender="f").ids == ["a-04", "b-2"]
    assert joined.select(speaker=None).ids == ["a-04", "b-1", "b-2"]
    assert joined.select(digit="one").ids == ["a-01", "a-05", "c-01"]
    long = joined.select("n_frames > 100")
    assert long.ids == ["a-01", "a-03", "b-1", "c-02"]
    assert torch.equal(long.read("b-1"), singles[1].read("b-1"))
    nested = long.select(pc.field("n_frames") < 400)
    assert torch.equal(nested.read(1, verify=True), singles[2].read("c-02"))
    some = joined.take([10, 2, 5])
    assert [torch.equal(some[i], joined[k]) for i, k in enumerate([10, 2, 5])] == [True] * 3
    assert some.store_numbers.tolist() == [2, 0, 1]
    assert len(joined.select(gender=[])) == 0
    assert joined.select(gender=[]).pooled().shape == (0, 3, 8)
    with pytest.warns(UserWarning, match=r"clean-100, .*clean-360, .*gender='x'"):
        joined.select(gender="x")
    with pytest.raises(StoreError, match=r"no column 'nothing' in .*clean-100.*; the columns"):
        joined.select(nothing=1)


@given(data=st.data())
@settings(max_examples=40, deadline=None)
def test_any_selection_reads_what_the_stores_hold(joined, singles, data):
    """Any positions, any layers, any frames, in one merged read."""
    places = whole(singles)
    order = data.draw(st.lists(st.integers(0, len(places) - 1), max_size=12))
    layers = data.draw(st.lists(st.sampled_from(LAYERS), min_size=1, max_size=4))
    some = joined.take(order)
    cuts, expected = [], []
    for i, position in enumerate(order):
        store, own = places[position]
        start = data.draw(st.integers(0, store.n_frames(own)))
        stop = data.draw(st.integers(start, store.n_frames(own)))
        cuts.append((i, start, np.empty((len(layers), stop - start, 8), np.float16)))
        expected.append(store.read(own, layers, start, stop).numpy())
    some.read_into(cuts, some.axes(layers), verify=data.draw(st.booleans()))
    assert all(np.array_equal(out, item) for (_, _, out), item in zip(cuts, expected, strict=True))
    assert some.ids == [places[i][0].ids[places[i][1]] for i in order]
    assert some.checksums() == [joined.checksums()[i] for i in order]


@given(sizes=st.lists(st.lists(st.integers(1, 250), max_size=4), min_size=2, max_size=4))
@settings(max_examples=8, deadline=None)
def test_any_stores_are_joined(tmp_path_factory, sizes):
    """Of any number, length and number of units, also empty ones."""
    root = tmp_path_factory.mktemp("any")
    for number, lengths in enumerate(sizes):
        columns = default_columns(len(lengths))
        ids = named(str(number), len(lengths))
        make_store(
            root / str(number),
            lengths or [5],
            ids=ids or ["x"],
            columns=columns if lengths else default_columns(1),
            units=None if lengths else [],
        )
    paths = [root / str(number) for number in range(len(sizes))]
    joined, singles = pipeline.open_store(paths), [pipeline.open_store(path) for path in paths]
    assert joined.frame_counts.tolist() == [n for lengths in sizes for n in lengths]
    expected = [store.read(i) for store, i in whole(singles)]
    assert all(map(torch.equal, joined.read_many(joined.ids), expected))
    assert len(set(joined.slots.tolist())) == sum(len(set(s.slots.tolist())) for s in singles)
    shutil.rmtree(root)


def test_slots_of_different_stores_differ(joined, singles):
    """They number the units of all stores; those of the first store are its own."""
    slots = [store.slots.tolist() for store in singles]
    found = joined.slots.tolist()
    assert found[:5] == slots[0]
    assert len(set(found)) == sum(len(set(own)) for own in slots)


def test_a_missing_id_is_explained_over_all_stores(joined, tmp_path):
    """Quarantined in one store, or similar to one of another."""
    with pytest.raises(UtteranceNotFoundError, match=r"c-01"):
        joined.read("c-0")
    assert "a-04" in joined  # quarantined in the first store, complete in the second one
    assert "a-99" not in joined
    make_store(tmp_path / "x", [5, 6], lost=(1,), ids=["x-0", "x-1"])
    make_store(tmp_path / "y", [5], ids=["y-0"])
    for prefix, name in ((False, "x-1"), (True, "x/x-1")):
        store = pipeline.open_store([tmp_path / "x", tmp_path / "y"], prefix=prefix)
        with pytest.raises(UtteranceNotFoundError, match="is quarantined: no sound in it"):
            store.read(name)


def test_equal_ids_are_refused_or_get_the_name_of_the_folder(tmp_path):
    """The message names the first few, and the remedy, which works."""
    for name in ("a", "b"):
        make_store(tmp_path / name, [9, 8, 7], features=noise)
    paths = [tmp_path / "a", str(tmp_path / "b")]
    words = "3 ids in several stores ('utt-0000', 'utt-0001', 'utt-0002'); open_store(..., prefix="
    with pytest.raises(StoreError, match=re.escape(words)):
        pipeline.open_store(paths)
    store = pipeline.open_store(paths, prefix=True, verify=True)
    assert store.ids[2:4] == ["a/utt-0002", "b/utt-0000"]
    assert store.id_prefixes == ("a/", "b/")
    assert torch.equal(store.read("b/utt-0001"), pipeline.open_store(paths[1]).read(1))
    assert store.record("b/utt-0001")["id"] == "b/utt-0001"
    assert store.pooled().shape == (6, 3, 8)
    with pytest.raises(KeyError, match="b/utt-0001"):
        store.read("utt-0001")
    one = pipeline.open_store([tmp_path / "a"], prefix=True)
    assert one.ids == ["a/utt-0000", "a/utt-0001", "a/utt-0002"]
    make_store(tmp_path / "other/a", [9], ids=["z"])
    with pytest.raises(ConfigError, match=r"other/a are both called 'a'"):
        pipeline.open_store([tmp_path / "a", tmp_path / "other/a"], prefix=True)


def test_one_store_in_a_list_is_that_store(root, singles):
    """With its folder, and its labels."""
    store = pipeline.open_store([root / PARTS[0]])
    assert type(store) is pipeline.FeatureStore
    assert store.root == singles[0].root
    assert store.backends == (store.backend,)
    assert store.id_prefixes == ("",)
    assert pipeline.open_store(iter([root / PARTS[0]]), labels=0).ids == store.ids


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ({"layers": (1, 2)}, r"cannot be joined, .*layers is \[1, 2, 3\] there, \[1, 2\] here"),
        ({"dim": 16}, "feature_dim is 8 there, 16 here"),
        ({"attributes": {"frame_rate_hz": 25.0}}, "frame_rate_hz is 50.0 there, 25.0 here"),
        (
            {"layers": (1, 2), "dim": 16},
            r"feature_dim is 8 there, 16 here|layers is \[1, 2, 3\] there",
        ),
        ({"keep": ("pooled",)}, r"b keeps no frames, .*a does; `strata copy .*a NEW keep=\[pooled"),
        (
            {"codec": FLOAT32},
            r"as float16 from .*a \(float16\) and as float32 from .*b \(float32\)",
        ),
        ({"codec": BFLOAT16}, r"float32 from .*b \(bfloat16\); `strata copy .*b NEW dtype=float16"),
    ],
)
def test_stores_of_different_kinds_are_refused(tmp_path, other, words):
    """The message names both stores, every difference, and the remedy where there is one."""
    make_store(tmp_path / "a", [5], ids=["a"])
    make_store(tmp_path / "b", [5], ids=["b"], **other)
    with pytest.raises(IdentityError, match=words) as caught:
        pipeline.open_store([tmp_path / "a", tmp_path / "b"])
    assert str(tmp_path / "a") in str(caught.value)
    assert str(tmp_path / "b") in str(caught.value)


def test_another_encoder_is_refused(tmp_path):
    """Every difference of encoder and audio is listed."""
    make_store(tmp_path / "a", [5], ids=["a"])
    own = pipeline.open_store(tmp_path / "a").attributes["identity"]
    identity = own | {
        "encoder": own["encoder"] | {"weights": {"sha256": "f00"}},
        "audio": {"mono": "left"},
    }
    make_store(tmp_path / "b", [5], ids=["b"], attributes={"identity": identity})
    words = "audio.mono is mean there, left here; encoder.weights.sha256 is nothing there, f00 here"
    with pytest.raises(IdentityError, match=re.escape(words)):
        pipeline.open_store([tmp_path / "a", tmp_path / "b"])


def test_stores_of_statistics_alone_are_joined(tmp_path):
    """Whatever type of frames they are of; what needs frames says so, with the store."""
    for name, codec in (("a", FLOAT32), ("b", INT8)):
        make_store(
            tmp_path / name, [5, 7], ids=named(name, 2), features=noise, codec=codec,
            keep=("pooled",), statistics=("mean", "max") if name == "a" else ("max",),
        )  # fmt: skip
    store = pipeline.open_store([tmp_path / "a", tmp_path / "b"])
    assert not store.keeps_frames
    assert store.statistics == ("max",)
    singles = [pipeline.open_store(tmp_path / name) for name in ("a", "b")]
    expected = torch.cat([one.pooled(statistic="max") for one in singles])
    assert torch.equal(store.pooled(statistic="max", verify=True), expected)
    with pytest.raises(StoreError, match=rf"store {tmp_path}/b keeps neither the statistic mean"):
        store.pooled()
    for action in (store.check_frames, lambda: store.read(0), lambda: store.read_many([0, 2])):
        with pytest.raises(StoreError, match=r"a keeps no frames"):
            action()


@pytest.mark.parametrize(
    ("second", "words"),
    [
        ({"speaker": pa.array([1])}, r"column speaker is string in .*a and int64 in .*b; give one"),
        ({"digit": pa.array(["one"])}, "column digit is int64 classes in .*a and string in .*b"),
    ],
)
def test_columns_of_different_types_are_refused(tmp_path, second, words):
    """By name, with both types and stores."""
    make_store(tmp_path / "a", [5], ids=["a"])
    make_store(tmp_path / "b", [5], ids=["b"], columns=pa.table(second))
    if "digit" in second:
        labels = committed_labels(tmp_path / "b")
        described = ({"name": "digit", "type": "string", "class_names": None},)
        write_labels(tmp_path / "b", type(labels)(labels.table, described))
    with pytest.raises(StoreError, match=words):
        pipeline.open_store([tmp_path / "a", tmp_path / "b"])


def test_classes_and_labels_of_relabelled_stores(tmp_path):
    """The newest labels count; other names of classes get numbers after those of the first store.

    `labels=` is of one store.
    """
    make_store(tmp_path / "a", [5, 6], ids=["a", "b"])
    make_store(tmp_path / "b", [5, 6, 7], ids=["c", "d", "e"], features=noise)
    labels = committed_labels(tmp_path / "b")
    table = labels.table.drop_columns(["digit", "speaker", "score"]).take([2, 0])
    table = table.append_column("digit", pa.array([1, 0], pa.int64()))
    described = ({"name": "digit", "type": "int64", "class_names": ["nine", "zero"]},)
    write_labels(tmp_path / "b", type(labels)(table, described))
    paths = [tmp_path / "a", tmp_path / "b"]
    store = pipeline.open_store(paths)
    assert store.ids == ["a", "b", "e", "c"]
    assert store.class_names["digit"] == ["zero", "one", "two", "three", "nine"]
    assert store.metadata["digit"].to_pylist() == [0, 1, 0, 4]
    assert store.select(digit="nine").ids == ["c"]
    assert store.select(digit="zero").ids == ["a", "e"]
    assert torch.equal(store.read("e"), pipeline.open_store(tmp_path / "b").read("e"))
    store.pooled(verify=True)
    with pytest.raises(ConfigError, match="labels=0 is a generation of one store"):
        pipeline.open_store(paths, labels=0)


def test_a_pickled_view_reads_the_same(joined):
    """Pickles keep the selection, hold each array once, and open files anew."""
    view = joined.select("n_frames > 50").take([4, 0, 3])
    again = pickle.loads(pickle.dumps(view))
    assert again.ids == view.ids
    assert all(torch.equal(again.read(i, verify=True), view.read(i)) for i in range(3))
    assert again.select(id=view.ids[0]).ids == [view.ids[0]]
    assert again.whole_column("id").to_pylist() == joined.ids
    assert torch.equal(again.pooled(), view.pooled())
    assert len(pickle.dumps(joined)) < 2.5 * sum(
        len(pickle.dumps(pipeline.open_store(backend))) for backend in joined.backends
    )


def test_refresh_sees_new_units_of_every_store(tmp_path):
    """Selections keep their conditions; what was open stays readable."""
    plans = {}
    for name in ("a", "b"):
        plans[name] = make_store(
            tmp_path / name, [200] * 4, features=noise, ids=named(name, 4), units=[0]
        )
    paths = [tmp_path / "a", tmp_path / "b"]
    store = pipeline.open_store(paths, verify=True)
    view = store.select("n_frames > 10")
    assert store.ids == ["a-00", "b-00"]
    for name, unit in (("a", 2), ("b", 1), ("a", 3)):
        layout = pipeline.open_store(tmp_path / name)._layout
        commit_units(
            tmp_path / name, plans[name], layout, default_columns(4), features=noise, units=[unit]
        )
    store.refresh()
    assert store.ids == ["a-00", "a-02", "a-03", "b-00", "b-01"]
    assert torch.equal(store.read("b-01"), pipeline.open_store(paths[1]).read("b-01"))
    assert view.ids == ["a-00", "b-00"]
    assert torch.equal(view.read("b-00"), store.read("b-00"))
    view.refresh()
    assert view.ids == store.ids
    store.pooled()
    with pytest.raises(StoreError, match="chosen by position"):
        store.take([0]).refresh()


def test_refresh_forgets_checksums_of_units_that_were_repaired(tmp_path):
    """A unit that was extracted again, with another place for an utterance, is verified anew."""
    form = {"ids": ["b-00", "b-01"], "keep": ("pooled",)}
    make_store(tmp_path / "a", [5], keep=("pooled",), ids=["a"])
    plan = make_store(tmp_path / "b", [9, 8], **form)
    store = pipeline.open_store([tmp_path / "a", tmp_path / "b"], verify=True)
    store.pooled()
    layout = pipeline.open_store(tmp_path / "b")._layout
    (tmp_path / "b/index/unit-0.parquet").unlink()
    commit_units(tmp_path / "b", plan, layout, default_columns(2), features=noise, lost=(0,))
    store.refresh()
    assert store.ids == ["a", "b-01"]
    mean = noise(1, 2, 8, 8).astype(np.float32).mean(0)
    assert np.allclose(store.pooled()[1, 1].numpy(), mean, atol=1e-3)


def test_a_batch_is_requested_from_all_stores_before_it_waits(tmp_path, monkeypatch):
    """So disks and network file systems work on all of it at once."""
    for name in ("a", "b"):
        make_store(tmp_path / name, [9, 8], ids=named(name, 2), features=noise)
    store = pipeline.open_store([tmp_path / "a", tmp_path / "b"])
    expected, calls = store.read_many(store.ids), []
    real = ShardReader.read_into

    def request(shards, *read):
        calls.append(("request", shards.name[-1]))
        return False

    def wait(shards, *read):
        calls.append(("wait", shards.name[-1]))
        real(shards, *read)

    monkeypatch.setattr(ShardReader, "read_cached", request)
    monkeypatch.setattr(ShardReader, "read_into", wait)
    assert all(map(torch.equal, store.read_many(store.ids), expected))
    assert calls == [(kind, name) for kind in ("request", "wait") for name in "aaabbb"]


def test_the_files_of_all_stores_fit_under_the_limit(joined, singles):
    """Together they keep as many files open as one store."""
    limits = [part._shards._opened.cache_info().maxsize for part in joined._parts]
    assert 3 <= sum(limits) <= singles[0]._shards._opened.cache_info().maxsize


def test_files_are_opened_when_read_and_closed_together(tmp_path):
    """`close` and `with` close the files of every store, those of selections too."""
    for name in ("a", "b"):
        make_store(tmp_path / name, [9, 8], ids=named(name, 2))
    folder = Path("/proc/self/fd")
    n_open = len(list(folder.iterdir()))
    with pipeline.open_store([tmp_path / "a", tmp_path / "b"]) as store:
        assert len(list(folder.iterdir())) == n_open
        view = store.take([3])
        view.read(0)
        assert len(list(folder.iterdir())) == n_open + 3
    assert len(list(folder.iterdir())) == n_open
    for reader in (store, view):
        with pytest.raises(StoreError, match=r"the store .*b is closed"):
            reader.read("b-01")


def test_a_fork_and_a_damaged_shard(tmp_path):
    """A child of a fork reads, and a damaged value is found with its store and utterance."""
    for name in ("a", "b"):
        make_store(tmp_path / name, [9, 8], ids=named(name, 2), features=noise)
    store = pipeline.open_store([tmp_path / "a", tmp_path / "b"])
    expected = store.read_many(store.ids)
    child = os.fork()
    if not child:
        same = map(torch.equal, store.read_many(store.ids), expected)
        os._exit(0 if all(same) else 1)
    assert os.waitpid(child, 0)[1] == 0
    shard = tmp_path / "b/features.zarr/frames/c/1/0/0"
    content = bytearray(shard.read_bytes())
    content[3] ^= 1
    shard.write_bytes(content)
    store.read("b-00")
    words = rf"layer 2 of utterance 'b-00' has a wrong checksum in {re.escape(str(shard))}"
    for check in (lambda: store.read("b-00", verify=True), lambda: store.pooled(verify=True)):
        with pytest.raises(DamagedError, match=words):
            check()
    store.read("a-00", verify=True)


def test_other_backends_and_rewritten_arrays(tmp_path):
    """A store in memory beside one in a folder that another tool has compressed."""
    for name, codec in (("a", INT8), ("b", None)):
        form = {} if codec is None else {"codec": codec}
        make_store(tmp_path / name, [300, 80], ids=named(name, 2), features=noise,
                   frames_per_unit=512, **form)  # fmt: skip
    singles = [pipeline.open_store(tmp_path / name) for name in ("a", "b")]
    expected = [store.read(i) for store, i in whole(singles)]
    means = torch.cat([store.pooled() for store in singles])
    rewrite(tmp_path / "b")
    for pair in (
        [in_memory(tmp_path / "a"), tmp_path / "b"],
        [tmp_path / "b", in_memory(tmp_path / "a")],
    ):
        store = pipeline.open_store(pair, verify=True)
        found = {name: store.read(name) for name in store.ids}
        assert all(map(torch.equal, (found[n] for n in ("a-00", "a-01", "b-00", "b-01")), expected))
        order = [store.ids.index(n) for n in ("a-00", "a-01", "b-00", "b-01")]
        assert torch.equal(store.pooled()[order], means)


def test_wrong_lists_of_stores_are_refused(root, tmp_path):
    """None, the same one twice, one that does not exist, one without a folder."""
    first = root / PARTS[0]
    with pytest.raises(ConfigError, match="no store is given"):
        pipeline.open_store([])
    (tmp_path / "link").symlink_to(first)
    with pytest.raises(ConfigError, match=r"link is given twice"):
        pipeline.open_store([first, root / PARTS[1], tmp_path / "link"])
    with pytest.raises(StoreError, match="no store at"):
        pipeline.open_store([first, tmp_path / "nothing"])
    for wrong in (3, [3], b"a"):
        with pytest.raises(TypeError):
            pipeline.open_store(wrong)


def test_what_is_of_one_store_says_so(joined):
    """`root` and `backend` are refused with the way; `repr` names the stores."""
    for name in ("root", "backend"):
        with pytest.raises(ConfigError, match=r"these are 3 stores .*`backends`"):
            getattr(joined, name)
    assert re.fullmatch(
        r"<JoinedStore \S+clean-100, \S+clean-360, \S+other-500: 12 utterances, "
        r"layers \[1, 2, 3\], dim 8>",
        repr(joined),
    )


def test_the_final_norm_is_applied_in_every_store(tmp_path):
    """By reads of one and of many utterances."""
    norm = {"layer": 3, "weight": [2.0] * 8, "bias": [1.0] * 8, "eps": 1e-5}
    for name in ("a", "b"):
        make_store(tmp_path / name, [9, 8], ids=named(name, 2), features=noise,
                   attributes={"final_norm": norm})  # fmt: skip
    store = pipeline.open_store([tmp_path / "a", tmp_path / "b"])
    for i in range(4):
        single = pipeline.open_store(tmp_path / "ab"[i // 2])
        expected = single.read(i % 2, final_norm=True)
        assert torch.equal(store.read(i, final_norm=True), expected)
        out = np.empty(tuple(expected.shape), np.float16)
        store.read_into([(i, 0, out)], store.axes(None), store.final_norm)
        assert np.array_equal(out, expected.numpy())
