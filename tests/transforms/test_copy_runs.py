"""Runs of a copy: refusals, interruptions, full disks and damage. Nothing half-made is visible."""

from __future__ import annotations

import os
import shutil
import signal

import pytest

import pipeline
from pipeline.errors import (
    ConfigError,
    DamagedError,
    IdentityError,
    NoSpaceError,
    StoreBusyError,
    StoreError,
    StoreNotFoundError,
)
from pipeline.events import Observer
from pipeline.store.backend import local
from pipeline.store.coordination.lease import Lease
from pipeline.store.format.codecs import FLOAT32, INT8
from pipeline.store.maintain.repair import repair_store
from pipeline.store.maintain.verify import verify_store
from pipeline.store.write.slot import SlotWriter
from pipeline.transforms.copy import CopySettings, copy_stores
from tests.helpers.copied_stores import everything, units_of
from tests.helpers.feature_stores import commit_units, default_columns, make_store, noise
from tests.helpers.forked import Forked

LENGTHS = [40, 100, 3, 250, 17, 700, 60, 90, 256, 1]


@pytest.fixture
def source(tmp_path):
    make_store(tmp_path / "source", LENGTHS, features=noise, pieces={5: 4}, lost=(6,))
    return tmp_path / "source"


class Notes(Observer):
    """Keeps the notes of a run."""

    def __init__(self):
        self.notes = []

    def note(self, line):
        self.notes.append(line)


class Interrupted(Observer):
    """Ends a run after some units."""

    def __init__(self, n_units):
        self.left = n_units

    def unit_committed(self, report):
        self.left -= 1
        if not self.left:
            raise KeyboardInterrupt


def files_of(root):
    return {path: path.stat().st_mtime_ns for path in root.rglob("*") if path.is_file()}


def test_an_interrupted_copy_goes_on(source, tmp_path, monkeypatch):
    """Only the missing units are read again. Until it is complete there is nothing at its place.

    The features and index rows of every unit are those of an uninterrupted copy.
    """
    settings = CopySettings(dtype="int8", frames_per_unit=256)
    whole = copy_stores(source, tmp_path / "whole", settings)
    with pytest.raises(KeyboardInterrupt):
        copy_stores(source, tmp_path / "out", settings, Interrupted(2))
    assert not (tmp_path / "out").exists()
    assert len(list((tmp_path / "out.copying/index").iterdir())) == 2
    written = []
    real = SlotWriter.commit

    def counted(writer, index):
        written.append(writer)
        return real(writer, index)

    monkeypatch.setattr(SlotWriter, "commit", counted)
    done = copy_stores(source, tmp_path / "out", settings)
    assert len(written) == done.units - 2
    assert not (tmp_path / "out.copying").exists()
    assert units_of(tmp_path / "out") == units_of(tmp_path / "whole")
    assert everything(tmp_path / "out") == everything(tmp_path / "whole")
    assert verify_store(tmp_path / "out").ok
    assert (done.utterances, done.frames) == (whole.utterances, whole.frames)


KILLED = """
import os, signal, sys
from pipeline.events import Observer
from pipeline.transforms.copy import CopySettings, copy_stores
from pipeline.store.write.slot import SlotWriter
n_left = int(sys.argv[3])
real = SlotWriter.commit
def commit(writer, index):
    global n_left
    n_left -= 1
    if not n_left:
        writer.publish()
        os.kill(os.getpid(), signal.SIGKILL)
    return real(writer, index)
SlotWriter.commit = commit
copy_stores([sys.argv[1]], sys.argv[2], CopySettings(pooling=["std"]))
"""


@pytest.mark.slow
def test_a_copy_that_is_killed_ends_with_the_same_bytes(source, tmp_path):
    """SIGKILL in the third unit, when its shards are published and it is not committed."""
    settings = CopySettings(pooling=["std"])
    copy_stores(source, tmp_path / "whole", settings)
    process = Forked(KILLED, source, tmp_path / "out", 3)
    assert process.wait(60) == -signal.SIGKILL, process.communicate()
    assert not (tmp_path / "out").exists()
    copy_stores(source, tmp_path / "out", settings)
    assert units_of(tmp_path / "out") == units_of(tmp_path / "whole")
    checked = verify_store(tmp_path / "out")
    assert checked.ok, checked.damages
    assert not checked.orphans
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "source", "whole"]


def test_a_finished_copy_is_left_as_it_is(source, tmp_path):
    """The same command writes nothing and says so."""
    first = copy_stores(source, tmp_path / "out")
    before, notes = files_of(tmp_path / "out"), Notes()
    again = copy_stores(source, tmp_path / "out", observer=notes)
    assert files_of(tmp_path / "out") == before
    assert notes.notes == [f"{tmp_path / 'out'} is complete already; nothing to do"]
    assert (again.utterances, again.bytes) == (first.utterances, first.bytes)


def test_units_that_a_repair_has_revoked_are_copied_again(source, tmp_path):
    """In place: the rest of the copy stays readable."""
    copy_stores(source, tmp_path / "whole")
    copy_stores(source, tmp_path / "out")
    shard = next((tmp_path / "out/features.zarr/frames/c/1/1").iterdir())
    shard.write_bytes(bytes(10))
    repair_store(tmp_path / "out")
    assert len(pipeline.open_store(tmp_path / "out")) < len(pipeline.open_store(tmp_path / "whole"))
    copy_stores(source, tmp_path / "out")
    assert units_of(tmp_path / "out") == units_of(tmp_path / "whole")
    assert verify_store(tmp_path / "out").ok


def test_other_settings_are_refused(source, tmp_path):
    """For a finished copy as for an interrupted one; the difference and the remedy are named."""
    copy_stores(source, tmp_path / "out", CopySettings(where="n_frames < 100"))
    with pytest.raises(IdentityError, match=r"out has a copy with other settings: copy\.where is"):
        copy_stores(source, tmp_path / "out", CopySettings(where="n_frames < 99"))
    with pytest.raises(KeyboardInterrupt):
        copy_stores(source, tmp_path / "next", observer=Interrupted(1))
    message = (
        r"next.copying has .* dtype is float16 there, int8 here.*remove .*next.copying to copy"
    )
    with pytest.raises(IdentityError, match=message):
        copy_stores(source, tmp_path / "next", CopySettings(dtype="int8"))
    with pytest.raises(IdentityError, match="frames_per_unit is 256 there, 512 here"):
        copy_stores(source, tmp_path / "next", CopySettings(frames_per_unit=300))


def test_a_source_that_has_changed_is_noticed(tmp_path):
    """A copy is of the utterances at one time: it neither mixes two states nor is silent."""
    columns = default_columns(len(LENGTHS))
    form = {"features": noise, "pieces": {5: 4}}
    plan = make_store(tmp_path / "source", LENGTHS, units=[0, 1], **form)
    notes = Notes()
    copy_stores(tmp_path / "source", tmp_path / "out", observer=notes)
    assert notes.notes == [
        f"{plan.n_units - 2} units of {tmp_path / 'source'} not extracted yet; only complete "
        "utterances are copied"
    ]
    layout = pipeline.open_store(tmp_path / "source")._layout
    commit_units(tmp_path / "source", plan, layout, columns, noise, (), [2])
    with pytest.raises(IdentityError, match="as they were before: their utterances or columns"):
        copy_stores(tmp_path / "source", tmp_path / "out")
    other = columns.set_column(2, "score", [[0.25] * len(LENGTHS)])
    shutil.rmtree(tmp_path / "source")
    make_store(tmp_path / "source", LENGTHS, units=[0, 1], columns=other, **form)
    with pytest.raises(IdentityError, match="as they were before: their utterances or columns"):
        copy_stores(tmp_path / "source", tmp_path / "out")


def test_missing_numbers_are_no_change(tmp_path):
    """NaN is not equal to itself, but a column with it has not changed."""
    columns = default_columns(2).set_column(2, "score", [[float("nan"), 1.0]])
    make_store(tmp_path / "source", [4, 5], columns=columns)
    copy_stores(tmp_path / "source", tmp_path / "out")
    copy_stores(tmp_path / "source", tmp_path / "out")


@pytest.mark.parametrize("form", ["frames", "scales", "cut", "unused", "pooled"])
def test_damage_is_not_copied(tmp_path, form):
    """A flipped bit of the frames, scales or statistics stops the run with utterance and file.

    Also in a part of a piece that is cut, even if the damage is in another part. A damaged layer
    that is not copied does not matter.
    """
    root = tmp_path / "source"
    keep = {"keep": ("pooled",)} if form == "pooled" else {}
    codec = {"codec": INT8} if form == "scales" else {}
    make_store(root, [500, 20], frames_per_unit=512, features=noise, **keep, **codec)
    zarr = root / "features.zarr"
    path = {"scales": zarr / "scale/c/0/0/0/0/0", "pooled": zarr / "pooled/c/0/0/0/0"}.get(
        form, zarr / "frames/c/1/0/0"
    )
    raw = bytearray(path.read_bytes())
    at = {"cut": 400 * 16, "pooled": 8 * 4}.get(form, 8 * 4 * 2)
    raw[at] ^= 1
    if form == "pooled":  # as damage before the checksum of the file was computed
        import crc32c

        raw[-4:] = crc32c.crc32c(bytes(raw[:-4])).to_bytes(4, "little")
    path.write_bytes(raw)
    settings = CopySettings(frames_per_unit=256) if form == "cut" else CopySettings()
    if form == "unused":
        copy_stores(root, tmp_path / "out", CopySettings(layers=[1, 3]))
        return
    with pytest.raises(DamagedError, match=r"features.zarr.*utterance 'utt-0000'.*strata verify"):
        copy_stores(root, tmp_path / "out", settings)
    assert not (tmp_path / "out").exists()
    assert not list((tmp_path / "out.copying/index").iterdir())


def test_one_driver_at_a_time_and_room_on_the_disk(source, tmp_path, monkeypatch):
    """A second driver is refused, and so is a copy that does not fit: nothing is written."""
    with Lease(tmp_path / "out.copying", "other"), pytest.raises(StoreBusyError, match="in use"):
        copy_stores(source, tmp_path / "out")
    shutil.rmtree(tmp_path / "out.copying")
    monkeypatch.setattr(local.LocalBackend, "free_bytes", lambda self: 1000)
    with pytest.raises(NoSpaceError, match=r"GB are needed in .*out.copying, 0\.00 GB are free"):
        copy_stores(source, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_a_full_disk_leaves_nothing_half_made(source, tmp_path, monkeypatch):
    """The copy stops, and goes on when there is room."""
    real, n_written = os.pwrite, 0

    def full(descriptor, data, offset):
        nonlocal n_written
        n_written += len(data)
        if n_written > 60_000:
            raise OSError(28, "No space left on device")
        return real(descriptor, data, offset)

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(NoSpaceError, match="make room and run the same command again"):
        copy_stores(source, tmp_path / "out")
    monkeypatch.setattr(os, "pwrite", real)
    assert not (tmp_path / "out").exists()
    n_done = len(list((tmp_path / "out.copying/index").iterdir()))
    done = copy_stores(source, tmp_path / "out")
    assert 0 < n_done < done.units
    checked = verify_store(tmp_path / "out")
    assert checked.ok, checked.damages
    assert not checked.orphans


def test_places_that_overlap_are_refused(source, tmp_path):
    """Also through symbolic links, and for the folder in which the copy is written."""
    (tmp_path / "link").symlink_to(source)
    (tmp_path / "x.copying").symlink_to(source)
    make_store(tmp_path / "above/source", [4])
    for out, message in (
        (source, "is the same folder as the source"),
        (tmp_path / "link", "is the same folder as the source"),
        (source / "copy", "is inside the source"),
        (tmp_path / "link/deeper/copy", "is inside the source"),
        (tmp_path / "x", "the folder in which it is written, .*x.copying is the same folder as"),
    ):
        with pytest.raises(ConfigError, match=message):
            copy_stores(source, out)
    with pytest.raises(ConfigError, match="is around the source"):
        copy_stores(tmp_path / "above/source", tmp_path / "above")
    with pytest.raises(ConfigError, match="is given twice"):
        copy_stores([source, tmp_path / "link"], tmp_path / "out")
    assert sorted(p.name for p in source.iterdir()) == sorted(
        ["features.zarr", "index", "index.parquet", "ledger", "plan.parquet"]
    )


def test_other_things_in_the_way_are_refused(source, tmp_path):
    """They are named and left as they are: stores, folders with other files, dangling links."""
    make_store(tmp_path / "store", [4])
    with pytest.raises(IdentityError, match="store is a store, but no copy"):
        copy_stores(source, tmp_path / "store")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/notes.txt").write_text("keep me")
    with pytest.raises(StoreError, match=r"mine exists and is no copy \(it has notes.txt\)"):
        copy_stores(source, tmp_path / "mine")
    (tmp_path / "mine").rename(tmp_path / "next.copying")
    with pytest.raises(StoreError, match=r"next.copying exists and is no copy"):
        copy_stores(source, tmp_path / "next")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    with pytest.raises(StoreError, match="dangling"):
        copy_stores(source, tmp_path / "dangling")
    assert (tmp_path / "next.copying/notes.txt").read_text() == "keep me"
    assert not (tmp_path / "nowhere").exists()


def test_a_run_that_was_killed_at_its_start_goes_on(source, tmp_path):
    """With a plan and no attributes yet."""
    with pytest.raises(KeyboardInterrupt):
        copy_stores(source, tmp_path / "out", observer=Interrupted(1))
    place = tmp_path / "out.copying"
    for name in ("features.zarr", "index", "ledger"):
        shutil.rmtree(place / name)
    (place / "log.jsonl").unlink()
    copy_stores(source, tmp_path / "out")
    assert verify_store(tmp_path / "out").ok


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dtype": "float8"}, "dtype is 'float8'; did you mean float"),
        ({"keep": ["frame"]}, "keep has 'frame'; did you mean frames"),
        ({"keep": []}, "keep is empty; expected one or more of frames, pooled"),
        ({"pooling": ["median"]}, "pooling has 'median'; "),
        ({"keep": ["frames"], "pooling": ["max"]}, r"pooling needs keep=\[frames,pooled\]"),
        ({"keep": ["pooled"], "dtype": "int8"}, "dtype=int8 is about frames"),
        ({"keep": ["pooled"], "dtype": "float32"}, "dtype=float32 is about frames"),
        ({"layers": [1, 9]}, r"no layers \[9\] in store .*source; it has \[1, 2, 3\]"),
        (
            {"layers": []},
            r"layers=\[\] names no layers; expected some of \[1, 2, 3\], the layers of st",
        ),
        ({"frames_per_unit": 0}, "frames_per_unit is 0; expected"),
        ({"where": "speaker = 'ann'"}, "no committed utterance has speaker='ann'; .*the columns"),
        ({"where": "n_frames > 9999"}, "the columns are id, speaker, digit, score, n_frames"),
        ({"where": "speakr = 'x'"}, "no column 'speakr' .*did you mean speaker"),
        ({"where": "speaker ="}, "cannot be read at its end"),
        ({"where": "digit = 'ten'"}, "no class 'ten' in column 'digit'"),
        ({"ids": ["utt-0001", "nobody", "utt-0006"]}, "2 of the 3 ids .*'nobody', 'utt-0006'"),
        ({"ids": ["utt-0006"]}, "'utt-0006' is quarantined: no sound in it"),
        ({"ids": []}, "ids has no id"),
        ({"ids": ["utt-0001"], "where": "n_frames = 3"}, "none of the utterances of ids has where"),
    ],
)
def test_bad_settings_are_refused(source, tmp_path, settings, message):
    """Each is named with what was expected, before anything is written."""
    with pytest.raises((ConfigError, StoreError), match=message):
        copy_stores(source, tmp_path / "out", CopySettings(**settings))
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_files_of_ids_that_are_wrong_are_named(source, tmp_path):
    """Missing, empty, or no text."""
    for name, content, message in (
        ("empty.txt", b"\n\n", "empty.txt has no id; expected one a line"),
        ("binary.txt", b"\xff\xfe\x00", "binary.txt cannot be read"),
        ("absent.txt", None, "absent.txt cannot be read .No such file"),
    ):
        if content is not None:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(ConfigError, match=message):
            copy_stores(source, tmp_path / "out", CopySettings(ids=tmp_path / name))


def test_a_rare_value_of_a_condition_is_warned_about(source, tmp_path):
    """One of several values may be misspelt."""
    notes = Notes()
    where = "speaker in ('speaker-1', 'speaker-l')"
    copy_stores(source, tmp_path / "out", CopySettings(where=where), notes)
    (note,) = notes.notes
    assert note.startswith("WARNING: where: no committed utterance has speaker='speaker-l'; did")


def test_stores_without_frames_or_utterances(tmp_path):
    """What cannot be made of them is refused."""
    make_store(tmp_path / "pooled", [300, 4], frames_per_unit=512, keep=("pooled",))
    with pytest.raises(ConfigError, match="keeps no frames to copy"):
        copy_stores(tmp_path / "pooled", tmp_path / "out", CopySettings(keep=["frames", "pooled"]))
    make_store(tmp_path / "max", [4], keep=("pooled",), statistics=("max",))
    with pytest.raises(ConfigError, match="keeps neither frames nor the statistics mean, std"):
        copy_stores(tmp_path / "max", tmp_path / "out", CopySettings(pooling="std"))
    with pytest.raises(ConfigError, match=r"frames_per_unit=256 is less than the 300 frames"):
        copy_stores(tmp_path / "pooled", tmp_path / "out", CopySettings(frames_per_unit=256))
    make_store(tmp_path / "empty", [4], units=[])
    with pytest.raises(StoreError, match="empty has no complete utterance"):
        copy_stores(tmp_path / "empty", tmp_path / "out")
    with pytest.raises(StoreNotFoundError, match="no store at"):
        copy_stores(tmp_path / "absent", tmp_path / "out")
    with pytest.raises(ConfigError, match="no store to copy is given"):
        copy_stores([], tmp_path / "out")


def test_a_quarantine_is_reported(tmp_path):
    """By the result and by a warning."""
    make_store(
        tmp_path / "source",
        [4, 5],
        codec=FLOAT32,
        features=lambda row, *shape: row * 1e5 + 0 * noise(row, *shape).astype(float),
    )
    notes = Notes()
    done = copy_stores(tmp_path / "source", tmp_path / "out", CopySettings(dtype="int8"), notes)
    assert done.quarantined == 1
    assert notes.notes == [
        "WARNING: 1 utterance quarantined, because int8 cannot hold its values; dtype=bfloat16 or "
        "float32 can"
    ]
