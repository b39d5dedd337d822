"""Class numbers of columns that hold text or whole numbers, as those of a metadata.csv."""

from __future__ import annotations

import pickle
import re

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import torch

import pipeline
from pipeline.errors import ConfigError, StoreError
from tests.helpers.feature_stores import make_store

WORDS = ["yes", "no", "stop", "go"]
N = 12
COLUMNS = pa.table(
    {
        "word": [WORDS[i % 4] for i in range(N)],
        "year": pa.array([(2024, 999, 1000)[i % 3] for i in range(N)], pa.int64()),
        "digit": pa.array([i % 4 for i in range(N)], pa.int64()),  # its store knows the names
        "whole": pa.array([float(10 - i % 3) for i in range(N)]),
        "flag": [i % 2 == 0 for i in range(N)],
        "score": pa.array([i / 4 for i in range(N)]),
        "gap": [None if i == 5 else WORDS[i % 4] for i in range(N)],
        "several": [["a"]] * N,
        "split": ["train" if i < 9 else "test" for i in range(N)],
    }
)


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    root = tmp_path_factory.mktemp("classes") / "store"
    make_store(root, [5 + i for i in range(N)], columns=COLUMNS)
    return pipeline.open_store(root)


@pytest.mark.parametrize(
    ("column", "names"),
    [
        ("word", ["go", "no", "stop", "yes"]),
        ("year", ["999", "1000", "2024"]),
        ("digit", ["zero", "one", "two", "three"]),
        ("whole", ["8", "9", "10"]),
        ("flag", ["False", "True"]),
    ],
)
def test_classes_are_numbered_in_order(opened, column, names):
    """As numbers if all are, else alphabetically; in batches, examples and for all utterances."""
    dataset = pipeline.FeatureDataset(opened, [2], classes=[column])
    assert dataset.class_names == {column: names}
    numbers = dataset.column(column)
    assert numbers.dtype == torch.int64
    texts = [names[number] for number in numbers]
    stored = opened.metadata[column].to_pylist()
    if column == "digit":
        assert numbers.tolist() == stored
    else:
        assert [float(text) if column == "whole" else text for text in texts] == [
            value if column == "whole" else str(value) for value in stored
        ]
    assert [dataset[i].columns[column] for i in range(N)] == numbers.tolist()
    for batch in pipeline.make_loader(dataset, max_frames_per_batch=40):
        wanted = [int(numbers[opened.position(name)]) for name in batch.ids]
        assert batch.columns[column].tolist() == wanted
        assert batch.columns[column].dtype == torch.int64


def test_selections_of_a_store_have_equal_numbers(opened):
    """Also if one of them lacks a class, and in another process."""
    first = opened.select(pc.field("n_frames") < 7)  # two words only
    last = opened.select(split="test")
    for store in (first, last, pickle.loads(pickle.dumps(first))):
        dataset = pipeline.FeatureDataset(store, classes=["word"])
        assert dataset.class_names["word"] == sorted(WORDS)
        expected = [sorted(WORDS).index(word) for word in store.metadata["word"].to_pylist()]
        assert dataset.column("word").tolist() == expected
    restored = pickle.loads(pickle.dumps(pipeline.FeatureDataset(first, classes=["word"])))
    assert restored.class_names == dataset.class_names


def test_names_can_be_given(opened):
    """Their order is that of the numbers; there may be more than the store has."""
    names = ["stop", "yes", "no", "maybe", "go"]
    dataset = pipeline.FeatureDataset(opened, classes={"word": names})
    assert dataset.class_names == {"word": names}
    assert [names[i] for i in dataset.column("word")] == opened.metadata["word"].to_pylist()
    with pytest.raises(ConfigError, match=r"'word' has values that are no class: stop, go; the"):
        pipeline.FeatureDataset(opened, classes={"word": ["yes", "no"]})
    with pytest.raises(ConfigError, match="are not distinct"):
        pipeline.FeatureDataset(opened, classes={"word": [*names, "go"]})


def test_columns_and_classes_together(opened):
    """A column in both is returned once, as a class."""
    dataset = pipeline.FeatureDataset(opened, columns=["split", "word", "digit"], classes=["word"])
    assert dataset.columns == ("split", "word", "digit")
    assert set(dataset.class_names) == {"word", "digit"}
    assert dataset.column("split") == opened.metadata["split"].to_pylist()
    assert isinstance(dataset.column("word"), torch.Tensor)
    with pytest.raises(StoreError, match=r"no column 'year' in the dataset; it has \['split'"):
        dataset.column("year")


@pytest.mark.parametrize(
    ("classes", "error", "words"),
    [
        ("word", ConfigError, "classes is 'word'; expected a list of names"),
        (["wrd"], StoreError, "no columns ['wrd'] in the store"),
        (["score"], ConfigError, "column 'score' holds 0.25; classes are texts or whole numbers"),
        (["several"], ConfigError, "column 'several' holds ['a']; classes are texts"),
        (["gap"], ConfigError, "'gap' has no value for 1 of 12 utterances; leave them out with"),
    ],
)
def test_what_is_no_class_is_refused(opened, classes, error, words):
    """When the dataset is made, in one line."""
    with pytest.raises(error, match=re.escape(words)) as caught:
        pipeline.FeatureDataset(opened, classes=classes)
    assert "\n" not in str(caught.value)


def test_utterances_without_a_class_are_left_out_as_advised(opened):
    """The selection of the message works."""
    some = opened.select(pc.field("gap").is_valid())
    dataset = pipeline.FeatureDataset(some, classes=["gap"])
    assert len(dataset) == N - 1
    assert dataset.column("gap").max() == 3


def test_classes_are_class_labels_of_a_hugging_face_dataset(opened):
    """Whatever the column held."""
    dataset = pipeline.FeatureDataset(opened, columns=["split"], classes=["word", "year", "digit"])
    rows = dataset.to_hf_dataset()
    for name, names in dataset.class_names.items():
        assert rows.features[name].names == names
        assert np.array_equal(rows[name][:], dataset.column(name).numpy())
    assert rows["split"][:] == opened.metadata["split"].to_pylist()
