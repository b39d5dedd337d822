"""Export: what every format promises, whatever its files look like."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import signal
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import pipeline
from pipeline.errors import (
    ConfigError,
    DamagedError,
    IdentityError,
    NoSpaceError,
    StoreBusyError,
    StoreError,
)
from pipeline.events import Observer
from pipeline.store.backend import local
from pipeline.store.maintain.verify import verify_store
from pipeline.transforms.export import names, run
from pipeline.transforms.export.reading import plan_parts
from pipeline.transforms.export.run import FORMATS
from pipeline.transforms.export.state import ExportRecord
from tests.helpers.feature_stores import commit_units, default_columns, make_store, noise
from tests.helpers.forked import Forked

LENGTHS = [40, 100, 3, 250, 17, 700, 60, 90, 256, 1]
ODD = [
    "../../escape",
    "/etc/passwd",
    "a/b/c.d",
    "..",
    ".",
    "white \t space\n",
    "é" * 40 + "語",
    "x" * 5000,
    "x" * 4999 + "y",
    "%2F~100%",
]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A store of three layers, with a long utterance in pieces and a quarantined one."""
    path = tmp_path_factory.mktemp("export") / "store"
    make_store(path, LENGTHS, features=noise, pieces={5: 4}, lost=(6,))
    return path


@pytest.fixture
def small_parts(monkeypatch):
    """Cut exports into parts of two utterances, and these into chunks of one."""
    for kind in FORMATS.values():
        monkeypatch.setattr(kind, "part_utterances", 2)
    monkeypatch.setattr(run, "CHUNK_BYTES", 1)


def manifest(out):
    """Return the lines of the index."""
    return [json.loads(line) for line in Path(out, "manifest.jsonl").read_text().splitlines()]


def content(out, without=("lock",)):
    """Return the hash of every file of an export."""
    return {
        path.relative_to(out).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in out.rglob("*")
        if path.is_file() and path.name not in without
    }


every_format = pytest.mark.parametrize("kind", sorted(FORMATS))


@every_format
def test_everything_selected_is_listed(kind, root, tmp_path):
    """In the order of the store, also through a selection; quarantined utterances are left out."""
    store = pipeline.open_store(root)
    done = pipeline.export(root, tmp_path / "all", kind, layers=[2])
    assert [entry["id"] for entry in manifest(tmp_path / "all")] == store.ids
    assert (done.utterances, done.utterances_written) == (9, 9)
    where = "speaker in ('speaker-0', 'speaker-1') and n_frames > 50"
    some = store.select(where)
    pipeline.export(root, tmp_path / "some", kind, layers=[2], where=where)
    assert [entry["id"] for entry in manifest(tmp_path / "some")] == some.ids
    for entry in manifest(tmp_path / "some"):
        assert entry["n_frames"] == some.n_frames(entry["id"])
        assert (tmp_path / "some" / entry["path"].partition(":")[0]).is_file()
    pipeline.export(some, tmp_path / "view", kind, layers=[2])
    left_out = ("lock", "export.json", "feats.scp")  # with the condition, and with the path
    assert content(tmp_path / "view", left_out) == content(tmp_path / "some", left_out)


def test_several_stores_are_exported_as_one(tmp_path):
    """With the ids of the joined store; a folder inside any of the stores is refused."""
    for name in ("a", "b"):
        make_store(tmp_path / name, [9, 8, 7], features=noise)
    store = pipeline.open_store([tmp_path / "a", tmp_path / "b"], prefix=True)
    done = pipeline.export(store, tmp_path / "out", "npy", layers=[2])
    assert done.utterances == 6
    for entry in manifest(tmp_path / "out"):
        values = np.load(tmp_path / "out" / entry["path"])
        assert np.array_equal(values, store.read(entry["id"], [2])[0].numpy())
    assert [entry["id"] for entry in manifest(tmp_path / "out")] == store.ids
    with pytest.raises(ConfigError, match="is inside the store"):
        pipeline.export(store, tmp_path / "b/out", "npy")


@every_format
def test_ids_are_data(kind, tmp_path):
    """Whatever is in an id, nothing is written outside of the folder, and every id is found."""
    make_store(tmp_path / "in" / "store", [5] * len(ODD), ids=ODD, features=noise)
    before = content(tmp_path)
    pipeline.export(tmp_path / "in" / "store", tmp_path / "in" / "out", kind, layers=[1])
    assert [entry["id"] for entry in manifest(tmp_path / "in" / "out")] == ODD
    after = content(tmp_path)
    assert {path for path in after if path not in before and "in/out/" not in path} == set()
    assert max(len(Path(path).name.encode()) for path in after) < 200
    if kind == "npy":
        store = pipeline.open_store(tmp_path / "in" / "store")
        for entry in manifest(tmp_path / "in" / "out"):
            found = np.load(tmp_path / "in" / "out" / entry["path"])
            assert np.array_equal(found, store.read(entry["id"], [1])[0].numpy())


def test_names_differ_in_more_than_upper_and_lower_case(tmp_path):
    """Some file systems take Ann and ann for one file."""
    ids = ["Ann", "ann", "bob", "é", "É"]
    make_store(tmp_path / "store", [5] * 5, ids=ids, features=noise)
    pipeline.export(tmp_path / "store", tmp_path / "out", "npy", layers=[1])
    paths = {entry["id"]: entry["path"] for entry in manifest(tmp_path / "out")}
    assert len({path.lower() for path in paths.values()}) == len(ids)
    assert paths["bob"] == "00000/bob.npy"
    assert paths["Ann"].startswith("00000/Ann~")


@every_format
def test_an_interrupted_export_ends_with_the_same_bytes(
    kind, root, tmp_path, monkeypatch, small_parts
):
    """Stopped in its third part: only this part and the rest are written by the next run."""
    pipeline.export(root, tmp_path / "whole", kind)
    out = tmp_path / "out"
    real = ExportRecord.complete_part

    def dies(self, part, entries):
        if part == 2:
            raise KeyboardInterrupt
        real(self, part, entries)

    monkeypatch.setattr(ExportRecord, "complete_part", dies)
    with pytest.raises(KeyboardInterrupt):
        pipeline.export(root, out, kind)
    assert not (out / "manifest.jsonl").exists()
    assert not json.loads((out / "export.json").read_text())["complete"]
    monkeypatch.setattr(ExportRecord, "complete_part", real)
    done = pipeline.export(root, out, kind)
    assert done.utterances_written == 9 - 4
    scp = ("lock", "feats.scp")  # has the path of the folder
    assert content(out, scp) == content(tmp_path / "whole", scp)
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.name != "lock"}
    again = pipeline.export(root, out, kind)
    assert again.utterances_written == 0
    assert {p: p.stat().st_mtime_ns for p in out.rglob("*") if p.name != "lock"} == before


KILLED = """
import os, signal, sys
from pipeline import files
from pipeline.transforms.export import run
for kind in run.FORMATS.values():
    kind.part_utterances = 2
real, calls = files.PartialFile.write, []
def write(self, data, offset):
    calls.append(offset)
    if len(calls) == int(sys.argv[4]):
        real(self, data[: len(data) // 2], offset)
        os.kill(os.getpid(), signal.SIGKILL)
    real(self, data, offset)
files.PartialFile.write = write
run.export(sys.argv[1], sys.argv[2], sys.argv[3])
"""


@pytest.mark.slow
def test_a_killed_export_is_resumed(root, tmp_path, monkeypatch):
    """SIGKILL in the middle of a write: what is left of it never counts, and is removed."""
    kind, n_writes = "webdataset", 36
    for each in FORMATS.values():
        monkeypatch.setattr(each, "part_utterances", 2)
    pipeline.export(root, tmp_path / "whole", kind)
    out = tmp_path / "out"
    process = Forked(KILLED, root, out, kind, n_writes)
    assert process.wait(60) == -signal.SIGKILL, process.communicate()
    assert [path for path in content(out) if path.endswith(".partial")]
    n_parts = len(list((out / ".strata-export").glob("part-*")))
    assert n_parts == 2
    resumed = pipeline.export(root, out, kind)
    assert resumed.utterances_written == 9 - 2 * n_parts
    assert content(out) == content(tmp_path / "whole")


@every_format
def test_another_export_in_the_folder_is_refused(kind, root, tmp_path):
    """With the difference: format, layers, condition, dtype, other utterances."""
    out = tmp_path / "out"
    pipeline.export(root, out, kind, layers=[2])
    before = content(out)
    other = "npy" if kind != "npy" else "hf"
    with pytest.raises(IdentityError, match=rf"format is {kind} there, {other} here"):
        pipeline.export(root, out, other, layers=[2])
    with pytest.raises(IdentityError, match=r"layers is \[2\] there, \[1\] here"):
        pipeline.export(root, out, kind, layers=[1])
    with pytest.raises(IdentityError, match=r"where is None there, n_frames > 5 here"):
        pipeline.export(root, out, kind, layers=[2], where="n_frames > 5")
    with pytest.raises(IdentityError, match=r"pooled is False there, True here"):
        pipeline.export(root, out, kind, layers=[2], pooled=True)
    with pytest.raises(
        IdentityError, match=r"pooled is False there, True here; .*pooling is nothing there"
    ):
        pipeline.export(root, out, kind, layers=[2], pooled=True, pooling=["mean", "max"])
    with pytest.raises(IdentityError, match=r"utterances is 9 there, 4 here"):
        pipeline.export(pipeline.open_store(root).take(range(4)), out, kind, layers=[2])
    assert content(out) == before


def test_a_store_with_other_content_is_refused(root, tmp_path):
    """As many utterances of the same names, but with other labels or features."""
    pipeline.export(root, tmp_path / "out", "npy", layers=[2])
    columns = default_columns(len(LENGTHS)).set_column(0, "speaker", [["z"] * len(LENGTHS)])
    make_store(tmp_path / "labels", LENGTHS, pieces={5: 4}, lost=(6,), columns=columns)
    with pytest.raises(IdentityError, match="columns_sha256"):
        pipeline.export(tmp_path / "labels", tmp_path / "out", "npy", layers=[2])


@every_format
def test_damage_is_not_exported(kind, tmp_path, small_parts):
    """A flipped bit ends the export with the utterance's name; its part does not count."""
    make_store(tmp_path / "store", [200, 200, 200, 200], features=noise, frames_per_unit=512)
    shard = tmp_path / "store" / "features.zarr/frames/c/1/1/0"
    raw = bytearray(shard.read_bytes())
    raw[5] ^= 1
    shard.write_bytes(raw)
    with pytest.raises(DamagedError, match=r"'utt-0002' has a wrong checksum.*c/1/1/0"):
        pipeline.export(tmp_path / "store", tmp_path / "out", kind)
    assert [p.name for p in (tmp_path / "out" / ".strata-export").glob("part-*")] == [
        "part-000000.jsonl"
    ]
    assert not [path for path in content(tmp_path / "out") if path.endswith(".partial")]
    pipeline.export(tmp_path / "store", tmp_path / "layer", kind, layers=[1])  # a sound layer


def test_damaged_means_are_not_exported(tmp_path):
    """Files of means are compared with their checksums."""
    make_store(tmp_path / "store", [20, 30])
    chunk = tmp_path / "store" / "features.zarr/pooled/c/0/0/0/0"
    raw = bytearray(chunk.read_bytes())
    raw[9] ^= 1
    chunk.write_bytes(raw)
    with pytest.raises(DamagedError, match="pooled"):
        pipeline.export(tmp_path / "store", tmp_path / "out", "npy", pooled=True)


def test_sound_means_of_another_unit_are_not_exported(tmp_path):
    """A store without frames has their checksums in its index, too."""
    make_store(tmp_path / "store", [200, 200], features=noise, keep=("pooled",))
    first, second = (tmp_path / f"store/features.zarr/pooled/c/{i}/0/0/0" for i in range(2))
    first.write_bytes(second.read_bytes())
    with pytest.raises(DamagedError, match="utt-0000"):
        pipeline.export(tmp_path / "store", tmp_path / "out", "npy", pooled=True)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"format": "npz"}, ConfigError, r"'npz'; did you mean npy\?.*npy, safetensors, kaldi"),
        ({"format": "lance"}, ConfigError, r"formats are npy, safetensors, kaldi, webdataset, hf"),
        ({"layers": [2, 9]}, StoreError, r"no layers \[9\] in the store; it has \[1, 2, 3\]"),
        ({"layers": []}, StoreError, r"layers=\[\] names no layers; expected some of \[1, 2, 3\]"),
        ({"pooling": ["std"]}, ConfigError, r"pooling=\['std'\] .*set pooled=true as well"),
        (
            {"pooled": True, "pooling": ["men"]},
            ConfigError,
            r"\['men'\]; expected a list of mean, st",
        ),
        ({"pooled": True, "pooling": []}, ConfigError, r"pooling is \[\]; expected a list of mean"),
        ({"pooled": True, "pooling": ["std"] * 2}, ConfigError, r"each at most once"),
        ({"layers": [2, 2]}, ConfigError, r"\[2, 2\] has a layer twice"),
        ({"where": "speaker = 'nobody'"}, StoreError, r"none of the 9 utterances.*; there are sp"),
        ({"where": "speeker = 'ann'"}, StoreError, r"did you mean speaker\?"),
        ({"where": "speaker in"}, ConfigError, "cannot be read at its end"),
        ({"dtype": "float64"}, ConfigError, "dtype is 'float64'; expected float16 or float32"),
        ({"format": "kaldi", "dtype": "float16"}, ConfigError, "kaldi cannot hold dtype=float16"),
        ({"shard_mb": 0}, ConfigError, "shard_mb is 0"),
    ],
)
def test_bad_settings_are_refused(settings, error, message, root, tmp_path):
    """Before anything is written."""
    with pytest.raises(error, match=message):
        pipeline.export(root, tmp_path / "out", **({"format": "npy"} | settings))
    assert not (tmp_path / "out").exists()


def test_a_store_without_utterances_is_refused(tmp_path):
    """There is nothing to export yet."""
    make_store(tmp_path / "store", [5, 6], units=[])
    with pytest.raises(StoreError, match="no committed utterances"):
        pipeline.export(tmp_path / "store", tmp_path / "out", "npy")


def test_the_folder_must_be_new(root, tmp_path):
    """Not one with other content, and neither in the store nor around it; links are followed."""
    out = tmp_path / "notes"
    out.mkdir()
    (out / "todo.txt").write_text("x")
    with pytest.raises(StoreError, match=r"not empty and holds no export, but todo\.txt"):
        pipeline.export(root, out, "npy")
    assert content(out).keys() == {"todo.txt"}
    (out / "todo.txt").rename(tmp_path / "file")
    with pytest.raises(StoreError, match=r"file.* cannot be written"):
        pipeline.export(root, tmp_path / "file", "npy")
    with pytest.raises(ConfigError, match="into itself"):
        pipeline.export(root, root, "npy")
    with pytest.raises(ConfigError, match="inside the store"):
        pipeline.export(root, root / "npy", "npy")
    with pytest.raises(ConfigError, match="contains the store"):
        pipeline.export(root, root.parent, "npy")
    (tmp_path / "link").symlink_to(root)
    with pytest.raises(ConfigError, match="inside the store"):
        pipeline.export(root, tmp_path / "link" / "npy", "npy")
    assert verify_store(root).ok
    pipeline.export(root, out, "npy")  # an empty folder will do


def test_a_damaged_record_is_named(root, tmp_path):
    """And is not taken for a new folder."""
    pipeline.export(root, tmp_path / "out", "npy")
    (tmp_path / "out" / "export.json").write_text("{")
    with pytest.raises(DamagedError, match=r"export\.json is not the record of an export"):
        pipeline.export(root, tmp_path / "out", "npy")
    (tmp_path / "out" / "export.json").write_text('{"version": 99, "settings": {}}')
    with pytest.raises(StoreError, match="newer version"):
        pipeline.export(root, tmp_path / "out", "npy")


def test_one_process_at_a_time_and_room_on_the_disk(root, tmp_path, monkeypatch):
    """A second process is refused, and so is an export that does not fit."""
    backend = local.LocalBackend(tmp_path / "out")
    with ExportRecord(backend).held(), pytest.raises(StoreBusyError, match="another process"):
        pipeline.export(root, tmp_path / "out", "npy")
    usage = type("Usage", (), {"free": 10, "total": 100})
    monkeypatch.setattr(local.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(NoSpaceError, match="GB are needed"):
        pipeline.export(root, tmp_path / "out", "npy")


@every_format
def test_a_full_disk_leaves_nothing_half_made(kind, root, tmp_path, monkeypatch, small_parts):
    """The error says what to do; when there is room again, the export is completed."""
    pipeline.export(root, tmp_path / "whole", kind, layers=[2])
    real, written = os.pwrite, []

    def full(descriptor, data, offset):
        written.append(len(data))
        if sum(written) > 9000:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(descriptor, data, offset)

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(NoSpaceError, match="make room and run the same command again"):
        pipeline.export(root, tmp_path / "out", kind, layers=[2])
    assert not [path for path in content(tmp_path / "out") if path.endswith(".partial")]
    assert not (tmp_path / "out" / "manifest.jsonl").exists()
    monkeypatch.setattr(os, "pwrite", real)
    done = pipeline.export(root, tmp_path / "out", kind, layers=[2])
    assert 0 < done.utterances_written < 9
    scp = ("lock", "feats.scp")  # has the path of the folder
    assert content(tmp_path / "out", scp) == content(tmp_path / "whole", scp)


def test_values_that_no_utterance_has_are_noted(root, tmp_path):
    """The observer gets the warning; without one it is a Python warning."""
    notes = []

    class Watcher(Observer):
        def note(self, line):
            notes.append(line)

    where = "speaker in ('speaker-0', 'speker-1')"
    pipeline.export(root, tmp_path / "a", "hf", where=where, observer=Watcher())
    assert len(notes) == 1
    assert notes[0].startswith("WARNING: ")
    assert "'speker-1'; did you mean" in notes[0]
    with pytest.warns(UserWarning, match="'speker-1'; did you mean"):
        pipeline.export(root, tmp_path / "b", "hf", where=where)


def test_progress_is_reported(root, tmp_path, monkeypatch, small_parts):
    """From what earlier runs have exported to all."""
    seen, stop = [], [4]

    class Watcher(Observer):
        def utterances_exported(self, done, total):
            seen.append((done, total))
            if done in stop:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pipeline.export(root, tmp_path / "out", "hf", observer=Watcher())
    assert seen == [(0, 9), (2, 9), (4, 9)]
    seen.clear()
    stop.clear()
    pipeline.export(root, tmp_path / "out", "hf", observer=Watcher())
    assert seen == [(4, 9), (6, 9), (8, 9), (9, 9)]


def test_a_value_beyond_the_dtype_is_refused(root, tmp_path, monkeypatch):
    """Not written as infinity: the message has the utterance and the dtype that holds it."""
    real = pipeline.FeatureStore.read_many

    def wide(self, *args, **kwargs):
        found = [values.float() for values in real(self, *args, **kwargs)]
        found[-1][0, 0, 0] = 1e6
        return found

    monkeypatch.setattr(pipeline.FeatureStore, "read_many", wide)
    with pytest.raises(StoreError, match=r"'utt-0009' has values beyond 65504.*dtype=float32"):
        pipeline.export(root, tmp_path / "out", "npy", dtype="float16")
    pipeline.export(root, tmp_path / "wide", "npy", dtype="float32")


def test_a_growing_store_is_another_export(tmp_path):
    """Units that were committed since are not mixed into it."""
    lengths = [200, 200, 200]
    plan = make_store(tmp_path / "store", lengths, units=[0])
    pipeline.export(tmp_path / "store", tmp_path / "out", "npy")
    layout = pipeline.open_store(tmp_path / "store")._layout
    commit_units(tmp_path / "store", plan, layout, default_columns(3), units=[1, 2])
    with pytest.raises(IdentityError, match="utterances is 1 there, 3 here"):
        pipeline.export(tmp_path / "store", tmp_path / "out", "npy")


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 50), min_size=1, max_size=40), st.integers(1, 80), st.integers(1, 9))
def test_parts_cover_every_utterance_once(sizes, max_bytes, max_utterances):
    """In order; no part and no chunk is larger than it may be, unless it is one utterance."""
    parts = plan_parts(sizes, max_bytes, max_utterances, max(1, max_bytes // 3))
    chunks = [chunk for part in parts for chunk in part.chunks]
    assert [i for start, stop in chunks for i in range(start, stop)] == list(range(len(sizes)))
    assert [part.number for part in parts] == list(range(len(parts)))
    for part in parts:
        start = part.chunks[0][0]
        total = sum(sizes[start : start + part.n_utterances])
        assert part.n_utterances == 1 or total <= max_bytes
        assert part.n_utterances <= max_utterances


@settings(max_examples=100, deadline=None)
@given(st.lists(st.text(max_size=80) | st.sampled_from(ODD), min_size=1, max_size=5))
def test_names_are_safe_and_reversible(ids):
    """Only some ASCII characters, never too long, different for different ids."""
    found = [names.encoded(name) for name in ids]
    for name, text in zip(ids, found, strict=True):
        assert text
        assert len(text) <= names.MAX_BYTES
        assert set(text) <= set("%-_~") | {c for c in text if c.isascii() and c.isalnum()}
        assert names.decoded(text) in (name, None)
        assert names.decoded(text) == name or not name or len(name.encode()) * 3 > names.MAX_BYTES
        word = names.key(name)
        assert len(f"{word} x".split()) == 1 + bool(name)
    assert len(set(found)) == len(set(ids))
    assert len({names.key(name) for name in ids}) == len(set(ids))
