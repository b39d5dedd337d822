"""A dataset that changes between two runs, or during one: a store never mixes two states of it."""

from __future__ import annotations

import csv
import functools
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
import torch

import pipeline
from pipeline.config import Config, load_config
from pipeline.errors import IdentityError, SourceError
from pipeline.events import CommittedUnit, Observer
from pipeline.extract import run
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


KINDS = {
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

    def clip(self, name: str, seconds: float, seed: int) -> None:
        soundfile.write(self.root / name, voice(seconds, seed), RATE_HZ)

    def table(self, rows: Rows) -> list[str]:
        return KINDS[self.kind](self.root, rows)

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
        return list(self.labels().items()) == list(expected.items())


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


NEW_LABELS = (
    r"column speaker of 'clip-000\.wav[^']*' is 's1', but 's0' in store .* restore it .* store="
)


@pytest.mark.parametrize("kind", KINDS)
def test_other_labels_or_columns_are_refused_until_the_table_is_back(
    made: Callable[..., Corpus], tmp_path: Path, kind: str
) -> None:
    """The error names the table, the column, the first id, both values and the remedy."""
    corpus = made(kind, is_finished=False).copied(tmp_path)
    corpus.table(swapped(rows_of()))
    with pytest.raises(SourceError, match=NEW_LABELS) as refused:
        corpus.extract()
    assert corpus.options[1].partition("=")[2] in str(refused.value)
    corpus.table([row | {"mood": "happy"} for row in rows_of()])
    with pytest.raises(IdentityError, match=r"column mood is new.*dataset\.columns=\[") as added:
        corpus.extract()
    names = "dataset.columns=[" + str(added.value).partition("columns=[")[2].partition("]")[0] + "]"
    run.plan(corpus.config(names))
    corpus.table([{k: v for k, v in row.items() if k != "speaker"} for row in rows_of()])
    with pytest.raises(IdentityError, match=r"column speaker is missing.*restore"):
        corpus.extract()
    corpus.table([row | {"n": f"word {row['n']}"} for row in rows_of()])
    # Labels of Kaldi are always text.
    words = r"column n (is string, but was int64|of .* is 'word 0', but '0').*restore"
    with pytest.raises((IdentityError, SourceError), match=words):
        corpus.extract()
    corpus.table(rows_of())
    run.plan(corpus.config())


def test_a_store_continues_when_its_table_is_back(begun: Corpus) -> None:
    """Its labels stay as they are meanwhile; at the end, all are those of one table."""
    before = begun.labels()
    begun.table(swapped(rows_of()))
    with pytest.raises(SourceError, match=NEW_LABELS):
        begun.extract()
    assert begun.labels() == before
    begun.table(rows_of())
    assert begun.extract().utterances_ok == N_CLIPS
    assert begun.agrees(rows_of())
    assert verify_store(begun.store).ok


def test_a_finished_store_names_new_labels_too(finished: Corpus) -> None:
    """It does not say that it is done, and keeps the labels of its table."""
    finished.table(swapped(rows_of()))
    with pytest.raises(SourceError, match=NEW_LABELS):
        finished.extract()
    assert finished.agrees(rows_of())


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
    with pytest.raises(SourceError, match=NEW_LABELS):
        begun.extract()


@pytest.mark.parametrize("state", ["begun", "finished"])
def test_rows_at_the_end_are_added(request: pytest.FixtureRequest, state: str) -> None:
    """All rows then agree with the new table."""
    corpus: Corpus = request.getfixturevalue(state)
    corpus.table(rows_of(N_CLIPS + 2))
    assert corpus.extract().utterances_ok == N_CLIPS + 2
    assert corpus.agrees(rows_of(N_CLIPS + 2))


REARRANGED: dict[str, tuple[Callable[[Rows], Rows], str]] = {
    "removed": (
        lambda rows: rows[:3] + rows[4:],
        r"1 of the 10 planned utterances are missing from .*, first 'clip-003\.wav'; restore",
    ),
    "removed at the end": (lambda rows: rows[:-1], r"missing from .*, first 'clip-009\.wav'"),
    "reordered": (
        lambda rows: [*rows[:2], rows[3], rows[2], *rows[4:]],
        r"2 of the 10 planned utterances have moved in .*, first 'clip-002\.wav': row 2 holds "
        r"'clip-003\.wav' now; restore",
    ),
    "inserted": (
        lambda rows: [rows_of(N_CLIPS + 1)[-1], *rows],
        r"have moved in .*: row 0 holds 'clip-100\.wav' now, and new rows must follow",
    ),
    "duplicated": (lambda rows: [*rows, rows[4]], r"is not unique: 1 id .*clip-004\.wav"),
}


@pytest.mark.parametrize("change", REARRANGED)
@pytest.mark.parametrize("state", ["begun", "finished"])
def test_rows_that_are_rearranged_are_refused(
    request: pytest.FixtureRequest, change: str, state: str
) -> None:
    """The first difference is named, and the store accepts the restored table."""
    corpus: Corpus = request.getfixturevalue(state)
    rearrange, words = REARRANGED[change]
    corpus.table(rearrange(rows_of()))
    with pytest.raises(SourceError, match=words):
        corpus.extract()
    corpus.table(rows_of())
    run.plan(corpus.config())


def test_other_audio_of_an_extracted_utterance_is_refused(begun: Corpus) -> None:
    """The error names the utterance, what has changed, and the remedy."""
    begun.clip(CLIPS[0], 2.5, seed=50)
    words = r"changed, first of 'clip-000\.wav' \(row 0\): n_samples was 32000, now 40000\. Restore"
    with pytest.raises(SourceError, match=words):
        begun.extract()
    (begun.root / CLIPS[0]).write_bytes(b"")
    with pytest.raises(SourceError, match=r"clip-000\.wav.*cannot be read any more"):
        begun.extract()


@pytest.mark.parametrize("seconds", [0.5, 4.9])
def test_other_audio_of_an_open_utterance_is_planned_again(begun: Corpus, seconds: float) -> None:
    """Its features are those of the new audio, also if they do not fit into its unit any more."""
    begun.clip(CLIPS[-1], seconds, seed=50)
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


def test_workers_carry_the_labels_of_the_driver(tmp_path: Path, executor: list[str]) -> None:
    """A table that is edited after the driver has read it changes no row of the store."""
    corpus = Corpus(tmp_path)

    class Edited(Observer):
        def run_started(self, n_units: int) -> None:
            corpus.table(swapped(rows_of()))  # before a worker opens the dataset

    corpus.extract(*executor, observer=Edited())
    assert corpus.agrees(rows_of())
    with pytest.raises(SourceError, match="column speaker"):
        corpus.extract(*executor)
