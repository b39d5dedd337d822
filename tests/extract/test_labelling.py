"""How labels are compared, and how much of a dataset may change."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from pipeline.config import DatasetConfig
from pipeline.errors import SourceError
from pipeline.extract.planning.changes import Changes, check_extent
from pipeline.extract.planning.labelling import other_columns, other_values
from pipeline.sources.opening import open_source
from pipeline.store.backend.opening import open_backend
from pipeline.store.labels import Labels


def column(name: str, kind: str, classes: list[str] | None = None) -> dict[str, Any]:
    return {"name": name, "type": kind, "class_names": classes}


def labels(numbers: list[int], values: list[Any], kind: pa.DataType) -> Labels:
    ids = [f"u{number}" for number in numbers]
    table = pa.table({"id": ids, "row": numbers, "x": pa.array(values, kind)})
    return Labels(table, (column("x", str(kind)),))


def test_columns_differ_by_name_type_and_classes() -> None:
    """A missing column is no difference: it stays."""
    before = [column("a", "int64", ["x", "y"]), column("b", "int64"), column("c", "string")]
    now = [column("a", "int64", ["y", "x"]), column("b", "double"), column("d", "string")]
    assert other_columns(before, before[:2]) == []
    assert other_columns(before, now) == [
        "column b is double, not int64",
        "column d is new",
        "the classes of column a are other ones",
    ]


def test_values_are_compared_by_the_number_of_the_utterance() -> None:
    """Whatever the order of the labels is; utterances that were not there do not differ."""
    before = labels([2, 0, 1], ["two", "zero", "one"], pa.string())
    now = labels([0, 1, 2, 3], ["null", "one", "due", "three"], pa.string())
    differs, examples = other_values(before, now)
    assert differs.tolist() == [True, False, True, False]
    assert examples == ["column x of 'u0' is 'null', not 'zero'"]


def test_a_value_that_is_no_number_equals_itself() -> None:
    """NaN is not another label, whatever differs beside it."""
    nan = float("nan")
    before, now = (labels([0, 1, 2], [nan, last, None], pa.float64()) for last in (1.0, 2.0))
    assert other_values(before, now)[0].tolist() == [False, True, False]


def test_utterances_with_new_labels_are_part_of_the_store(tmp_path: Path) -> None:
    """What may be gone is a share of all utterances, relabelled ones too."""
    (tmp_path / "list.csv").write_text("path\na.wav\n")
    source = open_source(DatasetConfig("manifest", str(tmp_path / "list.csv"), audio_column="path"))
    store = open_backend(tmp_path)
    check_extent(Changes(0, 30, 0, 70, 0), source, store, 0.5)
    with pytest.raises(SourceError, match="of the 100 utterances"):
        check_extent(Changes(0, 30, 0, 70, 0), source, store, 0.2)
