"""A recording of which some pieces are stored can be completed, or a line says what is in the way.

Its pieces are in several units. Readers show it when all of them are stored, and never in part.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import soundfile
import torch

import pipeline
from pipeline.errors import AudioError
from pipeline.extract import run
from pipeline.extract.stages.recording import RecordingReader
from pipeline.store import index as index_files
from pipeline.store.documents import read_plan
from pipeline.store.maintain.status import Status, read_status
from pipeline.store.maintain.verify import verify_store
from tests.helpers.corpus import RATE_HZ, voice, write_folder
from tests.helpers.extraction import INLINE, configured
from tests.helpers.observers import Notes

LONG, BROKEN = "clip-001.wav", "clip-002.wav"
SETTINGS = (*INLINE, "extract.max_window_s=4", "extract.context_s=0.5", "run.max_quarantined=1")
RETRY = "retry_quarantined=true"
READ = RecordingReader.read


class Corpus:
    """Two short clips around a recording of three pieces, and a store of them."""

    def __init__(self, root: Path) -> None:
        self.folder, self.store = write_folder(root / "clips", [1.0, 25.0, 1.0]), root / "store"
        self.notes: list[str] = []

    def extract(self, *more: str) -> Status:
        observer = Notes()
        status = run.extract(configured(self.folder, self.store, *SETTINGS, *more), observer)
        self.notes = observer.lines
        return status

    def record(self, seconds: float, seed: int = 1) -> None:
        """Write the recording; seed 1 and 25 s are the original."""
        soundfile.write(self.folder / LONG, voice(seconds, seed), RATE_HZ)

    def revoke(self, *units: int) -> None:
        """Revoke commits, so that these units are open as after a killed run."""
        index_files.drop_cache(self.store)
        for unit in units:
            (self.store / f"index/unit-{unit}.parquet").unlink()

    def units(self) -> list[int]:
        """Return the planned units of the recording's pieces, in order."""
        plan = read_plan(self.store)
        assert plan is not None
        return [row["unit"] for row in plan.table.to_pylist() if row["id"] == LONG]

    def is_hidden(self) -> bool:
        """Return whether no reader shows the recording, and every count agrees on that."""
        opened, found = pipeline.open_store(self.store), verify_store(self.store)
        status = read_status(self.store)
        assert found.ok, found.damages
        assert len(opened) == found.utterances_ok == status.utterances_ok
        assert len(opened.quarantined) == found.utterances_quarantined
        assert status.utterances_quarantined == found.utterances_quarantined
        assert (LONG in opened) != (LONG in opened.quarantined["id"].to_pylist())
        return LONG not in opened

    def features(self) -> torch.Tensor:
        """Read the recording, which must be complete, and compare its checksums."""
        assert not self.is_hidden()
        return pipeline.open_store(self.store).read(LONG, verify=True)


@contextmanager
def unreadable(*pieces: int) -> Iterator[None]:
    """Make reads of some pieces fail, as of a file that is away or unreadable for a moment."""

    def read(self, segment, row):
        if row["piece"] in pieces:
            raise AudioError("the file cannot be opened: Input/output error")
        return READ(self, segment, row)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RecordingReader, "read", read)
        yield


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> torch.Tensor:
    """Features of the recording, extracted without a fault."""
    corpus = Corpus(tmp_path_factory.mktemp("undisturbed"))
    corpus.extract()
    assert len(corpus.units()) == 3
    return corpus.features()


@pytest.fixture
def corpus(tmp_path: Path) -> Corpus:
    return Corpus(tmp_path)


@pytest.mark.parametrize("pieces", [(1,), (0, 2), (0, 1)])
def test_a_piece_that_could_not_be_read_is_retried(
    corpus: Corpus, undisturbed: torch.Tensor, pieces: tuple[int, ...]
) -> None:
    """Only the missing pieces are planned again; the features are those of an undisturbed run."""
    with unreadable(*pieces):
        corpus.extract()
    assert corpus.is_hidden()
    assert corpus.extract().utterances_quarantined == 1
    assert corpus.is_hidden()
    n_units = len(set(corpus.units()))
    status = corpus.extract(RETRY)
    assert "1 quarantined utterances will be retried" in corpus.notes
    assert (status.utterances_ok, status.utterances_quarantined) == (3, 0)
    assert torch.equal(corpus.features(), undisturbed)
    assert len(corpus.units()) == 3 + len(pieces)
    assert status.units_total > n_units
    assert corpus.extract(RETRY).units_total == status.units_total


def test_a_piece_is_retried_until_it_can_be_read(corpus: Corpus, undisturbed: torch.Tensor) -> None:
    """Also after a retry failed, and if a later retry was killed before it committed."""
    with unreadable(0, 1):
        corpus.extract()
    with unreadable(1):
        assert corpus.extract(RETRY).utterances_quarantined == 1
    assert corpus.is_hidden()
    corpus.extract(RETRY)
    corpus.revoke(corpus.units()[-1])
    assert torch.equal((corpus.extract(RETRY), corpus.features())[1], undisturbed)


@pytest.mark.parametrize(
    "seconds", [34.0, 25.0, 8.0, None], ids=["longer", "other", "short", "empty"]
)
def test_other_audio_is_not_mixed_with_stored_pieces(
    corpus: Corpus, undisturbed: torch.Tensor, seconds: float | None
) -> None:
    """A line names the recording and the remedy; other retries go on; a restored file completes."""
    (corpus.folder / BROKEN).write_bytes(b"no sound")
    with unreadable(2):
        assert corpus.extract().utterances_quarantined == 2
    soundfile.write(corpus.folder / BROKEN, voice(1.0, 2), RATE_HZ)
    if seconds is None:
        (corpus.folder / LONG).write_bytes(b"")
    else:
        corpus.record(seconds, seed=9)
    corpus.extract()  # without a retry, too, the change does not stop the run
    assert corpus.is_hidden()
    status = corpus.extract(RETRY)
    assert (status.utterances_ok, status.utterances_quarantined) == (2, 1)
    assert corpus.is_hidden()
    [line] = [text for text in corpus.notes if text.startswith("not completed")]
    assert LONG in line
    assert "Restore the file and retry, or choose another store=" in line
    assert "\n" not in line
    corpus.record(25.0)
    assert corpus.extract(RETRY).utterances_quarantined == 0
    assert torch.equal(corpus.features(), undisturbed)


@pytest.mark.parametrize(("before", "after"), [(25.0, 34.0), (34.0, 25.0)])
def test_a_recording_without_stored_pieces_is_cut_anew(
    corpus: Corpus, before: float, after: float
) -> None:
    """A longer file has more pieces, a shorter one fewer; those of the newest cut count."""
    corpus.record(before, seed=5)
    with unreadable(0, 1, 2, 3):
        corpus.extract()
    n_old = len(corpus.units())
    corpus.record(after, seed=9)
    with unreadable(2, 3):
        assert corpus.extract(RETRY).utterances_quarantined == 1
    assert corpus.is_hidden()
    n_new = len(corpus.units()) - n_old
    assert (n_old, n_new) in ((3, 4), (4, 3))
    assert corpus.extract(RETRY).utterances_quarantined == 0
    assert len(corpus.units()) == n_old + n_new + n_new - 2
    expected = Corpus(corpus.store.with_name("other"))
    expected.record(after, seed=9)
    expected.extract()
    assert torch.equal(corpus.features(), expected.features())


@pytest.mark.parametrize("n_committed", [0, 1])
def test_a_change_before_any_piece_was_stored_stops_nothing(
    corpus: Corpus, n_committed: int
) -> None:
    """The run was killed before; the pieces are quarantined, and a retry takes the new audio."""
    with unreadable(0, 1, 2):
        corpus.extract()
    corpus.revoke(*sorted(set(corpus.units()))[n_committed:])
    corpus.record(14.0, seed=9)
    assert corpus.extract().utterances_quarantined == 1
    reasons = pipeline.open_store(corpus.store).quarantined["reason"].to_pylist()
    assert "changed since it was planned" in reasons[0] or n_committed
    assert corpus.extract(RETRY).utterances_quarantined == 0
    n_samples = round(14.0 * RATE_HZ)
    assert corpus.features().shape[1] == (n_samples - 400) // 320 + 1


def test_a_change_after_a_piece_was_stored_supersedes_the_recording(
    corpus: Corpus, undisturbed: torch.Tensor
) -> None:
    """No pieces of two contents are joined; when the first content is back, it is completed."""
    corpus.extract()
    corpus.revoke(corpus.units()[-1])
    corpus.record(34.0, seed=9)
    assert corpus.extract().utterances_quarantined == 0
    assert corpus.features().shape[1] == (34 * RATE_HZ - 400) // 320 + 1
    corpus.record(25.0)
    assert corpus.extract().utterances_quarantined == 0
    assert torch.equal(corpus.features(), undisturbed)
