"""Drops that are killed, or that a full disk stops: the next run completes them."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path

import pytest

import pipeline
from pipeline import files
from pipeline.errors import DamagedError, NoSpaceError, StoreError
from pipeline.events import Observer
from pipeline.store.backend.local import LocalBackend
from pipeline.store.coordination.lease import Lease
from pipeline.store.documents import read_attributes
from pipeline.store.format.codecs import INT8
from pipeline.store.format.layout import DROPPING, LEASE
from pipeline.store.maintain.repair import repair_store
from pipeline.store.maintain.verify import verify_store
from pipeline.transforms.copy import CopySettings, copy_stores
from tests.helpers.copied_stores import stored_pieces
from tests.helpers.dropped_stores import has_frames, survivors, texts_of
from tests.helpers.feature_stores import make_store, noise
from tests.transforms.test_drop import columns_of, relabelled

LENGTHS = [40, 100, 3, 250, 300, 60]
ANN = ["utt-0001", "utt-0003", "utt-0004"]
"""Of a unit that keeps others, of one that keeps none, and in pieces."""
STRIDE = 3
STEPS = ("put", "put_if_absent", "delete", "append")


def make(root, **form):
    make_store(
        root,
        LENGTHS,
        layers=(1, 2),
        features=noise,
        pieces={4: 2},
        columns=columns_of(ANN).slice(0, len(LENGTHS)),
        frames_per_unit=256,
        **form,
    )
    relabelled(root, ANN, removed=5, n=len(LENGTHS))
    return root


class Notes(Observer):
    """Keeps the notes of a run."""

    def __init__(self):
        self.notes = []

    def note(self, line):
        self.notes.append(line)


def killed_before(step, root, **settings):
    """Run a drop in a process that is killed before its write number `step`.

    Returns:
        Whether it was killed; False if it has fewer writes.
    """
    child = os.fork()
    if child == 0:
        try:
            left = step

            def counted(real):
                def call(*args):
                    nonlocal left
                    if LEASE not in str(args[1:2]):
                        left -= 1
                        if left == 0:
                            os.kill(os.getpid(), signal.SIGKILL)
                    return real(*args)

                return call

            for name in STEPS:
                setattr(LocalBackend, name, counted(getattr(LocalBackend, name)))
            Path.replace = counted(Path.replace)  # half-written files stay
            pipeline.drop(root, confirm=True, **settings)
            os._exit(0)
        finally:
            os._exit(1)
    status = os.waitpid(child, 0)[1]
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
        return True
    assert os.WEXITSTATUS(status) == 0
    return False


def check_complete(root, before, pieces):
    checked = verify_store(root)
    assert checked.ok, checked.damages
    assert not checked.orphans
    assert survivors(root) == before
    assert not has_frames(root, pieces)
    text = texts_of(root)
    assert not [word for word in ("ann-b", "spoken by", *ANN) if word in text]
    assert not (root / DROPPING).exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("form", "first"), [({}, 1), ({"codec": INT8}, 2), ({"keep": ("pooled",)}, 3)]
)
def test_a_killed_drop_is_completed(form, first, tmp_path):
    """SIGKILL before each write: readers work, nothing else may write, and a rerun completes it.

    Whether that names the utterances again, or nothing. In between, no reader sees a part of an
    utterance. The steps are divided among the cases.
    """
    home = make(tmp_path / "home", **form)
    before = {k: v for k, v in survivors(home).items() if k not in ANN}
    frames = [] if "keep" in form else [p for n in ANN for p in stored_pieces(home)[n]]
    n_pending, step = 0, first - STRIDE
    while True:
        step += STRIDE
        root = tmp_path / "store"
        shutil.rmtree(root, ignore_errors=True)
        shutil.copytree(home, root)
        where = {"where": "speaker = 'ann-b'"} if step % 2 else {"ids": ANN}
        if not killed_before(step, root, **where):
            break
        opened = pipeline.open_store(root)
        assert before.keys() <= set(opened.ids)
        for name in opened.ids:
            assert opened.frame_counts[opened.position(name)] == LENGTHS[int(name[-4:])]
            if opened.keeps_frames:
                opened.read(name, verify=True)
        is_pending = (root / DROPPING).exists()
        n_pending += is_pending
        if is_pending:
            with pytest.raises(StoreError, match=r"drop from store .* was interrupted"):
                verify_store(root)
        pipeline.drop(root, confirm=True, **({} if is_pending and step % 4 == 0 else where))
        check_complete(root, before, frames)
    assert n_pending > 5
    check_complete(root, before, frames)


@pytest.mark.slow
@pytest.mark.parametrize(("form", "first"), [({}, 1), ({"codec": INT8}, 2), ({}, 3)])
def test_a_killed_drop_of_layers_is_completed(form, first, tmp_path):
    """SIGKILL before each write; the layer is invisible, or still there as a whole.

    Half-written files are removed from slots that the ledger has, as a copy's are, too.
    """
    home = make(tmp_path / "home", **form)
    if first > 1:
        copy_stores([home], tmp_path / "copied", CopySettings())
        home = tmp_path / "copied"
    before = pipeline.open_store(home)
    kept = [before.read(name)[:1] for name in before.ids]
    gone = [
        (v[1:], s[1:])
        for pieces in stored_pieces(home).values()
        for v, s in pieces
        if v.shape[1] > 9
    ]
    step = first - STRIDE
    while True:
        step += STRIDE
        root = tmp_path / "store"
        shutil.rmtree(root, ignore_errors=True)
        shutil.copytree(home, root)
        if not killed_before(step, root, layers=[2]):
            break
        layers = pipeline.open_store(root).layers
        assert layers in ((1, 2), (1,))
        if layers == (1, 2):
            opened = pipeline.open_store(root)
            assert all(opened.read(n, verify=True).shape[0] == 2 for n in opened.ids)
        pipeline.drop(root, layers=[2], confirm=True)
        found = pipeline.open_store(root)
        assert all(found.read(n).equal(k) for n, k in zip(found.ids, kept, strict=True))
        assert not has_frames(root, gone)
        checked = verify_store(root)
        assert checked.ok, checked.damages
        assert not checked.orphans
    assert step > 12


def interrupted(root):
    assert killed_before(8, root, ids=ANN)
    assert (root / DROPPING).exists()


def test_an_interrupted_drop_comes_first(tmp_path):
    """No driver may write before; a dry run says so, and another drop completes it."""
    root = make(tmp_path / "store")
    interrupted(root)
    for refused in (lambda: Lease(root, "run").__enter__(), lambda: repair_store(root)):
        with pytest.raises(StoreError, match=r"was interrupted; run `strata drop .* confirm=true`"):
            refused()
    assert not (root / LEASE).exists()
    notes = Notes()
    found = pipeline.drop(root, observer=notes)
    assert (found.confirmed, found.completed) == (False, 0)
    assert any("a drop of 3 utterances was interrupted" in note for note in notes.notes)
    done = pipeline.drop(root, ids=["utt-0000"], confirm=True)
    assert (done.completed, done.utterances) == (3, 1)
    assert not {*ANN, "utt-0000"} & set(pipeline.open_store(root).ids)
    assert verify_store(root).ok


def test_a_wrong_condition_after_an_interrupted_drop_is_an_error(tmp_path):
    """The interrupted one is completed; the text is still no condition."""
    root = make(tmp_path / "store")
    interrupted(root)
    with pytest.raises(StoreError, match="speeker"):
        pipeline.drop(root, where="speeker = 'ann-b'", confirm=True)
    assert not (root / DROPPING).exists()
    assert verify_store(root).ok


def test_a_damaged_record_is_reported(tmp_path):
    """With the remedy."""
    root = make(tmp_path / "store")
    interrupted(root)
    (root / DROPPING).write_bytes(b"PAR1")
    with pytest.raises(DamagedError, match=r"dropping\.parquet is not readable .*delete it"):
        pipeline.drop(root, confirm=True)


def test_a_full_disk_stops_it_and_a_rerun_goes_on(tmp_path, monkeypatch):
    """Without space for a unit nothing is begun; one that fills up in the middle loses nothing."""
    root = make(tmp_path / "store")
    before = {k: v for k, v in survivors(root).items() if k not in ANN}
    frames = [p for n in ANN for p in stored_pieces(root)[n]]
    with monkeypatch.context() as patch:
        patch.setattr(LocalBackend, "free_bytes", lambda backend: 100)
        with pytest.raises(NoSpaceError, match=r"needed in .* for a moment.*Nothing was dropped"):
            pipeline.drop(root, ids=ANN, confirm=True)
    assert read_attributes(root)["format_version"] == 2
    n_left = 2

    def full(partial, real=files.PartialFile.flush):
        nonlocal n_left
        n_left -= 1
        if n_left < 0:
            raise NoSpaceError("no space left")
        real(partial)

    with monkeypatch.context() as patch:
        patch.setattr(files.PartialFile, "flush", full)
        with pytest.raises(NoSpaceError, match="no space left"):
            pipeline.drop(root, ids=ANN, confirm=True)
    opened = pipeline.open_store(root)
    assert all(opened.read(name, verify=True).shape[0] == 2 for name in opened.ids)
    pipeline.drop(root, ids=ANN, confirm=True)
    check_complete(root, before, frames)


def test_a_store_that_cannot_be_written_is_left_as_it_is(tmp_path, monkeypatch):
    """A dry run works there."""
    root = make(tmp_path / "store")

    def refuse(*args):
        raise StoreError("it cannot be written: Read-only file system")

    monkeypatch.setattr(LocalBackend, "put_if_absent", refuse)
    assert pipeline.drop(root, ids=ANN).utterances == 3
    with pytest.raises(StoreError, match="cannot be written"):
        pipeline.drop(root, ids=ANN, confirm=True)
    assert set(ANN) <= set(pipeline.open_store(root).ids)
