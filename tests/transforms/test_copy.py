"""Copies of one store: every form, selection and size of units holds exactly what it should."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import torch
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import pipeline
from pipeline.store.documents import read_plan
from pipeline.store.format.codecs import BFLOAT16, CODECS, FLOAT16, FLOAT32, INT8
from pipeline.store.index import read_index
from pipeline.store.labels import Labels, committed_labels, write_labels
from pipeline.store.maintain.verify import verify_store
from pipeline.transforms.copy import CopySettings, copy_stores
from tests.helpers.copied_stores import decoded, identity_of, stored_pieces
from tests.helpers.feature_stores import make_store, noise

LENGTHS = [40, 100, 3, 250, 17, 700, 60, 90, 256, 1]
LOST, LONG = 6, 5


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    """A store of each codec, with a quarantined utterance and one in four pieces."""
    root = tmp_path_factory.mktemp("sources")
    for codec in CODECS:
        make_store(
            root / codec.name, LENGTHS, features=noise, pieces={LONG: 4}, lost=(LOST,), codec=codec
        )
    return root


def expected_values(root, target, layers=slice(None)):
    """Return id → values that readers of a copy in a codec must return, by NumPy, per piece."""
    source = {codec.name: codec for codec in CODECS}[identity_of(root)["dtype"]]
    found = {}
    for name, pieces in stored_pieces(root).items():
        values = [source.decode(*piece)[layers] for piece in pieces]
        if source != target:
            scales = [target.measure(item) for item in values]
            values = [
                target.decode(target.encode(v, s), s) for v, s in zip(values, scales, strict=True)
            ]
        found[name] = np.concatenate(values, axis=1).astype(target.value_dtype)
    return found


def check_sound(root, n_utterances):
    checked = verify_store(root)
    assert checked.ok, checked.damages
    assert not checked.orphans
    assert checked.utterances_ok == n_utterances
    assert checked.units_committed == checked.units_total


@pytest.mark.parametrize("target", CODECS, ids=lambda codec: codec.name)
@pytest.mark.parametrize("source", CODECS, ids=lambda codec: codec.name)
def test_every_pair_of_dtypes(stores, tmp_path, source, target):
    """Values are those of the source, encoded by the target codec.

    They have the same bits where the target is wide enough.
    """
    root = stores / source.name
    done = copy_stores(
        root, tmp_path / "out", CopySettings(dtype=target.name, pooling=["mean", "max"])
    )
    store, parent = pipeline.open_store(tmp_path / "out"), pipeline.open_store(root)
    assert store.ids == parent.ids
    assert store.metadata.equals(parent.metadata)
    assert store.class_names == parent.class_names
    expected = expected_values(root, target)
    for name in store.ids:
        assert np.array_equal(store.read(name).numpy(), expected[name])
    is_wider = target == FLOAT32 or source == target or (source, target) == (INT8, FLOAT16)
    if is_wider:
        values = store.read("utt-0005").to(parent.read(0).dtype)
        assert torch.equal(values, parent.read("utt-0005"))
    check_sound(tmp_path / "out", len(LENGTHS) - 1)
    assert done.dtype == store.codec.name == target.name
    assert (done.utterances, done.frames) == (9, sum(LENGTHS) - LENGTHS[LOST])
    assert store.statistics == ("mean", "max")


def test_without_settings_the_bytes_are_those_of_the_source(stores, tmp_path):
    """Frames, scales and statistics are copied as they are, and so are the checksums."""
    root = stores / "int8"
    copy_stores(root, tmp_path / "out")
    before, after = stored_pieces(root), stored_pieces(tmp_path / "out")
    assert before.keys() == after.keys()
    for name, pieces in before.items():
        for piece, copied in zip(pieces, after[name], strict=True):
            assert all(np.array_equal(a, b) for a, b in zip(piece, copied, strict=True))
    parent, store = pipeline.open_store(root), pipeline.open_store(tmp_path / "out")
    assert store.checksums() == parent.checksums()
    assert torch.equal(store.pooled(), parent.pooled())
    facts = ["n_samples", "source_rate_hz", "flags"]
    assert [[store.record(n)[f] for f in facts] for n in store.ids] == [
        [parent.record(n)[f] for f in facts] for n in store.ids
    ]


def test_pieces_that_are_cut_keep_values_scales_and_statistics(stores, tmp_path):
    """Units of 256 frames become units of 768, and these again units of 256 frames.

    Pieces stay pieces where they fit. Parts of an int8 piece have its scales, and statistics of
    their own; a deviation needs no frames to be joined again.
    """
    whole = tmp_path / "whole"
    make_store(whole, LENGTHS, features=noise, frames_per_unit=768, codec=INT8)
    copy_stores(
        whole, tmp_path / "cut", CopySettings(frames_per_unit=256, pooling=["std", "last", "first"])
    )
    store, parent = pipeline.open_store(tmp_path / "cut"), pipeline.open_store(whole)
    assert all(torch.equal(store.read(n), parent.read(n)) for n in parent.ids)
    pieces = stored_pieces(tmp_path / "cut")["utt-0005"]
    assert [piece[0].shape[1] for piece in pieces] == [256, 256, 188]
    plan = read_plan(tmp_path / "cut").table
    starts = plan.filter(pc.equal(plan["id"], "utt-0005"))["piece_start"].to_pylist()
    assert starts == [0, 256, 512]
    scales = stored_pieces(whole)["utt-0005"][0][1]
    assert all(np.array_equal(piece[1], scales) for piece in pieces)
    assert store.statistics == ("mean", "std", "first", "last")
    for name in store.statistics:
        assert torch.allclose(
            store.pooled(statistic=name), parent.pooled(statistic=name), atol=1e-6
        )
    check_sound(tmp_path / "cut", len(LENGTHS))
    copy_stores(whole, tmp_path / "means", CopySettings(frames_per_unit=256))
    check_sound(tmp_path / "means", len(LENGTHS))
    copy_stores(tmp_path / "cut", tmp_path / "back", CopySettings(frames_per_unit=768))
    back = pipeline.open_store(tmp_path / "back")
    assert all(torch.equal(back.read(n), parent.read(n)) for n in parent.ids)
    assert len(stored_pieces(tmp_path / "back")["utt-0005"]) == 3
    check_sound(tmp_path / "back", len(LENGTHS))


def test_layers_and_utterances_are_chosen(stores, tmp_path):
    """By condition and by a file of ids together; the order is that of the source."""
    ids = tmp_path / "ids.txt"
    ids.write_text("\ufeffutt-0008\r\nutt-0000\n\nutt-0003\nutt-0001\n")
    chosen = CopySettings(layers=[3, 1], where="speaker != 'speaker-1' and n_frames > 39", ids=ids)
    done = copy_stores([stores / "float16"], tmp_path / "out", chosen)
    store, parent = pipeline.open_store(tmp_path / "out"), pipeline.open_store(stores / "float16")
    assert store.ids == ["utt-0000", "utt-0003", "utt-0008"]
    assert store.layers == done.layers == (1, 3)
    for name in store.ids:
        assert torch.equal(store.read(name), parent.read(name, layers=[1, 3]))
    assert torch.equal(store.pooled(), parent.pooled(layers=[1, 3])[[0, 3, 7]])
    assert identity_of(tmp_path / "out")["encoder"]["layers"] == [1, 3]
    check_sound(tmp_path / "out", 3)


def test_classes_are_chosen_by_name(stores, tmp_path):
    """As in `select`."""
    copy_stores(stores / "float16", tmp_path / "out", CopySettings(where="digit = 'two'"))
    assert pipeline.open_store(tmp_path / "out").ids == ["utt-0002"]


def test_frames_are_dropped(stores, tmp_path):
    """Statistics that the source keeps are copied, others are computed from its frames.

    A copy of the copy needs no frames.
    """
    parent = pipeline.open_store(stores / "int8")
    copy_stores(stores / "int8", tmp_path / "mean", CopySettings(keep="pooled"))
    copy_stores(
        stores / "int8", tmp_path / "both", CopySettings(keep=["pooled"], pooling=["max", "mean"])
    )
    copy_stores(tmp_path / "both", tmp_path / "max", CopySettings(pooling="max", layers=[2]))
    means, both, largest = (
        pipeline.open_store(tmp_path / name) for name in ("mean", "both", "max")
    )
    assert not means.keeps_frames
    assert not (tmp_path / "mean/features.zarr/frames").exists()
    assert torch.equal(means.pooled(), parent.pooled())
    assert torch.equal(both.pooled(), parent.pooled())
    assert torch.equal(both.pooled(statistic="max"), parent.pooled(statistic="max"))
    expected = parent.pooled(statistic="max", layers=[2])
    assert torch.equal(largest.pooled(statistic="max"), expected)
    assert largest.statistics == ("max",)
    for name in ("mean", "both", "max"):
        check_sound(tmp_path / name, len(LENGTHS) - 1)


def test_statistics_are_dropped(stores, tmp_path):
    """Readers compute them from the frames then."""
    copy_stores(stores / "float16", tmp_path / "out", CopySettings(keep="frames"))
    store, parent = pipeline.open_store(tmp_path / "out"), pipeline.open_store(stores / "float16")
    assert store.statistics == ()
    assert torch.equal(store.pooled(), parent.pooled())
    check_sound(tmp_path / "out", len(LENGTHS) - 1)


def test_newest_labels_become_the_columns(tmp_path):
    """Superseded utterances are left out; order, columns and classes are those of the labels."""
    root = tmp_path / "parent"
    make_store(root, LENGTHS, features=noise, pieces={LONG: 4})
    before = committed_labels(root)
    numbers = [7, 2, 9]
    table = pa.table(
        {
            "row": pa.array(numbers, pa.int64()),
            "id": [f"utt-{n:04d}" for n in numbers],
            "word": pa.array([1, 0, None], pa.int64()),
        }
    )
    columns = ({"name": "word", "type": "int64", "class_names": ["no", "yes"]},)
    write_labels(root, Labels(table, columns, numbered=before.numbered))
    copy_stores(root, tmp_path / "out", CopySettings(where="word is not null"))
    store, parent = pipeline.open_store(tmp_path / "out"), pipeline.open_store(root)
    assert store.ids == ["utt-0007", "utt-0002"]
    assert store.metadata.column_names == ["id", "word"]
    assert store.class_names == {"word": ["no", "yes"]}
    assert all(torch.equal(store.read(n), parent.read(n)) for n in store.ids)
    assert not (tmp_path / "out/labels").exists()
    check_sound(tmp_path / "out", 2)


def test_values_that_do_not_fit_are_quarantined(tmp_path):
    """With the layer, the value and the remedy; the others of the unit are sound."""
    root = tmp_path / "parent"

    def large(row, layer, n_frames, dim):
        values = np.full((n_frames, dim), row, np.float32)
        if row == 1 and layer == 2:
            values[-1, 0] = -70000
        return values

    make_store(root, [30, 40, 50], features=large, codec=FLOAT32)
    done = copy_stores(root, tmp_path / "out", CopySettings(dtype="float16"))
    assert (done.utterances, done.quarantined, done.frames) == (2, 1, 80)
    store = pipeline.open_store(tmp_path / "out")
    assert store.ids == ["utt-0000", "utt-0002"]
    assert torch.equal(store.read("utt-0002"), torch.full((3, 50, 8), 2.0).half())
    lost = store.quarantined.to_pylist()
    assert lost == [
        {
            "id": "utt-0001",
            "reason": "layer 2 reaches 7e+04, more than float16 holds; copy with dtype=bfloat16 or "
            "float32",
        }
    ]
    checked = verify_store(tmp_path / "out")
    assert checked.ok, checked.damages
    assert checked.utterances_quarantined == 1
    wide = copy_stores(root, tmp_path / "wide", CopySettings(dtype="bfloat16"))
    assert wide.quarantined == 0


@pytest.mark.parametrize("codec", [FLOAT32, INT8], ids=lambda codec: codec.name)
def test_plain_zarr_reads_it(stores, tmp_path, codec):
    """At `frame_start`, with the rule in the attributes of the array."""
    copy_stores(stores / "bfloat16", tmp_path / "out", CopySettings(dtype=codec.name))
    group = zarr.open_group(tmp_path / "out/features.zarr", mode="r")
    store = pipeline.open_store(tmp_path / "out")
    for row in read_index(tmp_path / "out").to_pylist():
        stop = row["frame_start"] + row["n_frames"]
        values = group["frames"][:, row["frame_start"] : stop]
        if codec == INT8:
            scales = group["scale"][row["slot"], row["position"]]
            values = scales[:, :1] + scales[:, 1:] * values
        if row["n_pieces"] == 1:
            found = store.read(row["id"]).numpy()
            assert np.array_equal(values.astype(found.dtype), found)


def test_the_final_norm_stays_with_its_layer(tmp_path):
    """Without the layer it would be applied to another one."""
    norm = {"layer": 3, "weight": [1.0] * 8, "bias": [0.0] * 8, "eps": 1e-5}
    make_store(tmp_path / "parent", [5, 6], attributes={"final_norm": norm})
    copy_stores(tmp_path / "parent", tmp_path / "with", CopySettings(layers=[2, 3]))
    copy_stores(tmp_path / "parent", tmp_path / "without", CopySettings(layers=[2]))
    assert pipeline.open_store(tmp_path / "with").attributes["final_norm"] == norm
    assert pipeline.open_store(tmp_path / "without").attributes["final_norm"] is None


def test_a_copy_says_what_it_was_made_from(stores, tmp_path):
    """The identity has a hash of each source and the settings, the provenance the rest."""
    root = stores / "float16"
    copy_stores(root, tmp_path / "one", CopySettings(where="n_frames < 100"))
    copy_stores(tmp_path / "one", tmp_path / "two", CopySettings(ids=["utt-0000"], keep="pooled"))
    one, two = (identity_of(tmp_path / name) for name in ("one", "two"))
    assert one["copy"]["where"] == "n_frames < 100"
    assert one["copy"]["layers"] == [1, 2, 3]
    assert len(two["copy"]["sources"][0]) == len(two["copy"]["ids_sha256"]) == 64
    assert two["copy"]["sources"] != one["copy"]["sources"]
    assert two["copy"]["where"] is None
    assert two["keep"] == ["pooled"]
    assert {**one, "copy": None} == {**identity_of(root), "copy": None}
    provenance = pipeline.open_store(tmp_path / "two").attributes["provenance"]
    assert provenance["sources"][0]["path"] == str(tmp_path / "one")
    assert provenance["sources"][0]["identity"] == one
    assert provenance["sources"][0]["provenance"]["sources"][0]["path"] == str(root)


def test_a_collapsed_store_is_a_source(stores, tmp_path):
    """It stays a collapsed one, and can be copied by its layer."""
    pipeline.collapse(stores / "float16", tmp_path / "sum", [0.2, 0.5, -0.3])
    copy_stores(tmp_path / "sum", tmp_path / "out", CopySettings(layers=[-1], dtype="float32"))
    store, parent = pipeline.open_store(tmp_path / "out"), pipeline.open_store(tmp_path / "sum")
    assert store.layers == (-1,)
    assert all(torch.equal(store.read(n), parent.read(n).float()) for n in parent.ids)
    check_sound(tmp_path / "out", len(parent))
    pipeline.collapse(tmp_path / "out", tmp_path / "again", [2.0])
    assert verify_store(tmp_path / "again").ok


@settings(
    max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_any_selection_in_any_units(tmp_path_factory, data):
    """Every chosen utterance is there exactly once, in order, with its values; nothing else is."""
    root = tmp_path_factory.mktemp("any")
    lengths = data.draw(st.lists(st.integers(1, 600), min_size=1, max_size=12))
    before, after = (data.draw(st.integers(1, 700)) for _ in range(2))
    n = len(lengths)
    capacity = -(-before // 256) * 256
    pieces = {i: -(-length // capacity) for i, length in enumerate(lengths) if length > capacity}
    lost = data.draw(st.sets(st.integers(0, n - 1), max_size=n - 1))
    codec, target = (data.draw(st.sampled_from((FLOAT16, BFLOAT16, INT8))) for _ in range(2))
    kept = sorted(set(range(n)) - lost)
    rows = data.draw(st.sets(st.sampled_from(kept), min_size=1))
    make_store(
        *(root / "source", lengths, (1, 2), 4, before, noise),
        lost=lost,
        pieces=pieces,
        codec=codec,
    )
    wanted = [f"utt-{row:04d}" for row in rows]
    copy_stores(
        root / "source",
        root / "out",
        CopySettings(ids=wanted, dtype=target.name, frames_per_unit=after),
    )
    store = pipeline.open_store(root / "out")
    assert store.ids == sorted(wanted)
    index = read_index(root / "out")
    assert set(index["id"].to_pylist()) == set(wanted)
    assert sum(index["n_frames"].to_pylist()) == sum(lengths[row] for row in rows)
    source, copied = decoded(root / "source"), decoded(root / "out")
    for name in wanted:
        if target == codec or (codec, target) == (INT8, FLOAT16):
            kind = target.value_dtype
            assert np.array_equal(copied[name].astype(kind), source[name].astype(kind))
        else:
            assert np.allclose(copied[name], source[name], rtol=1 / 256, atol=0.04)
    checked = verify_store(root / "out")
    assert checked.ok, checked.damages
