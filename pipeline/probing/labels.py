"""Labels of a task, read from a store, and the folds that utterances are assigned to."""

from __future__ import annotations

import math
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.config import TaskConfig, did_you_mean
from pipeline.errors import ConfigError, first_few
from pipeline.feed.classes import in_class_order, is_number
from pipeline.store.read.features import FeatureStore

IntArray = npt.NDArray[np.int64]

_MAX_NUMERIC_NAMES = 10  # texts that are numbers with decimals, and yet names of classes

UNLABELLED = -1
"""Class number of an utterance without a label."""
_N_STRATA = 10
"""Parts of the range of numbers that are divided equally among train, dev and test."""


@dataclass(frozen=True)
class Fold:
    """One assignment of utterances to train, dev and test.

    Attributes:
        train: Positions in the store of the training utterances, ascending.
        dev: Positions of the utterances that select the step, the learning rate and the layer.
        test: Positions of the utterances whose scores are reported.
    """

    train: IntArray
    dev: IntArray
    test: IntArray


@dataclass(frozen=True)
class Labels:
    """Labels of every utterance of a store.

    Attributes:
        columns: Label columns.
        texts: Labels as text, [n_columns][n_utterances]; None for a missing label.
        orders: Class order of each column; None for a column that defines no order.
    """

    columns: tuple[str, ...]
    texts: tuple[tuple[str | None, ...], ...]
    orders: tuple[tuple[str, ...] | None, ...]

    def labelled(self) -> npt.NDArray[np.bool_]:
        """Return which utterances have a label in every column: bool [n_utterances]."""
        present = [[text is not None for text in column] for column in self.texts]
        return np.asarray(np.array(present, bool).all(axis=0))

    def strata(self, kind: str) -> IntArray:
        """Return the class to stratify a split by, of each utterance: int64 [n_utterances].

        Args:
            kind: Kind of the task: classes are those of the labels, tenths of the first column of
                numbers, or one for all transcripts.
        """
        n = len(self.texts[0])
        if kind == "utterance":
            return np.asarray(np.unique(self.joined(), return_inverse=True)[1], np.int64)
        if kind != "regression":
            return np.zeros(n, np.int64)
        first = numbers_of(self)[0]
        inner = np.nanquantile(first, np.linspace(0, 1, _N_STRATA + 1)[1:-1])
        return np.asarray(np.searchsorted(np.unique(inner), first, side="right"), np.int64)

    def joined(self) -> list[str]:
        """Return the labels of each utterance as one text, to stratify splits by."""
        return ["\t".join(text or "" for text in row) for row in zip(*self.texts, strict=True)]


@dataclass(frozen=True)
class Classes:
    """Labels as class numbers.

    Attributes:
        names: Class names of each column.
        numbers: Class number of each utterance in each column, int64 [n_utterances, n_columns];
            `UNLABELLED` for a missing label.
    """

    names: tuple[tuple[str, ...], ...]
    numbers: IntArray


def read_labels(
    store: FeatureStore, task: TaskConfig, given: Sequence[str] | None = None
) -> Labels:
    """Find the label columns of a task in a store and read them.

    Args:
        store: The store.
        task: The task.
        given: Label columns that replace those of the task; None uses those of the task.

    Raises:
        ConfigError: The store lacks the columns, a frame task has more than one, or the labels of
            an utterance task are real numbers.
    """
    if not task.labels and given is None:
        raise ConfigError(
            f"task {task.name} learns spans, which `strata sweep` takes as spans=FILE; choose "
            "another task here"
        )
    columns = _label_columns(store, task, given)
    if task.kind == "frames" and len(columns) != 1:
        raise ConfigError(f"labels is {list(columns)}; task {task.name} learns one column of texts")
    class_names = store.class_names
    texts = [read_texts(store, column) for column in columns]
    if task.kind != "frames":  # an empty cell may be a transcript, but is no class or number
        texts = [[text if text and text.strip() else None for text in column] for column in texts]
    if task.kind == "utterance":
        for column, values in zip(columns, texts, strict=True):
            is_float = pa.types.is_floating(store.metadata.schema.field(column).type)
            _refuse_real_numbers(task, column, values, is_float)
    return Labels(
        columns=columns,
        texts=tuple(tuple(column) for column in texts),
        orders=tuple(
            tuple(class_names[column]) if column in class_names else None for column in columns
        ),
    )


def read_texts(store: FeatureStore, column: str) -> list[str | None]:
    """Read a metadata column as text, with class names for class numbers and None for null.

    Raises:
        ConfigError: The store has no such column, or the column holds lists, maps or bytes.
    """
    names = [name for name in store.metadata.column_names if name != "id"]
    if column not in names:
        raise ConfigError(f"the store has no column {column!r}{did_you_mean(column, names)}")
    classes = store.class_names.get(column)
    values = store.metadata[column].to_pylist()
    nested = next((value for value in values if isinstance(value, list | dict | bytes)), None)
    if nested is not None:
        raise ConfigError(f"column {column!r} holds {nested!r:.60}; expected texts or numbers")
    return [_text(value, classes) for value in values]


def classes_of(labels: Labels) -> Classes:
    """Number the classes, in the order of the column, or else numerically or alphabetically."""
    names, numbers = [], []
    for column, order in zip(labels.texts, labels.orders, strict=True):
        present = {text for text in column if text is not None}
        if order is not None:
            ordered = [name for name in order if name in present]
        else:
            ordered = in_class_order(present)
        number_of = {name: i for i, name in enumerate(ordered)}
        names.append(tuple(ordered))
        numbers.append([UNLABELLED if text is None else number_of[text] for text in column])
    return Classes(tuple(names), np.array(numbers, np.int64).T)


def numbers_of(labels: Labels) -> npt.NDArray[np.float64]:
    """Read labels as numbers, [n_columns, n_utterances]; nan for a missing label.

    Raises:
        ConfigError: A label is no finite number.
    """
    rows = []
    for column, texts in zip(labels.columns, labels.texts, strict=True):
        wrong = [text for text in texts if text is not None and not is_number(text)]
        if wrong:
            hint = (
                "Empty these cells and run `strata relabel`: their utterances are left out"
                if 2 * len(wrong) < len(texts)
                else "Set labels=[COLUMN], or a task that learns classes"
            )
            raise ConfigError(
                f"column {column!r} holds {wrong[0]!r}, and a regression learns numbers "
                f"({len(wrong):,} of {len(texts):,} labels are none). {hint}"
            )
        numbers = np.array([np.nan if text is None else float(text) for text in texts])
        if np.isinf(numbers).any():
            raise ConfigError(f"column {column!r} holds an infinite number; expected finite ones")
        rows.append(numbers)
    return np.stack(rows)


def _label_columns(
    store: FeatureStore, task: TaskConfig, given: Sequence[str] | None
) -> tuple[str, ...]:
    existing = [name for name in store.metadata.column_names if name != "id"]
    if given is not None:
        missing = [name for name in given if name not in existing]
        if missing or not given:
            raise ConfigError(
                f"labels names no column of the store: {', '.join(missing) or 'none'}; it has "
                f"{_list(existing)}"
            )
        return tuple(given)
    found = [name for name in task.labels if name in existing]
    if task.slots and len(found) == len(task.labels):
        return task.labels
    if found and not task.slots:
        return (found[0],)
    wanted = ", ".join(task.labels)
    hint = "labels=[COLUMN,COLUMN,...]" if task.slots else "labels=[COLUMN]"
    raise ConfigError(
        f"task {task.name} looks for {'all' if task.slots else 'one'} of the columns {wanted}; the "
        f"store has {_list(existing)}. Set {hint}"
    )


def _refuse_real_numbers(
    task: TaskConfig, column: str, texts: Sequence[str | None], is_float: bool
) -> None:
    """Raise ConfigError for scores and measurements, which are no classes.

    Those are numbers with decimals, perhaps with a few other texts for missing ones, such as
    "unknown". A few numbers, written as text, may be the names of classes.
    """
    present = {text for text in texts if text is not None}
    numbers = sorted(float(text) for text in present if is_number(text))
    if len(numbers) <= len(present) / 2 or all(number.is_integer() for number in numbers):
        return
    if is_float or len(numbers) > _MAX_NUMERIC_NAMES:
        others = sorted(text for text in present if not is_number(text))
        also = f"; beside {first_few(others)}" if others else ""
        setting = shlex.quote(f"labels=[{column}]")
        raise ConfigError(
            f"column {column!r} holds real numbers ({len(numbers)} different ones from "
            f"{numbers[0]:g} to {numbers[-1]:g}{also}), and task {task.name} learns classes. Learn "
            f"the numbers with task=regression {setting}, or set labels=[COLUMN] to a "
            "column of classes; if these numbers are the names of classes, extract from a table "
            "in which they have other names"
        )


def _list(names: Sequence[str]) -> str:
    return ", ".join(names) or "no metadata columns (extract with dataset.columns=[...])"


def _text(value: Any, classes: Sequence[str] | None) -> str | None:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if classes is not None and isinstance(value, int):
        return classes[value] if 0 <= value < len(classes) else None
    return str(value)
