"""Spans as the labels of a task: read, placed in the store, and reduced to the classes learned."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np

from pipeline.config import SweepConfig
from pipeline.config.sizes import parse_bytes
from pipeline.config.spans_schema import SpansConfig
from pipeline.errors import ConfigError, SourceError, counted, first_few
from pipeline.feed.classes import in_class_order
from pipeline.probing.labels import Fold, IntArray, Labels, read_labels
from pipeline.spans.placing import PlacedSpans, place_spans
from pipeline.spans.reading import read_configured, without_labels
from pipeline.store.read.features import FeatureStore

SPAN_KINDS = ("spans", "framewise", "abx")
"""Kinds of tasks whose labels are spans."""
_OPTION = re.compile(
    rf"(?<![\w.])({'|'.join(item.name for item in fields(SpansConfig) if item.name != 'path')})="
)
_SAMPLE_SEED = 0
_FLOAT_BYTES = 4


@dataclass(frozen=True)
class SpanData:
    """Spans with frames, by utterance and then by time.

    Attributes:
        placed: The spans that are learned.
        names: Names of the classes, in order.
        numbers: Class of each span, int64 [n_spans].
        bounds: First span of each utterance, then the number of spans, int64 [n_utterances + 1].
        column: Name of the file, for tables and reports.
        digest: SHA-256 of the spans as they are in the file.
        notes: What was left out on purpose.
        warnings: What could not be used.
    """

    placed: PlacedSpans
    names: tuple[str, ...]
    numbers: IntArray
    bounds: IntArray
    column: str
    digest: str
    notes: tuple[str, ...]
    warnings: tuple[str, ...]

    def labels(self, unlabelled: str | None) -> Labels:
        """Return a text for each utterance that stands for its spans; None without spans.

        Args:
            unlabelled: Class of frames in no span. With one, an utterance that the file mentions
                has labels without spans.
        """
        texts: list[str | None] = [None] * (len(self.bounds) - 1)
        if unlabelled is not None:
            for position in self.placed.annotated.tolist():
                texts[position] = unlabelled
        names = hashlib.sha256("\0".join(self.names).encode()).digest()
        rows = np.stack([self.placed.first, self.placed.last, self.numbers], axis=1)
        for position in np.flatnonzero(np.diff(self.bounds)).tolist():
            own = rows[self.bounds[position] : self.bounds[position + 1]]
            texts[position] = hashlib.sha256(names + own.tobytes()).hexdigest()
        return Labels((self.column,), (tuple(texts),), (None,))

    def rows_of(self, positions: IntArray) -> IntArray:
        """Return the spans of utterances, in their order."""
        parts = [np.arange(self.bounds[i], self.bounds[i + 1]) for i in positions.tolist()]
        return np.concatenate([np.zeros(0, np.int64), *parts])

    def fold_of(self, fold: Fold) -> Fold:
        """Return a fold of spans, from one of utterances."""
        return Fold(*(self.rows_of(part) for part in (fold.train, fold.dev, fold.test)))


def read_task_labels(
    store: FeatureStore, config: SweepConfig, n_layers: int
) -> tuple[Labels, SpanData | None]:
    """Read the labels of a sweep: of a column of the store, or of spans, with these.

    Raises:
        ConfigError: As for `read_labels` and `read_span_data`; or spans are given to a task that
            learns a column of the store.
        SourceError: As for `read_span_data`.
    """
    task, path = config.task, config.spans.path
    if task.kind in SPAN_KINDS:
        spans = read_span_data(store, config, n_layers)
        return spans.labels(task.unlabelled), spans
    if path is not None:
        raise ConfigError(
            f"spans={path}: task {task.name} learns a column of the store; leave spans out, or set "
            "task=phone, task=word or task=frame"
        )
    return read_labels(store, task, config.labels), None


def read_span_data(store: FeatureStore, config: SweepConfig, n_layers: int) -> SpanData:
    """Read the spans of a sweep, find their frames, and choose the classes.

    Args:
        store: The store.
        config: Settings of the sweep.
        n_layers: Number of swept layers.

    Raises:
        ConfigError: No file is given, or a setting of the spans is wrong, or fewer than two classes
            are left.
        SourceError: The file cannot be read, or has no utterance of the store.
    """
    task, given, path = config.task, config.spans, config.spans.path
    if path is None:
        raise ConfigError(
            f"task {task.name} learns labelled intervals; give spans=FILE (TextGrid, CTM, RTTM, "
            "csv, tsv, parquet or jsonl)"
        )
    if config.labels is not None:
        raise ConfigError(
            f"labels={list(config.labels)} names columns of the store, and the labels of task "
            f"{task.name} are those of the spans; leave it out (spans.label_column=, spans.tier=)"
        )
    try:
        spans = read_configured(given)
        if given.skip is None:
            spans = without_labels(spans, path, task.silence, ignore_case=True)
        placed = place_spans(store, spans, times=given.times, segment_start=given.segment_start)
    except (ConfigError, SourceError) as error:
        raise type(error)(_with_settings(str(error))) from error
    notes, warnings = list(spans.notes), [_with_settings(note) for note in placed.notes]
    placed = placed.take(np.lexsort((placed.last, placed.first, placed.position)))
    placed, names, numbers, left_out = _classes(placed, task.min_count, task.max_classes)
    notes += left_out
    if len(names) < 2 and task.unlabelled is None:
        raise ConfigError(
            f"{path} has {counted(len(names), 'class')} to "
            f"learn{f', {names[0]!r}' if names else ''}, with task.min_count={task.min_count}; "
            f"expected at least two{_all([*warnings, *notes])}"
        )
    if task.kind == "spans":
        span_bytes = n_layers * store.feature_dim * len(task.pooling) * _FLOAT_BYTES
        kept = _sample(numbers, parse_bytes(config.memory) // span_bytes)
        if kept is not None:
            warnings.append(
                f"a sample of {len(kept):,} of {len(placed):,} spans is used, drawn from each "
                f"class in proportion (seed {_SAMPLE_SEED}): the means of all take "
                f"{len(placed) * span_bytes / 1e9:.1f} GB, and memory={config.memory}"
            )
            placed, numbers = placed.take(kept), numbers[kept]
    bounds = np.searchsorted(placed.position, np.arange(len(store) + 1))
    column = Path(path).name
    return SpanData(
        placed, names, numbers, bounds, column, spans.digest, tuple(notes), tuple(warnings)
    )


def _classes(
    placed: PlacedSpans, min_count: int, max_classes: int | None
) -> tuple[PlacedSpans, tuple[str, ...], IntArray, list[str]]:
    """Choose the classes, and return their spans, their names, and the class of each span."""
    labels = placed.spans.labels
    counts = np.bincount(placed.label, minlength=len(labels))
    chosen = [i for i in np.argsort(-counts, kind="stable").tolist() if counts[i] >= min_count]
    rare = [i for i in range(len(labels)) if 0 < counts[i] < min_count]
    beyond = chosen[max_classes:] if max_classes is not None else []
    chosen = chosen[:max_classes]
    notes = []
    for gone, why in (
        (rare, f"fewer than {counted(min_count, 'span')}"),
        (beyond, "less frequent"),
    ):
        if gone:
            shown = first_few([repr(labels[i]) for i in gone])
            notes.append(
                f"{counted(int(counts[gone].sum()), 'span')} of {counted(len(gone), 'class')} "
                f"left out ({why}): {shown}"
            )
    names = tuple(in_class_order(labels[i] for i in chosen))
    number_of = {name: number for number, name in enumerate(names)}
    numbers = np.array([number_of.get(label, -1) for label in labels], np.int64)[placed.label]
    kept = numbers >= 0
    return placed.take(kept), names, numbers[kept], notes


def _sample(numbers: IntArray, most: int) -> IntArray | None:
    """Return a sample of at most `most` spans, ascending, in proportion from each class.

    Returns None if all fit. A class keeps at least one span.

    Raises:
        ConfigError: Not even two spans of each class fit.
    """
    if len(numbers) <= most:
        return None
    counts = np.bincount(numbers)
    if most < 2 * len(counts):
        raise ConfigError(
            f"memory is too small for {counted(len(counts), 'class')}: it holds the features of "
            f"{counted(most, 'span')}; raise memory, or sweep fewer layers"
        )
    share = (most - len(counts)) / len(numbers)
    random = np.random.default_rng(_SAMPLE_SEED)
    kept = []
    for number in np.flatnonzero(counts).tolist():
        own = np.flatnonzero(numbers == number)
        kept.append(random.permutation(own)[: max(1, round(share * len(own)))])
    return np.sort(np.concatenate(kept))


def _with_settings(message: str) -> str:
    """Return a message in which options of `read_spans` have their names as settings of a sweep."""
    return _OPTION.sub(r"spans.\1=", message)


def _all(notes: list[str]) -> str:
    return f" ({'; '.join(notes)})" if notes else ""
