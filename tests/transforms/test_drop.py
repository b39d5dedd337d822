"""Drops: what is chosen is gone from every file, and nothing else has changed."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tensorstore
import zarr
from crc32c import crc32c

import pipeline
from pipeline.errors import (
    ConfigError,
    DamagedError,
    IdentityError,
    StoreBusyError,
    StoreError,
    StoreNotFoundError,
    UtteranceNotFoundError,
)
from pipeline.events import Observer
from pipeline.store.backend.memory import MemoryBackend
from pipeline.store.coordination.lease import Lease
from pipeline.store.coordination.ledger import read_claims
from pipeline.store.coordination.worker_failures import WorkerFailure, record_failure
from pipeline.store.documents import layout_of, read_attributes, read_plan
from pipeline.store.format.codecs import BFLOAT16, FLOAT32, INT8
from pipeline.store.format.tombstones import tombstone_of
from pipeline.store.labels import Labels, write_labels
from pipeline.store.maintain.repair import repair_store
from pipeline.store.maintain.status import read_status
from pipeline.store.maintain.verify import verify_store
from pipeline.store.serialization import parquet_bytes
from pipeline.transforms.collapse import collapse
from pipeline.transforms.copy import CopySettings, copy_stores
from tests.helpers.copied_stores import stored_pieces
from tests.helpers.dropped_stores import (
    has_frames,
    has_statistics,
    set_log,
    survivors,
    texts_of,
    zeros_are_holes,
)
from tests.helpers.feature_stores import make_store, noise, rewrite

LENGTHS = [40, 100, 3, 250, 17, 700, 60, 90, 256, 1]
PIECES, LOST = {5: 4}, (6,)
FORMS = {
    "float16": {},
    "float32": {"codec": FLOAT32},
    "bfloat16": {"codec": BFLOAT16, "statistics": ("mean", "std")},
    "int8": {"codec": INT8},
    "frames": {"keep": ("frames",)},
    "pooled": {"keep": ("pooled",), "statistics": ("mean", "max")},
}
ANN = ["utt-0001", "utt-0004", "utt-0005", "utt-0006", "utt-0008"]
"""Of units that keep others, of one that keeps none, in pieces, and quarantined."""


def columns_of(ids=ANN):
    names = [f"utt-{row:04d}" for row in range(len(LENGTHS))]
    return pa.table(
        {
            "speaker": ["ann" if name in ids else f"other-{name}" for name in names],
            "text": [f"spoken by {name}" if name in ids else "words" for name in names],
            "digit": pa.array([i % 4 for i in range(len(LENGTHS))], pa.int64()),
        }
    )


def make(root, **form):
    """Write a store of utterances of ann and of others."""
    columns = form.pop("columns", columns_of())
    make_store(root, LENGTHS, features=noise, pieces=PIECES, lost=LOST, columns=columns, **form)
    return root


@pytest.fixture
def store(tmp_path):
    return make(tmp_path / "store")


class Notes(Observer):
    """Keeps the notes of a run."""

    def __init__(self):
        self.notes = []

    def note(self, line):
        self.notes.append(line)


def files_of(root):
    return {
        path.relative_to(root): path.read_bytes()
        for path in root.rglob("*")
        if path.is_file() and not path.name.startswith("lease")
    }


@pytest.mark.parametrize("form", FORMS)
def test_dropped_utterances_are_gone_from_every_file(form, tmp_path):
    """Their frames, scales, statistics, ids and columns; all else of the others is unchanged.

    That is said of stores of every form, of utterances in pieces and of quarantined ones.
    """
    root = make(tmp_path / "store", **FORMS[form])
    before, layout = survivors(root), layout_of(read_attributes(root))
    pieces = stored_pieces(root) if layout.keeps_frames else {}
    opened = pipeline.open_store(root)
    kept = [
        (name, opened.select(speaker="ann").pooled(statistic=name)) for name in opened.statistics
    ]
    assert "spoken by utt-0006" in texts_of(root)
    done = pipeline.drop(root, where="speaker = 'ann'", confirm=True)
    assert (done.utterances, done.without_features, done.hidden) == (4, 1, 0)
    assert (done.confirmed, done.values) == (True, {"speaker": {"ann": 5}})
    assert survivors(root) == {k: v for k, v in before.items() if k not in ANN}
    checked = verify_store(root)
    assert checked.ok, checked.damages
    assert not checked.orphans
    assert (checked.utterances_ok, checked.utterances_quarantined) == (5, 0)
    planned = read_plan(root).table.to_pylist()
    buried = [row for row in planned if row["id"].startswith("dropped-")]
    assert {(row["n_samples"], row["n_bytes"], row["fingerprint"]) for row in buried} == {(0, 0, 0)}
    assert len(buried) == 8  # one is in four pieces
    text = texts_of(root)
    assert not [word for word in ("ann'", '"ann"', "spoken by", *ANN) if word in text]
    assert "other-utt-0000" in text
    for name, values in pieces.items():
        assert has_frames(root, values) == (name not in ANN)
    for name, values in kept:
        if not (form == "frames" or name in ("first", "last")):
            assert not has_statistics(root, values.numpy().reshape(-1, layout.dim))


def test_without_confirm_nothing_is_changed(store):
    """The result says what would be dropped, also where the store cannot be written."""
    before = files_of(store)
    found = pipeline.drop(store, where="speaker = 'ann' and n_frames > 17")
    assert (found.confirmed, found.utterances, found.examples) == (
        False,
        3,
        ("utt-0001", "utt-0005", "utt-0008"),
    )
    frames = [LENGTHS[row] for row in (1, 5, 8)]
    samples = sum(400 + 320 * (n - 1) for n in frames)
    assert found.audio_seconds == pytest.approx(samples / 16_000, abs=1e-3)
    assert files_of(store) == before
    done = pipeline.drop(store, where="speaker = 'ann' and n_frames > 17", confirm=True)
    assert (done.bytes, done.units) == (found.bytes, found.units)


def test_freed_bytes_are_free(tmp_path):
    """Units of which all is dropped are deleted; elsewhere the frames become holes of the file."""
    lengths = [8000, 100, 8192]
    make_store(tmp_path / "store", lengths, frames_per_unit=8192, layers=(1, 2), dim=16)
    before = sum(p.stat().st_blocks for p in (tmp_path / "store").rglob("*") if p.is_file())
    done = pipeline.drop(tmp_path / "store", ids=["utt-0000", "utt-0002"], confirm=True)
    after = sum(p.stat().st_blocks for p in (tmp_path / "store").rglob("*") if p.is_file())
    shards = list((tmp_path / "store/features.zarr/frames/c").rglob("0"))
    shards = [path for path in shards if path.is_file()]
    assert len(shards) == 2
    layout = layout_of(read_attributes(tmp_path / "store"))
    assert done.bytes == layout.slot_bytes + 8000 * layout.frame_share_bytes
    if all(map(zeros_are_holes, shards)):
        assert (before - after) * 512 > 0.9 * done.bytes


def test_a_unit_that_keeps_others_moves_to_a_new_slot(store):
    """Its old slot is deleted, so that no reader ever gets zeros for a dropped utterance."""
    opened = pipeline.open_store(store)
    opened.read("utt-0000")  # opens the shards of unit 0
    expected = opened.read("utt-0002")
    pipeline.drop(store, ids=["utt-0001"], confirm=True)
    claims = [claim for claim in read_claims(store) if claim.worker == "drop"]
    assert [(claim.unit, claim.slot) for claim in claims] == [(0, read_plan(store).n_units)]
    assert not [p for p in (store / "features.zarr/frames/c").rglob("0/0") if p.is_file()]
    assert opened.read("utt-0002").equal(expected)  # its files are open
    fresh = pipeline.open_store(store)
    assert fresh.read("utt-0002").equal(expected)
    assert fresh.slots[0] == claims[0].slot


def test_an_open_reader_ends_in_an_error_that_says_why(store):
    """If it has not opened the files before; it never returns zeros or a part."""
    opened = pipeline.open_store(store)
    pipeline.drop(store, ids=["utt-0001"], confirm=True)
    for name in ("utt-0000", "utt-0001"):
        with pytest.raises(DamagedError, match=r"missing; .*dropped .*open it again"):
            opened.read(name)
    with pytest.raises(DamagedError, match="open it again"):
        opened.pooled()
    opened.refresh()
    with pytest.raises(UtteranceNotFoundError, match="'utt-0001' was dropped from the store"):
        opened.read("utt-0001")
    assert opened.read("utt-0000").shape[1] == LENGTHS[0]


def test_other_zarr_readers_see_the_same_values(store):
    """zarr-python and tensorstore read survivors from a store with holes and dropped layers."""
    expected = {name: pipeline.open_store(store).read(name).numpy() for name in ("utt-0000",)}
    pipeline.drop(store, ids=["utt-0001"], confirm=True)
    pipeline.drop(store, layers=[2], confirm=True)
    record = pipeline.open_store(store).record("utt-0000")
    start, stop = record["frame_start"], record["frame_start"] + record["n_frames"]
    frames = store / "features.zarr/frames"
    spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(frames)}}
    other = tensorstore.open(spec).result()
    for values in (zarr.open_array(frames, mode="r")[:, start:stop], other[:, start:stop].read()):
        found = values if isinstance(values, np.ndarray) else values.result()
        assert np.array_equal(found[[0, 2]], expected["utt-0000"][[0, 2]])
        assert np.isnan(found[1]).all()


def test_ids_may_be_a_list_or_a_file_and_meet_a_condition(store, tmp_path):
    """As for `copy`; ids that were dropped before are counted, and no mistake."""
    (tmp_path / "ids.txt").write_text("utt-0001\n\nutt-0003\r\nutt-0001\n")
    found = pipeline.drop(store, ids=tmp_path / "ids.txt", where="speaker = 'ann'")
    assert found.examples == ("utt-0001",)
    pipeline.drop(store, ids=tmp_path / "ids.txt", confirm=True)
    assert "utt-0003" not in pipeline.open_store(store)
    before = files_of(store)
    again = pipeline.drop(store, ids=["utt-0001", "utt-0003"], confirm=True)
    assert (again.utterances, again.dropped_before) == (0, 2)
    more = pipeline.drop(store, ids=["utt-0001", "utt-0002"])
    assert (more.utterances, more.dropped_before) == (1, 1)
    assert files_of(store) == before


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({}, ConfigError, "say what to drop"),
        ({"ids": ["utt-0001"], "layers": [1]}, ConfigError, "in two runs"),
        ({"ids": ["utt-0001", "utt-1"]}, ConfigError, r"1 of the 2 ids .*: 'utt-1'; nothing was"),
        ({"ids": []}, ConfigError, "ids has no id"),
        ({"where": "speaker = 'an'"}, ConfigError, r"no utterance of store .*did you mean 'ann'"),
        ({"where": "speeker = 'ann'"}, StoreError, "speeker"),
        ({"where": "speaker = "}, ConfigError, "expected"),
        ({"where": "digit = 'ann'"}, StoreError, "digit"),
        ({"where": "speaker = 'ann'", "ids": ["utt-0000"]}, ConfigError, "none of the utterances"),
        ({"layers": [7]}, ConfigError, r"no layers \[7\] in store .*; it has \[1, 2, 3\]"),
        ({"layers": []}, ConfigError, "names no layers"),
        ({"layers": "1"}, ConfigError, "in a list"),
        ({"layers": [3, 1, 2]}, ConfigError, "are all layers of store .*delete the folder"),
    ],
)
@pytest.mark.parametrize("confirm", [False, True])
def test_bad_input_is_named_and_drops_nothing(store, settings, error, message, confirm):
    """With and without `confirm`."""
    before = files_of(store)
    with pytest.raises(error, match=message):
        pipeline.drop(store, confirm=confirm, **settings)
    assert files_of(store) == before


def test_a_store_that_cannot_be_changed_is_refused(store, tmp_path):
    """No store, a live driver, and arrays that another tool has written again."""
    with pytest.raises(StoreNotFoundError):
        pipeline.drop(tmp_path / "none", layers=[1], confirm=True)
    with Lease(store, "run"), pytest.raises(StoreBusyError, match="is in use by process"):
        pipeline.drop(store, layers=[1], confirm=True)
    with (
        Lease(store, "run", "lease-3.json"),
        pytest.raises(StoreBusyError, match="a share of"),
    ):
        pipeline.drop(store, layers=[1], confirm=True)
    assert pipeline.open_store(store).layers == (1, 2, 3)
    rewrite(store)
    with pytest.raises(StoreError, match="another tool has written"):
        pipeline.drop(store, ids=["utt-0001"], confirm=True)
    assert "utt-0001" in pipeline.open_store(store)
    assert not (store / "dropping.parquet").exists()


def test_an_utterance_that_waits_for_extraction_is_refused(tmp_path):
    """A zombie worker might commit it afterwards; nothing is dropped."""
    root = tmp_path / "store"
    make_store(root, LENGTHS, pieces=PIECES, units=[0, 1, 2], features=noise)
    with pytest.raises(
        StoreError, match=r"1 utterance not extracted completely yet \('utt-0005'\)"
    ):
        pipeline.drop(root, where="id in ('utt-0000', 'utt-0005')", confirm=True)
    with pytest.raises(ConfigError, match="'utt-0009'; they are planned, but not extracted yet"):
        pipeline.drop(root, ids=["utt-0009"], confirm=True)
    assert pipeline.drop(root, ids=["utt-0000"], confirm=True).utterances == 1


def relabelled(root, ids=ANN, removed=3, n=10):
    """Give a store two generations of labels: an utterance is removed, ann is called ann-b."""
    rows = [row for row in range(n) if row != removed]
    speakers = columns_of(ids)["speaker"].take(pa.array(rows)).to_pylist()
    table = pa.table(
        {
            "row": pa.array(rows, pa.int64()),
            "id": [f"utt-{row:04d}" for row in rows],
            "speaker": ["ann-b" if name == "ann" else name for name in speakers],
            "mood": [f"mood-of-{row}" for row in rows],
        }
    )
    columns = [
        {"name": name, "type": "string", "class_names": None} for name in ("speaker", "mood")
    ]
    write_labels(root, Labels(table, tuple(columns), numbered=0))


def test_labels_of_all_generations_lose_them(store):
    """Conditions see the newest labels, and drop what they do not show any more, too."""
    relabelled(store)
    assert pipeline.drop(store, where="speaker = 'ann-b'").utterances == 4
    with pytest.raises(ConfigError, match="no utterance of store"):
        pipeline.drop(store, where="speaker = 'ann'")
    found = pipeline.drop(store, where="id = 'utt-0003'", confirm=True)
    assert (found.utterances, found.hidden) == (1, 1)
    pipeline.drop(store, where="speaker = 'ann-b'", confirm=True)
    assert pipeline.open_store(store).ids == ["utt-0000", "utt-0002", "utt-0007", "utt-0009"]
    assert "utt-0003" not in pipeline.open_store(store, labels=0).ids
    text = texts_of(store)
    assert not [word for word in ("ann-b", "spoken by", "mood-of-5", *ANN) if word in text]
    assert "mood-of-7" in text
    assert verify_store(store).ok


def test_failures_and_log_keep_no_names(store):
    """Errors name files and utterances: those of the units that are touched are removed."""
    failure = WorkerFailure(90, 0, "died", "/audio/ann/1.wav", 1, "utt-0001", "run", "now")
    record_failure(store, failure)
    record_failure(
        store, WorkerFailure(91, 0, "failed", "/audio/ann/4.wav", None, None, "run", "now")
    )
    record_failure(store, WorkerFailure(92, 0, "died", "SIGSEGV", 0, "utt-0000", "run", "now"))
    set_log(
        store,
        {"event": "unit_failed", "unit": 0, "slot": 0, "cause": "x", "error": "/audio/ann/1.wav"},
        {"event": "unit_taken_back", "unit": 0, "problems": ["layer of utterance 'utt-0001'"]},
        {"event": "unit_failed", "unit": 9, "slot": 0, "cause": "x", "error": "of another unit"},
    )
    with (store / "log.jsonl").open("a") as file:
        file.write('{"cut short": "/audio/ann')
    pipeline.drop(store, ids=["utt-0001"], confirm=True)
    text = texts_of(store)
    assert "/audio/ann" not in text
    assert "utt-0001" not in text
    assert "of another unit" in text
    kept = json.loads((store / "ledger/slot-92.died.json").read_text())
    assert (kept["id"], kept["detail"]) == ("utt-0000", "SIGSEGV")
    assert json.loads((store / "ledger/slot-90.died.json").read_text())["position"] == 1
    assert [json.loads(line)["event"] for line in (store / "log.jsonl").read_text().splitlines()][
        -1
    ] == "dropped"


@pytest.mark.parametrize("form", FORMS)
def test_dropped_layers_are_gone(form, tmp_path):
    """Their shards are deleted, their statistics and scales cleared; others stay as they are."""
    root = make(tmp_path / "store", **FORMS[form])
    opened = pipeline.open_store(root)
    keeps = opened.keeps_frames
    expected = [opened.read(name)[[0, 2]] for name in opened.ids] if keeps else []
    pooled = opened.pooled()
    pieces = stored_pieces(root)["utt-0003"] if keeps else []
    gone = [(values[1:2], scales[1:2]) for values, scales in pieces]
    done = pipeline.drop(root, layers=[2], confirm=True)
    assert done.layers == (2,)
    found = pipeline.open_store(root)
    assert found.layers == (1, 3)
    if keeps:
        assert all(found.read(n).equal(e) for n, e in zip(found.ids, expected, strict=True))
        assert not has_frames(root, gone)
        total = found.weighted_sum("utt-0003", [0.5, 2.0])
        assert total.equal(opened.weighted_sum("utt-0003", [0.5, 0.0, 2.0]))
    assert found.pooled().equal(pooled[:, [0, 2]])
    if form != "frames":
        assert not has_statistics(root, pooled[:, 1].numpy())
    message = r"no layers \[2\] in the store; it has \[1, 3\] \(layers \[2\] were dropped\)"
    with pytest.raises(StoreError, match=message):
        found.read(0, layers=[2]) if keeps else found.pooled(layers=[2])
    checked = verify_store(root)
    assert checked.ok, checked.damages
    assert not checked.orphans
    assert pipeline.drop(root, layers=[2], confirm=True).layers == ()  # again
    with pytest.raises(ConfigError, match="are all layers"):
        pipeline.drop(root, layers=[1, 3])


def test_readers_of_earlier_versions_refuse_a_dropped_store(store):
    """The format version becomes 3; labels are stated, which version 2 implied."""
    before = read_attributes(store)
    assert before["format_version"] == 1
    pipeline.drop(store, ids=["utt-0001"], confirm=True)
    after = read_attributes(store)
    assert (after["format_version"], after["has_labels"]) == (3, False)
    assert after["identity"] == before["identity"]
    relabelled(store)
    assert read_attributes(store)["format_version"] == 3


def test_a_store_without_a_drop_is_byte_identical(tmp_path, store):
    """A dry run and refusals leave it so; nothing of a drop is in a new store."""
    other = make(tmp_path / "other")
    pipeline.drop(store, ids=["utt-0001"])
    assert files_of(store).keys() == files_of(other).keys()
    assert b"dropped" not in (store / "features.zarr/zarr.json").read_bytes()
    assert layout_of(read_attributes(store)).dropped_layers == ()


@pytest.mark.parametrize("form", ["float16", "int8"])
def test_copies_and_sums_of_a_dropped_store(form, tmp_path):
    """`copy` has what is left; `collapse` sums what is left, and grows with its parent."""
    root = make(tmp_path / "store", **FORMS[form])
    pipeline.drop(root, where="speaker = 'ann'", confirm=True)
    pipeline.drop(root, layers=[1], confirm=True)
    left = pipeline.open_store(root)
    copy_stores(root, tmp_path / "copy")
    copied = pipeline.open_store(tmp_path / "copy")
    assert (copied.ids, copied.layers) == (left.ids, (2, 3))
    assert all(copied.read(name).equal(left.read(name)) for name in left.ids)
    assert copied.attributes["format_version"] == (1 if form == "float16" else 2)
    with pytest.raises(ConfigError, match=r"no layers \[1\] in store .*; it has \[2, 3\]"):
        copy_stores(root, tmp_path / "none", CopySettings(layers=[1]))
    collapse(root, tmp_path / "sum", [0.25, 0.75])
    summed = pipeline.open_store(tmp_path / "sum")
    assert summed.ids == left.ids
    for name in left.ids:
        expected = left.weighted_sum(name, [0.25, 0.75])
        assert summed.read(name)[0].float().sub(expected).abs().max() < 0.05
    for made in ("copy", "sum"):
        checked = verify_store(tmp_path / made)
        assert checked.ok, checked.damages
        assert not [word for word in ANN if word in texts_of(tmp_path / made)]


def test_several_stores_as_one(tmp_path):
    """Dropped utterances are missing there, too; stores must lack the same layers."""
    paths = [make(tmp_path / name) for name in ("one", "two")]
    for path in paths:
        pipeline.drop(path, where="speaker = 'ann'", confirm=True)
    joined = pipeline.open_store(paths, prefix=True)
    assert len(joined) == 10
    alone = pipeline.open_store(paths[1]).read("utt-0003")
    assert joined.read("two/utt-0003").equal(alone)
    pipeline.drop(paths[0], layers=[3], confirm=True)
    with pytest.raises(IdentityError, match=r"dropped_layers.* is \[3\] there, \[\] here"):
        pipeline.open_store(paths, prefix=True)
    pipeline.drop(paths[1], layers=[3], confirm=True)
    joined = pipeline.open_store(paths, prefix=True)
    assert joined.layers == (1, 2)
    assert joined.read("two/utt-0003").equal(alone[:2])


def test_a_drop_in_memory(tmp_path):
    """Nothing depends on a file system."""
    root, memory = make(tmp_path / "store"), MemoryBackend()
    for path in root.rglob("*"):
        if path.is_file():
            memory.put(str(path.relative_to(root)), [path.read_bytes()])
    pipeline.drop(memory, where="speaker = 'ann'", confirm=True)
    assert pipeline.open_store(memory).ids == [
        "utt-0000",
        "utt-0002",
        "utt-0003",
        "utt-0007",
        "utt-0009",
    ]
    assert verify_store(memory).ok


def test_a_damaged_unit_is_revoked_instead(store):
    """It cannot be written anew; the plan leaves the utterance out when the unit is done again."""
    before = survivors(store)
    shard = store / "features.zarr/frames/c/1/0/0"
    shard.unlink()
    notes = Notes()
    pipeline.drop(store, ids=["utt-0001"], confirm=True, observer=notes)
    assert any("unit 0 is damaged" in note for note in notes.notes)
    assert not (store / "index/unit-0.parquet").exists()
    assert "utt-0001" not in texts_of(store)
    checked = verify_store(store)
    assert checked.ok, checked.damages
    unit = {"utt-0000", "utt-0001", "utt-0002"}
    assert survivors(store) == {k: v for k, v in before.items() if k not in unit}


def test_damage_of_others_stays_visible(store):
    """A unit is copied as it is, with its checksums: `verify` and a repair work as before."""
    shard = store / "features.zarr/frames/c/1/0/0"
    raw = bytearray(shard.read_bytes())
    raw[10] ^= 1  # in utterance 0
    shard.write_bytes(raw)
    pipeline.drop(store, ids=["utt-0001"], confirm=True)
    problems = [damage.problem for damage in verify_store(store).damages]
    assert any("utterance 'utt-0000' has a wrong checksum" in problem for problem in problems)
    repair_store(store)
    assert "utt-0001" not in texts_of(store)
    assert verify_store(store).ok


def edited(root, unit, change):
    """Change rows of an index file."""
    path = root / f"index/unit-{unit}.parquet"
    table = pq.read_table(path, partitioning=None)
    rows = table.to_pylist()
    change(rows)
    schema = table.schema.remove_metadata()
    path.write_bytes(parquet_bytes(pa.Table.from_pylist(rows, schema=schema)))


@pytest.mark.parametrize("left", ["speaker", "frames", "statistics", "scales", "status", "crc32c"])
def test_verify_notices_what_is_left(left, tmp_path):
    """Of a dropped utterance: a column, frames, statistics, scales, a status or checksums."""
    root = make(tmp_path / "store", codec=INT8)
    pipeline.drop(root, ids=["utt-0001"], confirm=True)
    layout = layout_of(read_attributes(root))
    slot = read_plan(root).n_units
    key = {
        "frames": layout.shard_key(0, slot),
        "statistics": layout.pooled_key(slot),
        "scales": layout.scale_key(slot),
    }.get(left)
    if key is not None:
        raw = bytearray((root / key).read_bytes())
        at = LENGTHS[0] * layout.frame_bytes
        if left != "frames":
            at = 4 * layout.dim * layout.n_layers * (1 if left == "statistics" else 2)
            raw[at : at + 4] = bytes(4)
            raw[-4:] = crc32c(bytes(raw[:-4])).to_bytes(4, "little")
        else:
            raw[at] = 1
        (root / key).write_bytes(raw)
    elif left == "status":
        edited(root, 0, lambda rows: rows[1].update(status="quarantined", reason="gone"))
    else:
        value = "ann" if left == "speaker" else [1, 2, 3]
        edited(root, 0, lambda rows: rows[1].update({left: value}))
    problems = [damage.problem for damage in verify_store(root).damages]
    assert any("dropped" in problem for problem in problems), problems


def test_status_and_inspect_count_them(store):
    """They are not among the utterances of the plan any more."""
    pipeline.drop(store, where="speaker = 'ann'", confirm=True)
    status = read_status(store)
    assert (status.utterances_total, status.utterances_ok) == (5, 5)
    assert (status.utterances_dropped, status.utterances_quarantined) == (5, 0)


def test_tombstones():
    """The hash of an id; that of a tombstone is itself."""
    name = tombstone_of("ann/1.wav")
    assert name.startswith("dropped-")
    assert len(name) == 72
    assert tombstone_of(name) == name
    assert tombstone_of("dropped-abc") != "dropped-abc"
