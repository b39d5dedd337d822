"""`strata relabel`, and labels that are kept apart from the commits."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

import pipeline
from pipeline.cli.app import app
from pipeline.config import load_config
from pipeline.errors import DamagedError, SourceError, StoreError
from pipeline.extract import run
from pipeline.extract.planning import obtain
from pipeline.extract.relabel import Relabelling, relabel
from pipeline.store.documents import read_attributes
from pipeline.store.labels import generations
from pipeline.store.maintain.repair import repair_store
from pipeline.store.maintain.status import read_status
from pipeline.store.maintain.verify import verify_store
from pipeline.transforms.collapse import collapse
from tests.helpers.corpus import write_folder
from tests.helpers.extraction import INLINE

NAMES = [f"clip-{i:03d}.wav" for i in range(4)]
EMOTIONS = ["happy", "hapy", "sad", "sad"]


class Case:
    """Four clips with a metadata.csv, and their store."""

    def __init__(self, home: Path) -> None:
        self.folder, self.store = home / "clips", home / "store"
        if not self.folder.exists():
            write_folder(self.folder, [0.5, 0.4, 0.6, 0.5], metadata=False)
            self.write({"emotion": EMOTIONS})
            self.extract()

    def write(self, columns: dict[str, list[str]], names: list[str] = NAMES) -> None:
        rows = zip(names, *columns.values(), strict=True)
        lines = [",".join(["file_name", *columns]), *(",".join(row) for row in rows)]
        (self.folder / "metadata.csv").write_text("\n".join(lines) + "\n")

    def table(self, text: str) -> list[str]:
        """Write a table of labels beside the corpus; return the overrides that read it."""
        path = self.folder.parent / "labels.csv"
        path.write_text(text)
        return ["dataset=manifest", f"dataset.path={path}", "dataset.id_column=id"]

    def config(self, *more: str) -> list[str]:
        return [f"dataset.path={self.folder}", "model=tiny", f"store={self.store}", *INLINE, *more]

    def extract(self, *more: str) -> None:
        run.extract(load_config(self.config(*more)))

    def relabel(self, *overrides: str) -> Relabelling:
        return relabel(self.store, load_config(overrides or [f"dataset.path={self.folder}"]))

    def column(self, name: str, labels: int | None = None) -> list[object]:
        store = pipeline.open_store(self.store, labels=labels)
        return store.metadata[name].to_pylist()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("made")
    Case(home)
    return home


@pytest.fixture
def case(made: Path, tmp_path: Path) -> Case:
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    return Case(tmp_path)


def test_a_corrected_label_and_a_new_column_need_no_audio(case: Case) -> None:
    """They are read at once, the labels from before are generation 0, and no file is decoded."""
    features = pipeline.open_store(case.store).read(NAMES[1])
    for path in case.folder.glob("*.wav"):
        path.write_bytes(b"away")
    case.write({"emotion": ["happy", "happy", "sad", "sad"], "speaker": ["a", "a", "b", "b"]})
    result = case.relabel()
    assert (result.generation, result.relabelled, result.unchanged) == (1, 4, 0)
    assert result.columns == ("emotion", "speaker")
    assert case.column("emotion") == ["happy", "happy", "sad", "sad"]
    assert case.column("emotion", labels=0) == EMOTIONS
    assert case.column("speaker", labels=1) == ["a", "a", "b", "b"]
    assert torch.equal(pipeline.open_store(case.store).read(NAMES[1]), features)
    again = case.relabel()
    assert (again.generation, again.relabelled, again.unchanged) == (None, 0, 4)
    assert generations(case.store) == [0, 1]


def test_a_table_of_other_rows_relabels_what_it_has(case: Case) -> None:
    """The other labels stay, an added column is null there, and the order is that of the store."""
    options = case.table(
        "id,path,speaker,emotion\nclip-002.wav,x.wav,b,angry\nnew.wav,x.wav,c,sad\n"
        "clip-000.wav,x.wav,a,happy\n"
    )
    result = case.relabel(*options)
    assert (result.relabelled, result.not_in_dataset, result.not_in_store) == (2, 2, 1)
    assert case.column("id") == NAMES
    assert case.column("speaker") == ["a", None, "b", None]
    assert case.column("emotion") == ["happy", "hapy", "angry", "sad"]


def test_a_resume_keeps_a_column_of_another_table(case: Case) -> None:
    """`extract` with the corpus, which lacks the column, changes no label and writes nothing."""
    case.relabel(*case.table("id,path,speaker\n" + "".join(f"{n},x.wav,s{n[7]}\n" for n in NAMES)))
    before = generations(case.store)
    case.extract()
    assert generations(case.store) == before
    assert case.column("speaker") == ["s0", "s1", "s2", "s3"]
    assert pipeline.open_store(case.store).metadata.column_names == ["id", "emotion", "speaker"]


@pytest.mark.parametrize("has_labels", [False, True])
def test_a_run_after_relabelling_reads_no_header(case: Case, has_labels: bool) -> None:
    """The plan has the numbers of the new labels, so it is still that of the dataset."""
    if has_labels:
        case.write({"emotion": [*EMOTIONS[:3], "calm"]})
        case.extract()
    plan = (case.store / "plan.parquet").read_bytes()
    case.relabel(*case.table("id,path,age\n" + "".join(f"{n},x.wav,4\n" for n in NAMES)))
    assert case.column("age") == [4] * 4
    case.extract()
    assert (case.store / "plan.parquet").read_bytes() == plan
    assert generations(case.store) == ([0, 1, 2] if has_labels else [0, 1])


def test_a_dataset_without_any_utterance_of_the_store_is_refused(case: Case) -> None:
    """The message has an id of each, and the setting that chooses the ids."""
    options = case.table("id,path,speaker\n0,clip-000.wav,a\n")
    with pytest.raises(SourceError, match=r"'clip-000\.wav', the dataset '0'.*dataset\.id_column"):
        case.relabel(*options)


def test_ids_without_the_suffix_of_the_files_have_a_remedy(case: Case) -> None:
    """Which works as it is printed."""
    options = case.table("id,mood\nclip-001,calm\n")
    with pytest.raises(SourceError) as error:
        case.relabel(*options, "dataset.audio_column=id")
    assert str(error.value).endswith(
        "leave dataset.id_column out, and set 'dataset.audio_path={id}.wav'"
    )
    assert case.relabel(*options[:2], "dataset.audio_path={id}.wav").relabelled == 1
    assert case.column("mood") == [None, "calm", None, None]


def test_a_type_that_does_not_fit_the_labels_that_stay_is_refused(case: Case) -> None:
    """Text of utterances that the dataset lacks is no number."""
    options = case.table("id,path,emotion\nclip-000.wav,x.wav,1\n")
    with pytest.raises(SourceError, match=r"column emotion is int64.*labels of 3 utterances stay"):
        case.relabel(*options)
    assert generations(case.store) == []


@pytest.mark.parametrize(
    ("before", "after"),
    [("[1,2,3,4]", "true"), ('[["a"],["b"],["c"],["d"]]', '"b"'), ('["a","b","c","d"]', "[1]")],
    ids=["number to truth", "list to text", "text to list"],
)
def test_labels_that_stay_are_never_changed_by_another_type(
    case: Case, before: str, after: str
) -> None:
    """Whether Arrow has no such cast, or one that loses values, `relabel` is refused."""
    table = case.folder.parent / "labels.jsonl"
    overrides = ["dataset=manifest", f"dataset.path={table}", "dataset.id_column=id"]
    row = '{{"id": "{}", "path": "x.wav", "mark": {}}}\n'.format
    values = [json.dumps(value) for value in json.loads(before)]
    table.write_text("".join(map(row, NAMES, values)))
    case.relabel(*overrides)
    table.write_text(row(NAMES[0], after))
    with pytest.raises(SourceError, match=r"column mark is .*give a dataset with all utterances"):
        case.relabel(*overrides)
    assert case.column("mark") == json.loads(before)


def test_damaged_labels_are_replaced_by_equal_ones(case: Case) -> None:
    """Also if the labels before them have the same columns, and only other utterances."""
    case.write({"emotion": EMOTIONS[1:]}, NAMES[1:])
    case.extract()
    path = case.store / "labels/generation-1.parquet"
    path.write_bytes(b"damaged")
    case.relabel()
    case.extract()
    assert case.column("id") == NAMES[1:]
    assert verify_store(case.store).ok


def test_lost_labels_are_noticed_and_show_no_id_twice_when_written_again(case: Case) -> None:
    """Not even of an utterance whose audio was replaced, of which the store has both."""
    (case.folder / NAMES[0]).unlink()
    voice_of(case, NAMES[0], 0.7)
    case.extract()
    path = case.store / "labels/generation-1.parquet"
    content = path.read_bytes()
    path.unlink()
    with pytest.raises(DamagedError, match=r"generation-1\.parquet is missing.*strata extract"):
        verify_store(case.store)
    path.write_bytes(content)
    shutil.rmtree(case.store / "labels")
    case.relabel("dataset=audiofolder", f"dataset.path={case.folder}")
    assert sorted(map(str, case.column("id"))) == NAMES
    assert pipeline.open_store(case.store).n_frames(NAMES[0]) == 34


def test_the_remedies_for_lost_labels_restore_what_is_shown(case: Case) -> None:
    """`relabel` writes them even if no column differs, `extract` hides again what was hidden."""
    (case.folder / NAMES[0]).unlink()
    case.write({"emotion": EMOTIONS[1:]}, NAMES[1:])
    case.extract()
    assert case.column("id") == NAMES[1:]
    shutil.rmtree(case.store / "labels")
    for read in (pipeline.open_store, read_status, verify_store):
        with pytest.raises(DamagedError, match=r"strata relabel.*, and `strata extract` after it"):
            read(case.store)
    case.relabel()
    assert sorted(map(str, case.column("id"))) == NAMES
    case.extract()
    assert case.column("id") == NAMES[1:]
    assert verify_store(case.store).ok


def test_damaged_labels_are_named_and_can_be_written_again(case: Case) -> None:
    """An earlier generation is still read; `relabel` writes a new one over the damage."""
    case.write({"emotion": ["happy", "happy", "sad", "sad"]})
    case.relabel()
    path = case.store / "labels/generation-1.parquet"
    content = bytearray(path.read_bytes())
    content[40] ^= 1
    path.write_bytes(content)
    for read in (pipeline.open_store, read_status, verify_store):
        with pytest.raises(DamagedError, match=r"generation-1.*strata relabel"):
            read(case.store)
    assert case.column("emotion", labels=0) == EMOTIONS
    assert case.relabel().generation == 2
    assert case.column("emotion") == ["happy", "happy", "sad", "sad"]
    assert verify_store(case.store).ok
    shutil.rmtree(case.store / "labels")
    with pytest.raises(DamagedError, match=r"labels is missing; `strata relabel"):
        pipeline.open_store(case.store)


@pytest.mark.parametrize("by_extract", [False, True], ids=["relabel", "extract"])
def test_the_loss_of_the_newest_labels_is_noticed(case: Case, by_extract: bool) -> None:
    """Every reader names the file and the remedy, which does not give its number again."""
    case.write({"emotion": ["happy", "happy", "sad", "sad"]})
    case.relabel()
    newest = ["happy", "happy", "sad", "calm"]
    case.write({"emotion": newest})
    case.extract() if by_extract else case.relabel()
    assert generations(case.store) == [0, 1, 2]
    (case.store / "labels/generation-2.parquet").unlink()
    out = case.store.parent / "out"
    readers: list[Callable[[Path], object]] = [
        *(pipeline.open_store, read_status, verify_store, repair_store),
        lambda store: pipeline.open_store(store, labels=2),
        lambda store: pipeline.copy_stores([store], out),
        lambda store: collapse(store, out, "average"),
        lambda _: case.extract(),
    ]
    for read in readers:
        with pytest.raises(DamagedError, match=r"generation-2.parquet is missing.*strata relabel"):
            read(case.store)
    found = CliRunner().invoke(app, ["verify", str(case.store)])
    assert (found.exit_code, "generation-2.parquet is missing" in found.stderr) == (1, True)
    assert case.column("emotion", labels=1) == ["happy", "happy", "sad", "sad"]
    with pytest.raises(StoreError, match=r"no labels=3; it has 0, 1$"):
        case.column("emotion", labels=3)
    assert case.relabel().generation == 3
    assert case.column("emotion") == newest
    assert verify_store(case.store).ok


def test_lost_labels_equal_to_older_ones_are_written_again(case: Case) -> None:
    """Otherwise the store would stay unreadable, though no column differs."""
    for emotions in (["happy"] * 4, EMOTIONS):
        case.write({"emotion": emotions})
        case.relabel()
    (case.store / "labels/generation-1.parquet").unlink()
    (case.store / "labels/generation-2.parquet").unlink()
    found = case.relabel()
    assert (found.generation, found.relabelled) == (3, 0)
    assert case.column("emotion") == EMOTIONS


def test_a_generation_newer_than_the_stated_one_is_shown(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A driver was killed after it wrote the generation; the next one states it."""
    case.write({"emotion": ["happy"] * 4})
    case.relabel()
    case.write({"emotion": ["sad"] * 4})

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("pipeline.store.labels.note_labels", die)
        with pytest.raises(KeyboardInterrupt):
            case.relabel()
    assert read_attributes(case.store)["newest_labels"] == 1
    assert case.column("emotion") == ["sad"] * 4
    assert verify_store(case.store).ok
    case.extract()
    assert read_attributes(case.store)["newest_labels"] == 2


def test_stores_that_do_not_state_their_newest_labels_are_read(case: Case) -> None:
    """Those of earlier versions; the next generation is stated."""
    case.write({"emotion": ["happy"] * 4})
    case.relabel()
    path = case.store / "features.zarr/zarr.json"
    document = json.loads(path.read_text())
    for name in ("newest_labels", "checksum"):  # the checksum covers the number
        del document["attributes"][name]
    path.write_text(json.dumps(document))
    assert case.column("emotion") == ["happy"] * 4
    assert verify_store(case.store).ok
    case.write({"emotion": ["sad"] * 4})
    assert case.relabel().generation == 2
    assert read_attributes(case.store)["newest_labels"] == 2


def test_columns_that_cannot_be_labels_are_named(case: Case) -> None:
    """They have a name of the index: without a word, they would seem to be there."""
    overrides = case.table("path,id,emotion,unit\n" + "".join(f"x,{n},sad,1\n" for n in NAMES))
    found = CliRunner().invoke(app, ["relabel", str(case.store), *overrides])
    assert found.exit_code == 0, found.stderr
    assert "skipped: 1 column of the dataset: unit. Columns of labels" in found.stderr
    assert case.column("emotion") == ["sad"] * 4
    assert "unit" not in pipeline.open_store(case.store).metadata.column_names
    found = CliRunner().invoke(
        app, ["relabel", str(case.store), *overrides, "dataset.columns=[unit]"]
    )
    assert found.exit_code == 1
    assert "dataset.columns names unit" in found.stderr


@pytest.mark.parametrize("value", [True, "1", 1.0], ids=repr)
def test_a_generation_is_a_number(case: Case, value: object) -> None:
    """`labels=True` is no way to ask for columns, and not generation 1."""
    with pytest.raises(TypeError, match=f"labels is {value!r}; expected the number"):
        pipeline.open_store(case.store, labels=value)  # type: ignore[arg-type]


def test_a_dataset_that_was_rearranged_is_unchanged_afterwards(case: Case) -> None:
    """Its rows keep their numbers, which do not ascend any more, when it is extracted again."""
    voice_of(case, "clip-001b.wav", 0.7)
    case.write(INSERTED, names := [*NAMES[:2], "clip-001b.wav", *NAMES[2:]])
    for _ in range(2):
        case.extract()
        assert generations(case.store) == [0, 1]
        store = pipeline.open_store(case.store)
        assert store.ids == names
        assert [store.n_frames(name) for name in names] == [24, 19, 34, 29, 24]


def test_labels_that_change_while_the_attributes_are_lost(case: Case) -> None:
    """Nothing is written: nothing says what the units are. With the attributes all is well."""
    attributes = case.store / "features.zarr" / "zarr.json"
    content = attributes.read_bytes()
    attributes.unlink()
    case.write({"emotion": ["happy", "happy", "sad", "sad"]})
    with pytest.raises(DamagedError, match="which says what they are, is gone: restore it from a"):
        case.extract()
    attributes.write_bytes(content)
    case.extract()
    assert case.column("emotion") == ["happy", "happy", "sad", "sad"]
    assert case.column("emotion", labels=0) == EMOTIONS


def test_labels_that_never_changed_have_no_number(case: Case) -> None:
    """Generation 0 is what the store shows; others do not exist."""
    assert case.column("emotion", labels=0) == EMOTIONS
    with pytest.raises(StoreError, match="no labels=1: they never changed"):
        pipeline.open_store(case.store, labels=1)


def voice_of(case: Case, name: str, seconds: float) -> Path:
    """Write another clip into the folder of a case."""
    other = case.folder.parent / "other"
    write_folder(other, [seconds], metadata=False)
    return (other / NAMES[0]).rename(case.folder / name)


@pytest.fixture
def killed(case: Case, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Extract with a driver that is killed between labels and plan."""

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    def extract() -> None:
        with monkeypatch.context() as patch:
            patch.setattr(obtain, "write_plan", die)
            with pytest.raises(KeyboardInterrupt):
                case.extract()

    return extract


INSERTED = {"emotion": [*EMOTIONS[:2], "new", *EMOTIONS[2:]]}


def test_a_run_killed_between_labels_and_plan_is_repeated(
    case: Case, killed: Callable[[], None]
) -> None:
    """The new labels name utterances that no plan has; the next run ends as if nothing was."""
    voice_of(case, "clip-001b.wav", 0.7)
    case.write(INSERTED, names := [*NAMES[:2], "clip-001b.wav", *NAMES[2:]])
    killed()
    assert case.column("id") == NAMES
    case.extract()
    assert case.column("id") == names
    assert case.column("emotion")[2] == "new"
    assert pipeline.open_store(case.store).n_frames("clip-001b.wav") == 34
    verified = verify_store(case.store)
    assert (verified.ok, verified.orphans) == (True, ())


def test_a_row_of_a_killed_run_that_is_renamed_has_its_new_id(
    case: Case, killed: Callable[[], None]
) -> None:
    """The labels of the killed run, which have its old id under the same number, are removed."""
    clip = voice_of(case, "clip-001b.wav", 0.7)
    case.write(INSERTED, [*NAMES[:2], "clip-001b.wav", *NAMES[2:]])
    killed()
    clip.rename(case.folder / "clip-001c.wav")
    case.write(INSERTED, names := [*NAMES[:2], "clip-001c.wav", *NAMES[2:]])
    case.extract()
    assert case.column("id") == names
    assert generations(case.store) == [0, 2]


def test_relabelling_after_a_killed_run_drops_its_labels(
    case: Case, killed: Callable[[], None]
) -> None:
    """They name an utterance that no plan has, whose number another one may get."""
    clip = voice_of(case, "clip-001b.wav", 0.7)
    case.write(INSERTED, [*NAMES[:2], "clip-001b.wav", *NAMES[2:]])
    killed()
    assert generations(case.store) == [0, 1]
    found = case.relabel()
    assert (found.relabelled, found.unchanged, found.not_in_store) == (0, 4, 1)
    assert generations(case.store) == [0, 2]
    clip.rename(case.folder / "clip-001c.wav")
    case.write(INSERTED, names := [*NAMES[:2], "clip-001c.wav", *NAMES[2:]])
    case.extract()
    assert case.column("id") == names


def test_labels_of_a_killed_run_do_not_bring_superseded_audio_back(
    case: Case, killed: Callable[[], None]
) -> None:
    """A dataset that is again what it was before the killed run has its own features."""
    first = case.folder / NAMES[0]
    earlier = first.rename(case.folder.parent / "earlier.wav")
    now = voice_of(case, NAMES[0], 0.7)
    case.extract()
    later = now.rename(case.folder.parent / "later.wav")
    earlier.rename(first)
    killed()
    assert pipeline.open_store(case.store).n_frames(NAMES[0]) == 24
    later.rename(first)
    case.extract()
    assert pipeline.open_store(case.store).n_frames(NAMES[0]) == 34


def test_a_collapsed_store_has_the_labels_of_its_parent(case: Case, tmp_path: Path) -> None:
    """Also those that change later, when it is collapsed again."""
    out = tmp_path / "collapsed"
    collapse(case.store, out, "average")
    case.write({"emotion": ["happy", "happy", "sad", "sad"]})
    case.relabel()
    assert pipeline.open_store(out).metadata["emotion"].to_pylist() == EMOTIONS
    collapse(case.store, out, "average")
    assert pipeline.open_store(out).metadata["emotion"].to_pylist()[1] == "happy"


def test_a_collapsed_store_with_labels_of_its_own_follows_its_parent(
    case: Case, tmp_path: Path
) -> None:
    """It shows new utterances and replaced audio as its parent does, and keeps its own labels."""
    out = tmp_path / "collapsed"
    collapse(case.store, out, "average")
    table = case.table("id,path,emotion,age\n" + "".join(f"{n},x.wav,calm,4\n" for n in NAMES))
    relabel(out, load_config(table))
    voice_of(case, "clip-004.wav", 0.6)
    case.write({"emotion": [*EMOTIONS, "new"]}, [*NAMES, "clip-004.wav"])
    case.extract()
    (case.folder / NAMES[0]).unlink()
    voice_of(case, NAMES[0], 0.7)
    for _ in range(2):
        collapse(case.store, out, "average")
        store = pipeline.open_store(out)
        assert store.ids == [*NAMES, "clip-004.wav"]
        assert store.metadata["emotion"].to_pylist() == ["calm"] * 4 + ["new"]
        assert store.metadata["age"].to_pylist() == [4] * 4 + [None]
        assert store.n_frames(NAMES[0]) == pipeline.open_store(case.store).n_frames(NAMES[0])
        assert verify_store(out).ok
        case.extract()
    assert store.n_frames(NAMES[0]) == 34


def test_labels_of_a_collapsed_store_are_newer_than_those_of_its_parent(
    case: Case, tmp_path: Path
) -> None:
    """So they stay the newest ones; a column that is of another type in the parent is as there."""
    out = tmp_path / "collapsed"
    collapse(case.store, out, "average")
    ids = "".join(f"{n},x.wav,4\n" for n in NAMES)
    relabel(out, load_config(case.table(f"id,path,emotion\n{ids}")))
    assert pipeline.open_store(out).metadata["emotion"].to_pylist() == [4] * 4
    for emotion in ("calm", "angry"):
        case.write({"emotion": [emotion, *EMOTIONS[1:]]})
        case.relabel()
    collapse(case.store, out, "average")
    assert pipeline.open_store(out).metadata["emotion"].to_pylist() == ["angry", *EMOTIONS[1:]]
    assert generations(out)[-1] > generations(case.store)[-1]
    assert read_attributes(out)["format_version"] == 2


def test_a_run_killed_before_the_format_version_is_raised_raises_it_later(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise earlier versions of Strata would read a store without its labels."""

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    case.write({"emotion": EMOTIONS[1:]}, NAMES[1:])
    with monkeypatch.context() as patch:
        patch.setattr("pipeline.store.labels.note_labels", die)
        with pytest.raises(KeyboardInterrupt):
            case.extract()
    case.extract()
    assert read_attributes(case.store)["format_version"] == 2
    assert case.column("id") == NAMES[1:]


def test_the_command_prints_what_has_changed(case: Case) -> None:
    """With --json as one object; other settings than the dataset's are refused."""
    case.write({"emotion": ["happy", "happy", "sad", "sad"]})
    runner = CliRunner()
    found = runner.invoke(
        app, ["relabel", str(case.store), f"dataset.path={case.folder}", "--json"]
    )
    assert found.exit_code == 0
    assert json.loads(found.stdout)["relabelled"] == 1
    found = runner.invoke(app, ["relabel", str(case.store), "model=tiny"])
    assert found.exit_code == 2
    planned = runner.invoke(app, ["plan", *case.config(), "--json"])
    assert json.loads(planned.stdout)["unchanged"] == 4
