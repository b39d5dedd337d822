"""Datasets with splits: one, several or all of them, and the column that keeps them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import pytest

from pipeline.config import DatasetConfig, SplitConfig
from pipeline.errors import SourceError
from pipeline.sources.base import Column
from pipeline.sources.opening import open_source
from pipeline.sources.splits import NAMES
from tests.helpers.audio_files import speechlike, write


def opened(kind: str, path: Path | None = None, **more: Any) -> dict[str, Any]:
    """Return ids, columns, metadata and class names."""
    source = open_source(DatasetConfig(kind, path and str(path), **more))
    found = source.metadata(range(len(source))).to_pydict()
    names = {column.name: column.class_names for column in source.columns if column.class_names}
    return {"ids": source.ids().to_pylist(), **found, "classes": names}


def refused(kind: str, path: Path, **more: Any) -> str:
    with pytest.raises(SourceError) as error:
        open_source(DatasetConfig(kind, str(path), **more))
    return str(error.value)


def files(root: Path, *names: str) -> Path:
    for i, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        write(root / name, speechlike(800, seed=i))
    return root


def test_folders_named_like_splits_are_splits_not_labels(tmp_path: Path) -> None:
    root = files(tmp_path, "test/b.wav", "train/a.wav", "train/b.wav")
    assert opened("audiofolder", root) == {
        "ids": ["test/b.wav", "train/a.wav", "train/b.wav"],
        "split": ["test", "train", "train"],
        "classes": {},
    }
    assert opened("audiofolder", root, split="all") == opened("audiofolder", root)
    assert opened("audiofolder", root, split="train") == {
        "ids": ["train/a.wav", "train/b.wav"],
        "classes": {},
    }


def test_folders_below_splits_are_labels(tmp_path: Path) -> None:
    names = [
        f"{split}/{word}/{i}.wav"
        for split in ("test", "train")
        for word in ("no", "yes")
        for i in "ab"
    ]
    root = files(tmp_path, *names)
    found = opened("audiofolder", root)
    assert found["split"] == ["test"] * 4 + ["train"] * 4
    assert found["label"] == [0, 0, 1, 1] * 2
    assert found["classes"] == {"label": ("no", "yes")}
    assert opened("audiofolder", root, split="test+train")["split"] == found["split"]
    files(tmp_path, "dev/yes/c.wav")
    assert opened("audiofolder", root, split="test+train")["ids"] == found["ids"]


def test_other_folders_are_labels_as_before(tmp_path: Path) -> None:
    """If one folder is not named like a split, or audio lies beside them, none is a split."""
    root = files(tmp_path, "test/a.wav", "left/a.wav")
    assert opened("audiofolder", root)["classes"] == {"label": ("left", "test")}
    assert opened("audiofolder", root, split="all") == opened("audiofolder", root)
    assert opened("audiofolder", root, split="test+left")["split"] == ["left", "test"]
    beside = files(tmp_path / "beside", "test/a.wav", "train/a.wav", "c.wav")
    assert set(opened("audiofolder", beside)) == {"ids", "classes"}
    assert "there are test, train" in refused("audiofolder", beside, split="test+dev")


@pytest.mark.parametrize(
    ("names", "splits", "labels"),
    [
        (["TEST/DR1/b.wav", "TRAIN/DR2/a.wav"], ["TEST", "TRAIN"], ["DR1", "DR2"]),
        (["development/a.wav", "evaluation/b.wav"], ["development", "evaluation"], None),
        (["test_set/a.wav", "train_set/b.wav"], ["test_set", "train_set"], None),
        (
            ["dev-clean/1/a.wav", "train-clean-100/2/b.wav"],
            ["dev-clean", "train-clean-100"],
            ["1", "2"],
        ),
        (["c/test/no/a.wav", "c/train/yes/b.wav"], ["test", "train"], ["no", "yes"]),
        (["audio/Test/a.wav", "audio/Train/b.wav"], ["Test", "Train"], None),
        (["no/test/a.wav", "yes/train/b.wav"], ["test", "train"], ["no", "yes"]),
        (["test-1/a.wav", "test-2/b.wav"], None, ["test-1", "test-2"]),
        (["testimony/a.wav", "training/b.wav"], None, ["testimony", "training"]),
    ],
)
def test_directories_are_splits_in_the_spellings_of_corpora(
    tmp_path: Path, names: list[str], splits: list[str] | None, labels: list[str] | None
) -> None:
    """In any case, at any level, with more after the name; never the label."""
    root = files(tmp_path, *names)
    found = opened("audiofolder", root)
    assert found.get("split") == splits
    classes = found["classes"].get("label")
    assert ([classes[i] for i in found["label"]] if classes else None) == labels
    if splits is not None:
        part = opened("audiofolder", root, split=splits[1].lower())
        assert part["ids"] == names[1:]
        assert opened("audiofolder", root, split="all") == found
        assert "there are " + ", ".join(splits) in refused("audiofolder", root, split="tain")


def test_names_of_splits_are_those_of_sweeps() -> None:
    """`test1` is one that directories only begin with."""
    of_sweeps = {*SplitConfig.train, *SplitConfig.dev, *SplitConfig.test}
    assert of_sweeps - {"test1"} == NAMES


def test_files_that_are_not_wanted_hide_no_split(tmp_path: Path) -> None:
    """They would make labels of the splits."""
    root = files(tmp_path, "test/a_1.wav", "train/b_1.wav", "noise/c_2.wav")
    found = opened("audiofolder", root, files="*_1.wav")
    assert (found["split"], found["classes"]) == (["test", "train"], {})


def test_files_without_an_extension_are_in_splits_too(tmp_path: Path) -> None:
    """Only metadata makes them utterances."""
    root = files(tmp_path, "test/a.wav", "train/b.wav")
    for name in ("test/a", "train/b"):
        (root / f"{name}.wav").rename(root / name)
    (root / "metadata.csv").write_text("file_name\ntest/a\ntrain/b\n")
    assert opened("audiofolder", root, split="test")["ids"] == ["test/a"]
    assert opened("audiofolder", root)["split"] == ["test", "train"]


def test_a_note_says_why_there_is_no_split_or_label(tmp_path: Path) -> None:
    root = files(tmp_path, "test/no/a.wav", "train/yes/b.wav", "noise/c.wav")
    near, depths = open_source(DatasetConfig("audiofolder", str(root))).notes
    assert "test, train are named like splits, but there is no column split" in near
    assert "there is other audio (noise): dataset.split=test+train takes these alone" in near
    assert "no column label, because files do not lie equally deep" in depths
    assert "(noise/c.wav, test/no/a.wav)" in depths
    source = open_source(DatasetConfig("audiofolder", str(root), split="test+train"))
    assert source.notes == ()
    flat = files(tmp_path / "flat", "a.wav")
    [note] = open_source(DatasetConfig("audiofolder", str(flat), split="all")).notes
    assert "has no splits that are known by their names, so there is no column split" in note
    assert open_source(DatasetConfig("audiofolder", str(flat))).notes == ()


def test_a_split_is_named_once_and_in_any_case(saved: Path) -> None:
    """`train+train` does not double the rows."""
    path = saved / "saved"
    assert opened("disk", path, split="Train") == opened("disk", path, split="train")
    assert opened("disk", path, split="train+train") == opened("disk", path, split="train")
    folder = saved / "files"
    folder.mkdir()
    for name in ("test", "train"):
        file = saved / f"hub/data/{name}-00000-of-00001.parquet"
        file.rename(folder / f"{name.title()}.parquet")
    assert opened("parquet", folder, split="all")["split"] == ["Test"] * 2 + ["Train"] * 2
    assert opened("parquet", folder, split="train")["ids"] == ["0.wav", "1.wav"]


def test_metadata_keeps_its_own_column(tmp_path: Path) -> None:
    """Rows of metadata get the split of their folder, unless the table has the column."""
    root = files(tmp_path, "test/b.wav", "train/a.wav")
    table = root / "metadata.csv"
    table.write_text("file_name,n\ntrain/a.wav,1\ntest/b.wav,2\n")
    found = opened("audiofolder", root)
    assert dict(zip(found["n"], found["split"], strict=True)) == {1: "train", 2: "test"}
    assert opened("audiofolder", root, split="test")["n"] == [2]
    table.write_text("file_name,split\ntrain/a.wav,x\ntest/b.wav,y\n")
    assert sorted(opened("audiofolder", root)["split"]) == ["x", "y"]


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A dataset of three splits, with clips whose names repeat, as `save_to_disk` writes it."""
    files(tmp_path / "clips", "0.wav", "1.wav")
    sound = [(tmp_path / f"clips/{i}.wav").read_bytes() for i in "01"]
    features = {
        "audio": datasets.Audio(decode=False),
        "word": datasets.ClassLabel(names=["no", "yes"]),
    }
    features["utt"] = datasets.Value("string")
    parts = {
        name: datasets.Dataset.from_dict(
            {
                "audio": [{"bytes": sound[i], "path": f"{i}.wav"} for i in range(n)],
                "word": [0, 1][:n],
                "utt": [str(i) for i in range(n)],
            },
            features=datasets.Features(features),
        )
        for name, n in (("train", 2), ("validation", 1), ("test", 2))
    }
    datasets.DatasetDict(parts).save_to_disk(tmp_path / "saved")
    for name, part in parts.items():
        (tmp_path / "hub/data").mkdir(parents=True, exist_ok=True)
        part.to_parquet(tmp_path / f"hub/data/{name}-00000-of-00001.parquet")
    return tmp_path


def test_ids_that_are_unique_do_not_get_the_split(saved: Path) -> None:
    parts = datasets.load_from_disk(saved / "saved")
    for name, part in parts.items():
        values = [f"{name}-{i}" for i in range(len(part))]
        parts[name] = part.remove_columns("utt").add_column("utt", values)
    parts.save_to_disk(saved / "unique")
    found = opened("disk", saved / "unique", split="train+test", id_column="utt")
    assert found["ids"] == found["utt"]


@pytest.mark.parametrize("kind", ["disk", "hub"])
def test_splits_of_datasets_are_joined(saved: Path, kind: str) -> None:
    """All of them, or some; an id that repeats gets the split before it."""
    where = {"path": saved / "saved"} if kind == "disk" else {"name": str(saved / "hub")}
    everything = opened(kind, split="all", **where)
    assert everything["split"] == ["test", "test", "train", "train", "validation"]
    names = ["test/0.wav", "test/1.wav", "train/0.wav", "train/1.wav", "validation/0.wav"]
    assert everything["ids"] == names
    assert everything["classes"] == {"word": ("no", "yes")}
    some = opened(kind, split="train+test", id_column="utt", **where)
    assert some["split"] == ["train", "train", "test", "test"]
    assert some["ids"] == ["train/0", "train/1", "test/0", "test/1"]
    assert "split" not in opened(kind, split="train", **where)
    source = open_source(
        DatasetConfig(kind, **{k: str(v) for k, v in where.items()}, split="all", limit=3)
    )
    assert source.ids().to_pylist() == names[:3]
    one = opened(kind, split="all", limit=1, **where)  # the rule is that of all rows
    assert one["ids"] == names[:1]
    assert source.columns[-1] == Column("split", "string", None)


def test_splits_that_do_not_fit_together_are_refused(saved: Path) -> None:
    parts = datasets.load_from_disk(saved / "saved")
    parts["test"] = parts["test"].remove_columns("word")
    parts.save_to_disk(saved / "other")
    assert "other columns, types or class names" in refused("disk", saved / "other", split="all")
    parts = datasets.load_from_disk(saved / "saved")
    parts["test"] = parts["test"].remove_columns("utt")
    parts.save_to_disk(saved / "third")
    assert "other columns, types or class names" in refused("disk", saved / "third", split="all")
    assert "dataset.split=train+dev is not in" in refused(
        "disk", saved / "other", split="train+dev"
    )


def test_embedded_recordings_with_times_are_noted(saved: Path) -> None:
    """Names of embedded audio may repeat; with columns of times it is no accident."""
    parts = datasets.load_from_disk(saved / "saved")
    part = datasets.concatenate_datasets([parts["train"], parts["validation"]])
    part.save_to_disk(saved / "plain")
    config = DatasetConfig("disk", str(saved / "plain"))
    assert open_source(config).notes == ()
    part.add_column("begin", [0.0, 0.1, 0.2]).save_to_disk(saved / "times")
    [note] = open_source(replace(config, path=str(saved / "times"))).notes
    assert note.startswith("begin looks like parts of recordings. 3 utterances are of 2 files")


def test_a_manifest_is_filtered_by_its_column(tmp_path: Path) -> None:
    files(tmp_path, "a.wav", "b.wav", "c.wav")
    path = tmp_path / "list.csv"
    path.write_text("path,split,from\na.wav,train,0\nb.wav,dev,0.01\nc.wav,train,0.02\n")
    more = {"audio_column": "path", "start_column": "from", "id_column": "path"}
    assert opened("manifest", path, split="train", **more)["from"] == [0.0, 0.02]
    source = open_source(DatasetConfig("manifest", str(path), split="train", **more))
    assert [source.segment(row).span.start_s for row in range(2)] == [0.0, 0.02]
    assert opened("manifest", path, split="dev+train", **more) == opened("manifest", path, **more)
    assert opened("manifest", path, split="all", **more) == opened("manifest", path, **more)
    assert "is not in the column split: dev, train" in refused(
        "manifest", path, split="test", **more
    )
    path.write_text("path\na.wav\n")
    assert "there is no column split" in refused(
        "manifest", path, split="test", audio_column="path"
    )


def nemo(*entries: tuple[str, float]) -> str:
    return "".join(
        json.dumps({"audio_filepath": path, "offset": start, "duration": 0.01}) + "\n"
        for path, start in entries
    )


def test_a_folder_of_lists_has_a_split_for_each(tmp_path: Path) -> None:
    """Tables of every kind, and the lists of NeMo and fairseq; times are those of each list."""
    root = files(tmp_path, "a.wav", "b.wav", "c.wav")
    more = {"audio_column": "path"}
    (root / "csv").mkdir()
    (root / "csv/train.csv").write_text("path,n\n../a.wav,01\n../b.wav,02\n")
    (root / "csv/Dev.csv").write_text("path,n\n../c.wav,3\n")
    (root / "csv/words.csv").write_text("word\nx\n")
    found = opened("manifest", root / "csv", split="all", **more)
    assert (found["split"], found["n"]) == (["Dev", "train", "train"], ["3", "01", "02"])
    assert opened("manifest", root / "csv", split="dev+train", **more) == found
    source = open_source(DatasetConfig("manifest", str(root / "csv"), split="all", **more))
    assert source.notes == ("dataset.split=all reads Dev, train, and not words",)

    (root / "json").mkdir()
    (root / "json/train.jsonl").write_text('{"path": "../a.wav", "n": 1}\n')
    (root / "json/test.json").write_text('[{"path": "../b.wav", "n": 1.5}]')
    found = opened("manifest", root / "json", split="train+test", **more)
    assert (found["split"], found["n"]) == (["train", "test"], [1.0, 1.5])

    (root / "nemo").mkdir()
    (root / "nemo/train.json").write_text(nemo(("../a.wav", 0.01), ("../a.wav", 0.02)))
    (root / "nemo/test.json").write_text(nemo(("../b.wav", 0.03)))
    source = open_source(DatasetConfig("manifest", str(root / "nemo"), split="train+test"))
    spans = [source.segment(row).span for row in range(3)]
    assert [span.start_s for span in spans if span] == [0.01, 0.02, 0.03]
    assert source.metadata([2])["split"].to_pylist() == ["test"]

    (root / "fairseq").mkdir()
    (root / "fairseq/train.tsv").write_text(f"{root}\na.wav\t800\n")
    (root / "fairseq/valid.tsv").write_text(f"{root}\nb.wav\t800\n")
    (root / "fairseq/dict.ltr.txt").write_text("| 9\n")
    found = opened("manifest", root / "fairseq", split="all")
    assert (found["ids"], found["split"]) == (["a.wav", "b.wav"], ["train", "valid"])


def test_lists_of_splits_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    def write_lists(**lists: str) -> None:
        for name, text in lists.items():
            (tmp_path / name.replace("_", ".")).write_text(text)

    write_lists(train_jsonl='{"path": "a.wav"}\n', train_csv="path\na.wav\n")
    more = {"audio_column": "path"}
    words = "several lists of one split: train.csv, train.jsonl"
    assert words in refused("manifest", tmp_path, split="train", **more)
    words = f"{tmp_path} has no such list; there are train (csv, tsv, json"
    assert words in refused("manifest", tmp_path, split="train+test", **more)
    write_lists(dev_json=nemo(("a.wav", 0)), test_json='[{"path": "a.wav"}]')
    words = f"{tmp_path}/test.json and {tmp_path}/dev.json are lists of different forms"
    assert words in refused("manifest", tmp_path, split="dev+test", **more)
    write_lists(val_tsv="/x\na.wav\t1\n", tst_tsv="/y\na.wav\t1\n")
    assert "start from /y, those of" in refused("manifest", tmp_path, split="val+tst")
