"""Extraction, relabelling and repair of a store of which something was dropped."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

import pipeline
from pipeline.events import CommittedUnit
from pipeline.extract import run
from pipeline.extract.relabel import relabel
from pipeline.store.documents import layout_of, read_attributes
from pipeline.store.labels import generations, read_labels
from pipeline.store.maintain.repair import repair_store
from pipeline.store.maintain.verify import verify_store
from tests.extract.test_changed_dataset import CLIPS, Corpus, Notes, rows_of
from tests.helpers.dropped_stores import survivors, texts_of

ANN = ["clip-001.wav", "clip-004.wav", "clip-007.wav"]
"""The clips of speaker s1."""


class Commits(Notes):
    """Keeps the notes of a run, and its units."""

    def __init__(self) -> None:
        self.units: list[int] = []

    def unit_committed(self, report: CommittedUnit) -> None:
        self.units.append(report.unit)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    corpus = Corpus(tmp_path_factory.mktemp("made") / "home")
    corpus.extract()
    return corpus


@pytest.fixture
def corpus(made: Corpus, tmp_path: Path) -> Corpus:
    """A corpus from whose store speaker s1 was dropped."""
    copied = made.copied(tmp_path / "home")
    pipeline.drop(copied.store, where="speaker = 's1'", confirm=True)
    return copied


def extracted(corpus: Corpus, *more: str) -> Commits:
    observer = Commits()
    corpus.extract(*more, observer=observer)
    checked = verify_store(corpus.store)
    assert checked.ok, checked.damages
    return observer


def check_gone(corpus: Corpus, names: list[str] = ANN) -> None:
    assert not set(names) & set(pipeline.open_store(corpus.store).ids)
    text = texts_of(corpus.store)
    assert not [name for name in names if name in text]


@pytest.mark.parametrize("retry", ["false", "true"])
def test_the_same_dataset_extracts_nothing_again(corpus: Corpus, retry: str) -> None:
    """The rows are still there; they are counted, and a note says how to have them again."""
    before = survivors(corpus.store)
    estimate = run.plan(corpus.config())
    assert (estimate.utterances, estimate.dropped, estimate.new, estimate.gone) == (7, 3, 0, 0)
    notes = extracted(corpus, f"retry_quarantined={retry}")
    assert notes.units == []
    assert "3 utterances of " in notes.text
    assert "restore_dropped=true extracts what the dataset has of them" in notes.text
    assert "has changed" not in notes.text
    check_gone(corpus)
    assert survivors(corpus.store) == before
    assert generations(corpus.store) == []


def test_a_corpus_that_grows_is_extracted_without_them(corpus: Corpus) -> None:
    """Only the new rows are encoded, with their labels; no labels are kept apart for that."""
    corpus.options = corpus.table(rows_of(12))
    notes = extracted(corpus)
    assert len(notes.units) == 1
    assert pipeline.open_store(corpus.store).ids[-2:] == ["clip-100.wav", "clip-101.wav"]
    assert corpus.labels()["clip-101.wav"] == "s2"
    assert generations(corpus.store) == []
    check_gone(corpus)


def test_rows_may_be_removed_from_the_dataset_too(corpus: Corpus) -> None:
    """That is no change of the store, which has lost them before."""
    rows = [row for row in rows_of() if row["speaker"] != "s1"]
    corpus.options = corpus.table(rows)
    estimate = run.plan(corpus.config())
    assert (estimate.dropped, estimate.gone, estimate.unchanged) == (0, 0, 7)
    assert extracted(corpus).units == []
    assert corpus.agrees(rows)
    check_gone(corpus)


def test_changed_labels_do_not_bring_them_back(corpus: Corpus) -> None:
    """Neither by `extract`, which writes a generation of labels, nor by `relabel`."""
    rows = [row | {"speaker": f"{row['speaker']}-b", "mood": "calm"} for row in rows_of()]
    corpus.options = corpus.table(rows)
    assert extracted(corpus).units == []
    kept = [row for row in rows if row["file_name"] not in ANN]
    assert corpus.agrees(kept)
    rows = [row | {"speaker": f"{row['speaker']}-c"} for row in rows]
    corpus.options = corpus.table(rows)
    result = relabel(corpus.store, corpus.config())
    assert (result.relabelled, result.not_in_store, result.not_in_dataset) == (7, 0, 0)
    assert corpus.agrees([row for row in rows if row["file_name"] not in ANN])
    assert extracted(corpus).units == []
    check_gone(corpus)
    pipeline.drop(corpus.store, where="speaker = 's0-b-c'", confirm=True)
    assert extracted(corpus).units == []
    assert set(corpus.labels().values()) == {"s2-b-c"}
    assert "s0-b" not in texts_of(corpus.store)


def test_relabel_without_generations_leaves_them_out(corpus: Corpus) -> None:
    """The first generation of labels is made from the plan."""
    rows = [row | {"speaker": "all"} for row in rows_of()]
    corpus.options = corpus.table(rows)
    relabel(corpus.store, corpus.config())
    assert corpus.agrees([row for row in rows if row["file_name"] not in ANN])
    labels = read_labels(corpus.store)
    assert labels is not None
    assert len(labels.table) == 7
    check_gone(corpus)


def test_other_audio_under_a_dropped_id_stays_out(corpus: Corpus) -> None:
    """An id that was dropped is not extracted again, whatever its file has now."""
    corpus.clip(ANN[0], 1.0, seed=77)
    assert extracted(corpus).units == []
    corpus.clip("clip-002.wav", 1.0, seed=78)
    notes = extracted(corpus)
    assert len(notes.units) == 1
    check_gone(corpus)
    assert "clip-002.wav" in corpus.labels()


def test_a_superseded_utterance_is_dropped_with_its_id(made: Corpus, tmp_path: Path) -> None:
    """All audio that the store ever had under it."""
    corpus = made.copied(tmp_path / "home")
    corpus.clip(ANN[0], 1.0, seed=77)
    extracted(corpus)
    done = pipeline.drop(corpus.store, ids=[ANN[0]], confirm=True)
    assert (done.utterances, done.hidden) == (2, 1)
    assert extracted(corpus).units == []
    check_gone(corpus, ANN[:1])
    corpus.clip(ANN[1], 1.0, seed=78)
    extracted(corpus)
    done = pipeline.drop(corpus.store, where=f"id = '{ANN[1]}' and n_frames < 60", confirm=True)
    assert (done.utterances, done.hidden) == (2, 1)
    check_gone(corpus, ANN[:2])
    kept = [clip for clip in CLIPS if clip not in ANN[:2]]
    assert pipeline.open_store(corpus.store, labels=0).ids == kept


def test_they_can_be_restored(made: Corpus, tmp_path: Path) -> None:
    """From the dataset, in new units; what was not dropped is not encoded again."""
    corpus = made.copied(tmp_path / "home")
    before = {name: pipeline.open_store(corpus.store).read(name) for name in ANN}
    pipeline.drop(corpus.store, where="speaker = 's1'", confirm=True)
    notes = extracted(corpus, "restore_dropped=true")
    assert notes.units
    found = pipeline.open_store(corpus.store)
    assert found.ids == CLIPS
    assert all(found.read(name).equal(before[name]) for name in ANN)
    assert corpus.agrees(rows_of())
    assert extracted(corpus).units == []  # they are there, so the setting need not stay
    pipeline.drop(corpus.store, ids=ANN, confirm=True)
    assert extracted(corpus).units == []
    check_gone(corpus)


def test_a_repair_does_not_bring_them_back(corpus: Corpus) -> None:
    """A damaged unit is extracted again without them; the others have the features they had."""
    before = pipeline.open_store(corpus.store)
    expected = {name: before.read(name) for name in before.ids}
    layout = layout_of(read_attributes(corpus.store))
    for slot in set(before.slots.tolist()):
        path = corpus.store / layout.shard_key(0, slot)
        raw = bytearray(path.read_bytes())
        raw[-1] ^= 1
        path.write_bytes(raw)
    before.close()
    assert repair_store(corpus.store).units
    notes = extracted(corpus)
    assert notes.units
    found = pipeline.open_store(corpus.store)
    assert all(found.read(name).equal(values) for name, values in expected.items())
    assert corpus.agrees([row for row in rows_of() if row["file_name"] not in ANN])
    check_gone(corpus)


def test_a_unit_of_removed_utterances_alone_has_no_columns(made: Corpus, tmp_path: Path) -> None:
    """It was extracted again after the dataset had lost them; conditions see none of them."""
    corpus = made.copied(tmp_path / "home")
    index = corpus.store / "index/unit-0.parquet"
    names = pq.read_table(index)["id"].to_pylist()
    rows = [row for row in rows_of() if row["file_name"] not in names]
    corpus.options = corpus.table(rows)
    index.unlink()
    assert extracted(corpus, "run.max_changed=1").units == [0]
    assert "speaker" not in pq.read_schema(index).names
    (corpus.store / "index.parquet").unlink()  # as an interrupted drop does
    pipeline.drop(corpus.store, where="speaker = 's1'", confirm=True)
    assert corpus.agrees([row for row in rows if row["speaker"] != "s1"])
    pipeline.drop(corpus.store, ids=names, confirm=True)
    assert extracted(corpus, "run.max_changed=1").units == []
    check_gone(corpus, names)


def test_dropped_layers_are_not_extracted_again(corpus: Corpus) -> None:
    """New units have no shards of them; a store of all layers is still the same configuration."""
    layers = pipeline.open_store(corpus.store).layers
    pipeline.drop(corpus.store, layers=layers[:1], confirm=True)
    corpus.options = corpus.table(rows_of(12))
    assert len(extracted(corpus).units) == 1
    found = pipeline.open_store(corpus.store)
    assert found.layers == layers[1:]
    assert found.read("clip-101.wav").shape[0] == len(layers) - 1
    assert not found.pooled().isnan().any()
    assert not list((corpus.store / "features.zarr/frames/c/0").rglob("0/0"))
    checked = verify_store(corpus.store)
    assert not checked.orphans
    layout = layout_of(read_attributes(corpus.store))
    raw = (corpus.store / layout.pooled_key(int(found.slots[-1]))).read_bytes()[:-4]
    means = np.frombuffer(raw, np.float32).reshape(layout.pooled_shape(1))[0]
    assert np.isnan(means[:, 0]).all()
    assert not np.isnan(means[0, 1:]).any()


@pytest.mark.parametrize("kind", ["nemo", "manifest parquet", "disk"])
def test_other_sources(kind: str, tmp_path: Path) -> None:
    """Whatever gives the rows, also where a worker reads them by number."""
    corpus = Corpus(tmp_path / "home", kind)
    corpus.extract()
    ids = pipeline.open_store(corpus.store).ids
    pipeline.drop(corpus.store, where="speaker = 's1'", confirm=True)
    assert extracted(corpus).units == []
    assert pipeline.open_store(corpus.store).ids == [n for i, n in enumerate(ids) if i % 3 != 1]
