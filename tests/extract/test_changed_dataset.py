"""A dataset that changes between two runs, or during one: only what is new is encoded."""

from __future__ import annotations

import csv
import functools
import json
import os
import re
import shutil
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
import torch

import pipeline
from pipeline.config import Config, load_config
from pipeline.errors import SourceError, StoreError
from pipeline.events import CommittedUnit, Observer
from pipeline.extract import run
from pipeline.extract.planning.changes import KINDS, Changes, check_extent
from pipeline.extract.planning.estimate import Estimate
from pipeline.sources.opening import open_source
from pipeline.store.backend.opening import open_backend
from pipeline.store.documents import read_attributes
from pipeline.store.maintain.status import Status
from pipeline.store.maintain.verify import verify_store
from tests.helpers.corpus import RATE_HZ, voice
from tests.helpers.extraction import INLINE, contents

N_CLIPS, N_KEPT = 10, 2
CLIPS = [f"clip-{i:03d}.wav" for i in range(N_CLIPS)]
Rows = list[dict[str, object]]


def rows_of(n: int = N_CLIPS) -> Rows:
    names = [*CLIPS, "clip-100.wav", "clip-101.wav"][:n]
    return [{"file_name": name, "speaker": f"s{i % 3}", "n": i} for i, name in enumerate(names)]


def folder_csv(root: Path, rows: Rows) -> list[str]:
    delimited(root / "metadata.csv", rows, ",")
    return ["dataset=audiofolder", f"dataset.path={root}"]


def folder_jsonl(root: Path, rows: Rows) -> list[str]:
    (root / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return ["dataset=audiofolder", f"dataset.path={root}"]


def manifest(name: str) -> Callable[[Path, Rows], list[str]]:
    def write(root: Path, rows: Rows) -> list[str]:
        file = root / name
        if name.endswith("sv"):
            delimited(file, rows, "," if name.endswith("csv") else "\t")
        elif name.endswith("jsonl"):
            file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        else:
            pq.write_table(pa.Table.from_pylist(rows), file)
        return ["dataset=manifest", f"dataset.path={file}", "dataset.audio_column=file_name"]

    return write


def delimited(file: Path, rows: Rows, separator: str) -> None:
    with file.open("w", newline="") as opened:
        writer = csv.DictWriter(opened, rows[0], delimiter=separator)
        writer.writeheader()
        writer.writerows(rows)


def embedded(root: Path, rows: Rows) -> datasets.Dataset:
    table = [
        {"audio": {"bytes": (root / str(row["file_name"])).read_bytes(), "path": row["file_name"]}}
        | {name: value for name, value in row.items() if name != "file_name"}
        for row in rows
    ]
    made = datasets.Dataset.from_list(table)
    return made.cast_column("audio", datasets.Audio(decode=False))


def disk(root: Path, rows: Rows) -> list[str]:
    target = root / "saved"
    embedded(root, rows).save_to_disk(target.with_name("new"))
    if target.exists():
        target.rename(root / f"old-{len(list(root.iterdir()))}")
    target.with_name("new").rename(target)
    return ["dataset=disk", f"dataset.path={target}", "dataset.audio_column=audio"]


def hub(root: Path, rows: Rows) -> list[str]:
    (root / "hub").mkdir(exist_ok=True)
    embedded(root, rows).to_parquet(root / "hub/train.parquet")
    return ["dataset=hub", f"dataset.name={root}/hub", "dataset.split=train"]


def nemo(root: Path, rows: Rows) -> list[str]:
    entries = [
        {"audio_filepath": row["file_name"], "duration": 2.0}
        | {name: value for name, value in row.items() if name != "file_name"}
        for row in rows
    ]
    (root / "list.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    return ["dataset=manifest", f"dataset.path={root}/list.jsonl"]


def kaldi(root: Path, rows: Rows) -> list[str]:
    for file in root.glob("utt2*"):
        file.unlink()
    (root / "wav.scp").write_text("".join(f"{r['file_name']} {r['file_name']}\n" for r in rows))
    for name in rows[0].keys() - {"file_name"}:
        lines = (f"{row['file_name']} {row[name]}\n" for row in rows)
        (root / f"utt2{'spk' if name == 'speaker' else name}").write_text("".join(lines))
    return ["dataset=kaldi", f"dataset.path={root}"]


KINDS_OF_TABLE = {
    "folder with csv": folder_csv,
    "folder with jsonl": folder_jsonl,
    "manifest csv": manifest("list.csv"),
    "manifest tsv": manifest("list.tsv"),
    "manifest jsonl": manifest("list.jsonl"),
    "manifest parquet": manifest("list.parquet"),
    "disk": disk,
    "hub": hub,
    "nemo": nemo,
    "kaldi": kaldi,
}


class Notes(Observer):
    """Keeps the notes of a run."""

    text = ""

    def note(self, text: str) -> None:
        self.text += text + "\n"


class InterruptedRunError(Exception):
    """Stands for a driver that is killed."""


class Interruption(Observer):
    """Ends the run after some units are committed."""

    def __init__(self, n_units: int) -> None:
        self.n_left = n_units

    def unit_committed(self, report: CommittedUnit) -> None:
        self.n_left -= 1
        if self.n_left == 0:
            raise InterruptedRunError


class Corpus:
    """Clips, a table of one kind, and a store."""

    def __init__(self, home: Path, kind: str = "folder with csv") -> None:
        self.home, self.kind = home, kind
        self.root, self.store = home / "corpus", home / "store"
        if not self.root.exists():
            self.root.mkdir(parents=True)
            for i, row in enumerate(rows_of(N_CLIPS + 2)):
                self.clip(str(row["file_name"]), 2.0, seed=i)
        self.options = self.table(rows_of())

    def copied(self, home: Path) -> Corpus:
        shutil.copytree(self.home, home, dirs_exist_ok=True)
        return Corpus(home, self.kind)

    def index(self) -> dict[str, bytes]:
        """Return the index files of the committed units."""
        return {file.name: file.read_bytes() for file in (self.store / "index").iterdir()}

    def ledger(self) -> set[str]:
        """Return the names of the claims."""
        return {file.name for file in (self.store / "ledger").iterdir()}

    def clip(self, name: str, seconds: float, seed: int) -> None:
        soundfile.write(self.root / name, voice(seconds, seed), RATE_HZ)

    def table(self, rows: Rows) -> list[str]:
        return KINDS_OF_TABLE[self.kind](self.root, rows)

    def config(self, *more: str) -> Config:
        options = ["model=tiny", f"store={self.store}", "plan.frames_per_unit=256", *INLINE]
        return load_config([*self.options, *options, *more])

    def extract(self, *more: str, observer: Observer | None = None) -> Status:
        return run.extract(self.config(*more), observer)

    def labels(self) -> dict[str, object]:
        store = pipeline.open_store(self.store)
        return dict(zip(store.ids, store.metadata["speaker"].to_pylist(), strict=True))

    def agrees(self, rows: Rows) -> bool:
        """Whether the store holds these rows, in this order, with these labels."""
        expected = {str(row["file_name"]): row["speaker"] for row in rows}
        found = {name.partition(":")[0]: label for name, label in self.labels().items()}
        return list(found.items()) == list(expected.items())


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Corpus]:
    """Make a corpus of a kind with a store of some or all units; tests change a copy."""

    @functools.cache
    def make(kind: str, is_finished: bool) -> Corpus:
        corpus = Corpus(tmp_path_factory.mktemp("made") / "home", kind)
        if is_finished:
            corpus.extract()
        else:
            with pytest.raises(InterruptedRunError):
                corpus.extract(observer=Interruption(N_KEPT))
            assert 0 < len(corpus.labels()) < N_CLIPS
        return corpus

    return make


@pytest.fixture
def begun(made: Callable[..., Corpus], tmp_path: Path) -> Corpus:
    """A folder with metadata.csv, of which some units are extracted."""
    return made("folder with csv", is_finished=False).copied(tmp_path)


@pytest.fixture
def finished(made: Callable[..., Corpus], tmp_path: Path) -> Corpus:
    """A folder with metadata.csv, of which all units are extracted."""
    return made("folder with csv", is_finished=True).copied(tmp_path)


def swapped(rows: Rows) -> Rows:
    other = {"s0": "s1", "s1": "s0", "s2": "s2"}
    return [row | {"speaker": other[str(row["speaker"])]} for row in rows]


def counts(estimate: Estimate) -> dict[str, int]:
    """Return the kinds of changes that were found, without those that were not."""
    return {kind: getattr(estimate, kind) for kind in KINDS if getattr(estimate, kind)}


@pytest.mark.parametrize("kind", KINDS_OF_TABLE)
def test_other_labels_are_taken_without_the_encoder(
    made: Callable[..., Corpus], tmp_path: Path, kind: str
) -> None:
    """`plan` counts them and changes nothing; `extract` writes them, and encodes nothing again."""
    corpus = made(kind, is_finished=True)
    if kind != "hub":  # whose path is its name, which is part of the identity
        corpus = corpus.copied(tmp_path)
    corpus.table(swapped(rows_of()))
    before, index = corpus.labels(), corpus.index()
    assert counts(run.plan(corpus.config())) == {"relabelled": 7, "unchanged": 3}
    assert corpus.labels() == before
    notes = Notes()
    assert corpus.extract(observer=notes).utterances_ok == N_CLIPS
    assert corpus.agrees(swapped(rows_of()))
    assert "7 relabelled" in notes.text
    assert "readers show labels=1 from now on; labels=0 has those from before" in notes.text
    assert re.search(r"column speaker of 'clip-000\.wav[^']*' is 's1', not 's0'", notes.text)
    assert corpus.index() == index
    assert counts(run.plan(corpus.config())) == {"unchanged": N_CLIPS}
    corpus.table([row | {"mood": "happy"} for row in rows_of()])
    corpus.extract()
    store = pipeline.open_store(corpus.store)
    assert store.metadata["mood"].to_pylist() == ["happy"] * N_CLIPS
    assert corpus.agrees(rows_of())
    first = pipeline.open_store(corpus.store, labels=0).metadata
    assert first.column_names == [name for name in store.metadata.column_names if name != "mood"]
    assert verify_store(corpus.store).ok


def test_a_column_changes_its_type_and_a_missing_one_stays(finished: Corpus) -> None:
    """The labels from before are in an older generation."""
    finished.table([{k: v for k, v in row.items() if k != "speaker"} for row in rows_of()])
    finished.extract()
    assert finished.agrees(rows_of())
    finished.table([row | {"n": f"word {row['n']}"} for row in rows_of()])
    finished.extract()
    newest = pipeline.open_store(finished.store).metadata
    assert newest["n"].to_pylist() == [f"word {i}" for i in range(N_CLIPS)]
    older = pipeline.open_store(finished.store, labels=0).metadata
    assert older["n"].to_pylist() == list(range(N_CLIPS))
    with pytest.raises(StoreError, match=r"no labels=7; it has 0, 1, 2"):
        pipeline.open_store(finished.store, labels=7)


def test_rows_that_are_added_without_a_column_have_no_value(begun: Corpus) -> None:
    """The column of the others stays."""
    rows = rows_of(N_CLIPS + 1)
    begun.table([{k: v for k, v in row.items() if k != "speaker"} for row in rows])
    notes = Notes()
    begun.extract(observer=notes)
    known = rows_of()[: len(begun.labels())]
    labels = list(begun.labels().values())
    assert len(labels) == N_CLIPS + 1
    n_before = sum(label is not None for label in labels)
    assert 0 < n_before < N_CLIPS
    assert labels[:n_before] == [row["speaker"] for row in known[:n_before]]
    [said] = [
        note for note in notes.text.splitlines() if "column speaker" in note and "no value" in note
    ]
    assert f"{N_CLIPS + 1 - n_before} of {N_CLIPS + 1} utterances have no value in it" in said


def test_a_run_that_was_cut_ends_with_the_labels_of_the_newest_table(begun: Corpus) -> None:
    """Rows extracted before and after the change have one table's labels."""
    begun.table(swapped(rows_of()))
    assert begun.extract().utterances_ok == N_CLIPS
    assert begun.agrees(swapped(rows_of()))
    begun.table(rows_of())
    begun.extract()
    assert begun.agrees(rows_of())
    assert verify_store(begun.store).ok


def test_an_unchanged_dataset_writes_no_labels(finished: Corpus) -> None:
    """The store is then that of an uninterrupted run, byte for byte, and of format 1."""
    before = contents(finished.store)
    finished.extract()
    assert contents(finished.store) == before
    assert not (finished.store / "labels").exists()
    assert read_attributes(finished.store)["format_version"] == 1


def test_new_labels_of_rows_that_are_not_extracted_are_used(begun: Corpus) -> None:
    """No extracted row differs, so that all rows of the store agree with the new table."""
    rows = rows_of()
    rows[-1]["speaker"] = "new"
    begun.table(rows)
    begun.extract()
    assert begun.agrees(rows)


def test_a_table_of_the_same_size_and_time_is_compared(begun: Corpus) -> None:
    """Neither the time of a file nor the cache of `datasets` decides what it holds."""
    file = begun.root / "metadata.csv"
    run.plan(begun.config())
    time_ns = file.stat().st_mtime_ns
    begun.table(swapped(rows_of()))
    os.utime(file, ns=(time_ns, time_ns))
    begun.extract()
    assert begun.agrees(swapped(rows_of()))


@pytest.mark.parametrize("state", ["begun", "finished"])
def test_rows_at_the_end_are_added(request: pytest.FixtureRequest, state: str) -> None:
    """All rows then agree with the new table, and no labels are kept apart for that."""
    corpus: Corpus = request.getfixturevalue(state)
    corpus.table(rows_of(N_CLIPS + 2))
    assert counts(run.plan(corpus.config())) == {"new": 2, "unchanged": N_CLIPS}
    assert corpus.extract().utterances_ok == N_CLIPS + 2
    assert corpus.agrees(rows_of(N_CLIPS + 2))
    assert not (corpus.store / "labels").exists()


REARRANGED: dict[str, tuple[Callable[[Rows], Rows], dict[str, int]]] = {
    "removed": (lambda rows: rows[:3] + rows[4:], {"gone": 1, "unchanged": 9}),
    "removed at the end": (lambda rows: rows[:-1], {"gone": 1, "unchanged": 9}),
    "reordered": (lambda rows: [*rows[:2], rows[3], rows[2], *rows[4:]], {"unchanged": 10}),
    "inserted": (lambda rows: [rows_of(N_CLIPS + 1)[-1], *rows], {"new": 1, "unchanged": 10}),
    "all at once": (
        lambda rows: [rows_of(N_CLIPS + 1)[-1], *rows[5:], *swapped(rows[1:5])],
        {"new": 1, "gone": 1, "relabelled": 3, "unchanged": 6},
    ),
}


@pytest.mark.parametrize("change", REARRANGED)
@pytest.mark.parametrize("state", ["begun", "finished"])
def test_rows_that_are_rearranged_keep_their_features(
    request: pytest.FixtureRequest, tmp_path: Path, change: str, state: str
) -> None:
    """Only new rows are encoded, and each row has the features of its own audio."""
    corpus: Corpus = request.getfixturevalue(state)
    rearrange, expected = REARRANGED[change]
    rows = rearrange(rows_of())
    corpus.table(rows)
    units = corpus.index()
    if state == "finished":
        assert counts(run.plan(corpus.config())) == expected
    status = corpus.extract()
    assert (status.utterances_ok, status.utterances_total) == (len(rows), len(rows))
    assert status.utterances_quarantined == 0
    assert corpus.agrees(rows)
    assert corpus.index().items() >= units.items()
    assert_features_of_a_fresh_store(corpus, tmp_path / "fresh")
    assert verify_store(corpus.store).ok
    corpus.table(rows_of())
    before = corpus.ledger() if state == "finished" else None
    corpus.extract()
    assert corpus.agrees(rows_of())
    if before is not None:  # everything that is back was there
        assert corpus.ledger() == before


def assert_features_of_a_fresh_store(corpus: Corpus, path: Path) -> None:
    """Assert that the store reads as one that is extracted from the dataset as it is now."""
    run.extract(replace(corpus.config(), store=str(path)))
    fresh, grown = pipeline.open_store(path), pipeline.open_store(corpus.store)
    assert grown.metadata.equals(fresh.metadata)
    for name in fresh.ids:
        torch.testing.assert_close(grown.read(name), fresh.read(name), rtol=2e-3, atol=2e-3)


def test_an_id_that_occurs_twice_is_refused(finished: Corpus) -> None:
    """Nothing tells which of the rows is the extracted one."""
    finished.table([*rows_of(), rows_of()[4]])
    with pytest.raises(SourceError, match=r"is not unique: 1 id .*clip-004\.wav"):
        finished.extract()


def test_other_audio_of_an_extracted_utterance_supersedes_it(
    finished: Corpus, tmp_path: Path
) -> None:
    """Only that one is encoded; readers show the new features, and never two of one id."""
    finished.clip(CLIPS[4], 2.5, seed=50)
    assert counts(run.plan(finished.config())) == {"replaced": 1, "unchanged": 9}
    old = pipeline.open_store(finished.store).read(CLIPS[4])
    n_units = finished.extract().units_committed
    store = pipeline.open_store(finished.store)
    assert store.ids == CLIPS
    assert store.n_frames(CLIPS[4]) == 124
    assert not torch.equal(store.read(CLIPS[4])[:, :99], old)
    assert_features_of_a_fresh_store(finished, tmp_path / "fresh")
    assert verify_store(finished.store).utterances_ok == N_CLIPS
    finished.clip(CLIPS[4], 2.0, seed=4)  # the first recording again
    assert finished.extract().units_committed == n_units
    assert torch.equal(pipeline.open_store(finished.store).read(CLIPS[4]), old)


def test_extracted_audio_that_cannot_be_read_any_more_is_refused(finished: Corpus) -> None:
    """Its row is still there, so that it is no removal; the store keeps its features."""
    (finished.root / CLIPS[0]).write_bytes(b"")
    with pytest.raises(SourceError, match=r"1 extracted utterances of .* first 'clip-000\.wav'"):
        finished.extract()
    assert pipeline.open_store(finished.store).ids == CLIPS


def test_audio_that_is_back_after_a_file_that_could_not_be_read_is_not_encoded_again(
    finished: Corpus,
) -> None:
    """Its row was removed, and came with the unreadable file: that one stays quarantined."""
    old = pipeline.open_store(finished.store).read(CLIPS[0])
    finished.table(rows_of()[1:])
    finished.extract()
    finished.table(rows_of())
    (finished.root / CLIPS[0]).write_bytes(b"")
    units = finished.extract().units_committed
    assert pipeline.open_store(finished.store).quarantined["id"].to_pylist() == CLIPS[:1]
    finished.clip(CLIPS[0], 2.0, seed=0)
    status = finished.extract()
    assert (status.utterances_quarantined, status.units_committed) == (0, units)
    assert torch.equal(pipeline.open_store(finished.store).read(CLIPS[0]), old)


def test_another_dataset_is_refused(finished: Corpus) -> None:
    """One that has nothing of the store; run.max_changed=1 allows it."""
    finished.table(rows_of(N_CLIPS + 2)[N_CLIPS:])
    words = r"10 utterances of store .*, 10 are gone .*'clip-000\.wav' is gone.*max_changed=0\.5"
    with pytest.raises(SourceError, match=words):
        finished.extract()
    assert finished.agrees(rows_of())
    assert finished.extract("run.max_changed=1").utterances_ok == 2
    assert finished.agrees(rows_of(N_CLIPS + 2)[N_CLIPS:])


@pytest.mark.parametrize(
    ("counts", "is_refused"), [((8, 2, 90), False), ((30, 21, 49), True), ((30, 20, 50), False)]
)
def test_how_much_may_change(
    finished: Corpus, counts: tuple[int, int, int], is_refused: bool
) -> None:
    """Half of a store, or ten utterances, whether they are gone or have other audio."""
    gone, replaced, unchanged = counts
    changes = Changes(5, gone, replaced, 0, unchanged, ("'u' is gone",))
    source = open_source(finished.config().dataset)
    with pytest.raises(SourceError) if is_refused else nullcontext():
        check_extent(changes, source, open_backend(finished.store), 0.5)


def test_a_limit_hides_nothing(finished: Corpus) -> None:
    """A trial with dataset.limit on a full store is refused."""
    with pytest.raises(SourceError, match=r"1 of the 10 .*because of dataset\.limit=9"):
        finished.extract("dataset.limit=9")


def test_a_removed_row_that_was_never_extracted_is_not_encoded(begun: Corpus) -> None:
    """Its unit is committed without it; when it is back, it is encoded."""
    begun.table(rows_of()[:-1])
    status = begun.extract()
    assert (status.utterances_ok, status.utterances_quarantined) == (N_CLIPS - 1, 0)
    assert begun.agrees(rows_of()[:-1])
    begun.table(rows_of())
    assert begun.extract().utterances_ok == N_CLIPS
    assert begun.agrees(rows_of())


@pytest.mark.parametrize("seconds", [0.5, 4.9])
def test_other_audio_of_an_open_utterance_is_planned_again(begun: Corpus, seconds: float) -> None:
    """Its features are those of the new audio, also if they do not fit into its unit any more."""
    begun.clip(CLIPS[-1], seconds, seed=50)
    assert counts(run.plan(begun.config()))["replaced"] == 1
    status = begun.extract()
    assert (status.utterances_ok, status.utterances_quarantined) == (N_CLIPS, 0)
    encoder = pipeline.load_encoder("tiny", weights="random")
    [expected] = encoder([torch.from_numpy(soundfile.read(begun.root / CLIPS[-1], dtype="f4")[0])])
    stored = pipeline.open_store(begun.store).read(CLIPS[-1]).float()
    torch.testing.assert_close(stored, expected, rtol=2e-3, atol=2e-3)


class Editing(Observer):
    """Edits the dataset when the first unit is committed."""

    def __init__(self, edit: Callable[[], object]) -> None:
        self.edit: Callable[[], object] | None = edit

    def unit_committed(self, report: CommittedUnit) -> None:
        edit, self.edit = self.edit, None
        if edit is not None:
            edit()


@pytest.fixture(params=["inline", pytest.param("ray", marks=[pytest.mark.ray, pytest.mark.slow])])
def executor(request: pytest.FixtureRequest) -> list[str]:
    """Overrides that choose an executor."""
    if request.param == "inline":
        return []
    request.getfixturevalue("ray_session")
    return ["engine=ray", "engine.workers=1"]


def test_a_file_that_is_replaced_during_the_run_is_quarantined(
    tmp_path: Path, executor: list[str]
) -> None:
    """Its new audio is not stored under the old plan; a retry plans and extracts it."""
    corpus = Corpus(tmp_path)
    replaced = CLIPS[-1]
    status = corpus.extract(*executor, observer=Editing(lambda: corpus.clip(replaced, 2.0, 60)))
    assert (status.utterances_ok, status.utterances_quarantined) == (N_CLIPS - 1, 1)
    [lost] = pipeline.open_store(corpus.store).quarantined.to_pylist()
    assert lost["id"] == replaced
    assert "changed since it was planned" in lost["reason"]
    before = contents(corpus.store)
    assert corpus.extract().utterances_quarantined == 1  # the change costs nothing else
    assert contents(corpus.store) == before
    assert corpus.extract("retry_quarantined=true").utterances_ok == N_CLIPS
    assert corpus.agrees(rows_of())


def test_a_run_that_ends_before_its_first_unit_changes_nothing(tmp_path: Path) -> None:
    """The next run makes the store of an uninterrupted one, without labels of its own."""
    corpus = Corpus(tmp_path)

    class Interrupted(Observer):
        def run_started(self, n_units: int) -> None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        corpus.extract(observer=Interrupted())
    assert read_attributes(corpus.store)["format_version"] == 1
    corpus.extract()
    assert read_attributes(corpus.store)["format_version"] == 1
    assert not (corpus.store / "labels").exists()
    assert corpus.agrees(rows_of())


def test_workers_carry_the_labels_of_the_driver(tmp_path: Path, executor: list[str]) -> None:
    """A table that is edited after the driver has read it changes no row of the store."""
    corpus = Corpus(tmp_path)

    class Edited(Observer):
        def run_started(self, n_units: int) -> None:
            corpus.table(swapped(rows_of()))  # before a worker opens the dataset

    corpus.extract(*executor, observer=Edited())
    assert corpus.agrees(rows_of())
    corpus.extract(*executor)
    assert corpus.agrees(swapped(rows_of()))
