"""What a sweep trains: heads by their settings, and the labels they learn."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.config import TaskConfig, nearest
from pipeline.errors import ConfigError
from pipeline.probing.results import Layer
from pipeline.store.read.features import FeatureStore

IntArray = npt.NDArray[np.int64]

UNLABELLED = -1
"""Class of an utterance without a label."""


@dataclass(frozen=True)
class Fold:
    """One assignment of utterances, by their positions in the store, ascending.

    Attributes:
        train: Trains.
        dev: Selects the step, the learning rate and the layer.
        test: Is reported.
    """

    train: IntArray
    dev: IntArray
    test: IntArray


@dataclass(frozen=True)
class HeadSpec:
    """All that tells the heads of one sweep apart.

    Attributes:
        layer: Its candidate.
        lr: Learning rate of Adam.
        seed: Of its initial values and the order of the data.
        fold: Number of the fold.
    """

    layer: Layer
    lr: float
    seed: int
    fold: int


@dataclass(frozen=True)
class Labels:
    """The labels of every utterance of a store.

    Attributes:
        columns: Label columns.
        texts: Labels as text, one list per column; None where there is none.
        orders: Order of the classes of each column that has one of its own; else None.
    """

    columns: tuple[str, ...]
    texts: tuple[tuple[str | None, ...], ...]
    orders: tuple[tuple[str, ...] | None, ...]

    def labelled(self) -> npt.NDArray[np.bool_]:
        """Which utterances have all their labels: [n_utterances]."""
        have = [[text is not None for text in column] for column in self.texts]
        return np.asarray(np.array(have, bool).all(axis=0))

    def joined(self) -> list[str]:
        """The labels of each utterance as one text, by which splits are stratified."""
        return ["\t".join(text or "" for text in row) for row in zip(*self.texts, strict=True)]


@dataclass(frozen=True)
class Classes:
    """Labels as numbers.

    Attributes:
        names: Class names of each column.
        numbers: Class of each utterance in each column, int64 [n_utterances, n_columns];
            `UNLABELLED` where there is no label.
    """

    names: tuple[tuple[str, ...], ...]
    numbers: IntArray


def read_labels(
    store: FeatureStore, task: TaskConfig, given: Sequence[str] | None = None
) -> Labels:
    """Finds the label columns of a task in a store and reads them.

    Args:
        store: The store.
        task: The recipe.
        given: Columns in place of the recipe's.

    Raises:
        ConfigError: The store has no such columns, or a frame task is given several.
    """
    columns = _label_columns(store, task, given)
    if task.kind == "frames" and len(columns) != 1:
        raise ConfigError(f"labels is {list(columns)}; task {task.name} learns one column of texts")
    names = store.class_names
    texts = [read_texts(store, column) for column in columns]
    if task.kind == "utterance":  # an empty cell is no class, though it may be a transcript
        texts = [[text if text and text.strip() else None for text in column] for column in texts]
    return Labels(
        columns=columns,
        texts=tuple(tuple(column) for column in texts),
        orders=tuple(tuple(names[column]) if column in names else None for column in columns),
    )


def read_texts(store: FeatureStore, column: str) -> list[str | None]:
    """A metadata column as text, class names in place of their numbers, None for no value.

    Raises:
        ConfigError: The store has no such column, or it holds lists or the like.
    """
    names = [name for name in store.metadata.column_names if name != "id"]
    if column not in names:
        raise ConfigError(f"the store has no column {column!r}{nearest(column, names)}")
    classes = store.class_names.get(column)
    values = store.metadata[column].to_pylist()
    odd = next((value for value in values if isinstance(value, list | dict | bytes)), None)
    if odd is not None:
        raise ConfigError(f"column {column!r} holds {odd!r:.60}; labels are texts or numbers")
    return [_text(value, classes) for value in values]


def classes_of(labels: Labels) -> Classes:
    """Numbers the labels: in their own order, or numerically, or alphabetically."""
    names, numbers = [], []
    for column, order in zip(labels.texts, labels.orders, strict=True):
        found = {text for text in column if text is not None}
        if order is not None:
            known = [name for name in order if name in found]
        else:
            numeric = all(map(_is_number, found))
            known = sorted(found, key=lambda name: (float(name) if numeric else 0.0, name))
        place = {name: i for i, name in enumerate(known)}
        names.append(tuple(known))
        numbers.append([UNLABELLED if text is None else place[text] for text in column])
    return Classes(tuple(names), np.array(numbers, np.int64).T)


def _label_columns(
    store: FeatureStore, task: TaskConfig, given: Sequence[str] | None
) -> tuple[str, ...]:
    have = [name for name in store.metadata.column_names if name != "id"]
    if given is not None:
        missing = [name for name in given if name not in have]
        if missing or not given:
            shown = ", ".join(missing) or "none"
            raise ConfigError(f"labels names no column of the store: {shown}; it has {_list(have)}")
        return tuple(given)
    found = [name for name in task.labels if name in have]
    if task.slots and len(found) == len(task.labels):
        return task.labels
    if found and not task.slots:
        return (found[0],)
    wanted = ", ".join(task.labels)
    hint = "labels=[COLUMN,COLUMN,...]" if task.slots else "labels=[COLUMN]"
    raise ConfigError(
        f"task {task.name} looks for {'all' if task.slots else 'one'} of the columns {wanted}; the "
        f"store has {_list(have)}. Say {hint}"
    )


def _list(names: Sequence[str]) -> str:
    return ", ".join(names) or "no metadata columns at all (extract with dataset.columns=[...])"


def _text(value: Any, classes: Sequence[str] | None) -> str | None:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if classes is not None and isinstance(value, int):
        return classes[value] if 0 <= value < len(classes) else None
    return str(value)


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False
