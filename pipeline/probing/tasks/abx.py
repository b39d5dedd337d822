"""ABX on spans: how well classes such as phones are told apart, without training.

As in the Zero Resource Speech Challenge 2021 (angles between frames, dynamic time warping; errors
are averaged over contexts, speakers, and pairs of classes), with two differences: frames are those
whose centre is in the span, and dev and test are of different speakers, so that dev chooses the
layer.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.errors import ConfigError, counted
from pipeline.probing.abx.cells import ACROSS, WITHIN, Block, Items, plan_blocks, sample_items
from pipeline.probing.abx.errors import (
    CellIndex,
    MinimalPairs,
    abx_errors,
    index_cells,
    joined,
    unit_frames,
)
from pipeline.probing.abx.warping import Float32
from pipeline.probing.evaluation import FloatArray
from pipeline.probing.labels import IntArray, read_texts
from pipeline.probing.results import (
    Candidate,
    HeadResult,
    HeadSpec,
    Note,
    OnHead,
    Predictions,
    stored_layer,
)
from pipeline.probing.splits.speakers import find_speaker_column
from pipeline.probing.tasks.base import Task, TaskData, few_speakers
from pipeline.probing.tasks.spans_data import SpanData
from pipeline.store.read.features import FeatureStore

METRICS = {"abx_within": WITHIN, "abx_across": ACROSS}
TRIPHONE, ANY = "triphone", "any"
_FLOAT_BYTES = 4
_ADJACENT_S = 0.005  # largest gap between a span and its neighbour


@dataclass(frozen=True)
class _Part:
    """Items of dev or of test.

    Attributes:
        items: The items.
        position: Utterance of each, int64 [n_items].
        first: First frame of each within its utterance, int64 [n_items].
        n_frames: Number of frames of each, int64 [n_items].
        blocks: Blocks to compare, by metric; a metric without any is left out.
        cells: Cells of the blocks, by metric.
    """

    items: Items
    position: IntArray
    first: IntArray
    n_frames: IntArray
    blocks: dict[str, list[Block]]
    cells: dict[str, CellIndex]


class AbxTask(Task):
    """Errors of ABX within and across speakers."""

    higher_is_better = False
    classes: tuple[tuple[str, ...], ...] = ((),)

    def __init__(self, data: TaskData) -> None:
        """Choose the items of dev and test.

        Args:
            data: What to evaluate; it has spans.

        Raises:
            ConfigError: A setting is unknown, there is no column of the speaker, or a part has no
                items to compare.
        """
        config = data.config
        for key, value, known in (
            ("metric", config.metric, tuple(METRICS)),
            ("context", config.context, (TRIPHONE, ANY)),
        ):
            if value not in known:
                raise ConfigError(f"task.{key} is {value!r}; expected {' or '.join(known)}")
        if data.spans is None:
            raise ConfigError(f"task {config.name} compares spans, and none are given")
        data.store.check_frames()
        self._data, self._spans = data, data.spans
        self.fingerprint = data.spans.digest
        column = config.speaker_column or find_speaker_column(data.store)
        if column is None:
            raise ConfigError(
                f"task {config.name} compares spans within and across speakers, and no column of "
                "the store is known to hold the speaker; set task.speaker_column=COLUMN"
            )
        texts = [text or "" for text in read_texts(data.store, column)]
        self._speakers = np.unique(texts, return_inverse=True)[1].astype(np.int64)
        contexts = _contexts(data.spans) if config.context == TRIPHONE else None
        self._contexts = (
            np.zeros(len(data.spans.numbers), np.int64) if contexts is None else contexts
        )
        self._dev = [
            self._part(np.concatenate([fold.train, fold.dev]), "dev") for fold in data.folds
        ]
        self._test = [self._part(fold.test, "test") for fold in data.folds]
        self.units = tuple(map(self._unit, self._test))
        n_speakers = sum(len(np.unique(part.items.speaker)) for part in self._test)
        self.warnings = (*data.spans.warnings, *few_speakers(n_speakers))
        n_items = sum(len(part.items) for part in self._test)
        self.items = f"{counted(n_items, 'test span')} of {counted(len(data.spans.names), 'class')}"
        self.truth = tuple(
            tuple((0.0,) for cells in part.cells.values() for _ in cells.pair)
            for part in self._test
        )

    def train(self, specs: Sequence[HeadSpec], on_head: OnHead, note: Note) -> None:
        """Compare the items of dev and test on each layer."""
        metric = self._data.config.metric
        for spec in specs:
            layer, dev, test = stored_layer(spec.layer), self._dev[spec.fold], self._test[spec.fold]
            errors = {name: self._errors(test, name, layer) for name in test.blocks}
            found = HeadResult(
                **asdict(spec),
                step=0,
                dev=MinimalPairs(dev.cells[metric], self._errors(dev, metric, layer)).score,
                test=MinimalPairs(test.cells[metric], errors[metric]).score,
                curve=(),
                predictions=tuple(
                    (error,) for error in np.concatenate(list(errors.values())).tolist()
                ),
            )
            on_head(spec, found)

    def evaluate(self, heads: Sequence[HeadResult]) -> MinimalPairs:
        """Return the error; the groups are speakers."""
        return self._evaluation(heads, self._data.config.metric)

    def extra(self, heads: Sequence[HeadResult]) -> dict[str, float]:
        """Return the error of the other metric, if every fold has it."""
        others = [name for name in METRICS if name != self._data.config.metric]
        return {
            name: self._evaluation(heads, name).score
            for name in others
            if all(name in self._test[head.fold].cells for head in heads)
        }

    def baselines(self, layer: Candidate) -> dict[str, float]:
        """Return the error of equal distances."""
        return {"chance": 0.5}

    def confusion(self, heads: Sequence[HeadResult]) -> None:
        """Return None: nothing is classified."""
        return

    def write_files(self, folder: Path) -> None:
        """Write nothing."""

    def _evaluation(self, heads: Sequence[HeadResult], metric: str) -> MinimalPairs:
        """Return the error over the cells of all folds; a speaker counts once per fold."""
        errors = [
            _predictions_of(metric, self._test[head.fold].cells, head.predictions) for head in heads
        ]
        cells = joined([self._test[head.fold].cells[metric] for head in heads])
        return MinimalPairs(cells, np.concatenate(errors))

    def _part(self, positions: IntArray, name: str) -> _Part:
        """Choose the items of a part.

        Raises:
            ConfigError: There is nothing to compare.
        """
        config, placed = self._data.config, self._spans.placed
        rows = self._spans.rows_of(np.sort(positions))
        every = Items(
            self._spans.numbers[rows],
            self._contexts[rows],
            self._speakers[placed.position[rows]],
        )
        drawn = sample_items(every, config.max_items, config.sample_seed)
        items, rows = every.take(drawn), rows[drawn]
        planned = {
            metric: plan_blocks(items, mode, config.max_speakers, config.sample_seed)
            for metric, mode in METRICS.items()
        }
        if not planned[config.metric]:
            n_speakers = len(np.unique(items.speaker))
            hint = ", or task.context=any" if config.context == TRIPHONE else ""
            raise ConfigError(
                f"{name} has {counted(len(items), 'span')} of {counted(n_speakers, 'speaker')}, "
                "of which no three can be compared (two of one class and one of another, in one "
                f"context) for task.metric={config.metric}. Give spans of more utterances, larger "
                f"shares, e.g. split.ratios=[0.4,0.3,0.3]{hint}"
            )
        return _Part(
            items,
            placed.position[rows],
            placed.first[rows],
            placed.last[rows] - placed.first[rows],
            {metric: blocks for metric, blocks in planned.items() if blocks},
            {metric: index_cells(items, blocks) for metric, blocks in planned.items() if blocks},
        )

    def _unit(self, part: _Part) -> dict[str, Any]:
        """Return the cells of a part by metric, and a hash of the items that they compare."""
        items, ids = part.items, self._data.store.ids
        rows = zip(part.position.tolist(), items.label, items.context, items.speaker, strict=True)
        text = repr([(ids[i], int(a), int(b), int(c)) for i, a, b, c in rows])
        return {
            "items": hashlib.sha256(text.encode()).hexdigest(),
            "cells": {metric: cells.to_dict() for metric, cells in part.cells.items()},
        }

    def _errors(self, part: _Part, metric: str, layer: int) -> FloatArray:
        """Return the errors of the cells of a part, on a layer."""
        store = self._data.store
        frame_bytes = store.feature_dim * (store.codec.value_dtype.itemsize + 2 * _FLOAT_BYTES)

        def read(which: IntArray) -> tuple[Float32, IntArray]:
            return _read(
                store, layer, part.position[which], part.first[which], part.n_frames[which]
            )

        most_frames = max(1, self._data.memory // frame_bytes)
        blocks, cells = part.blocks[metric], part.cells[metric]
        return abx_errors(part.items, blocks, cells, part.n_frames, read, most_frames)


def _predictions_of(
    metric: str, cells: dict[str, CellIndex], predictions: Predictions
) -> FloatArray:
    """Return the errors of the cells of a metric, of predictions for those of all metrics."""
    ends = np.cumsum([len(index.pair) for index in cells.values()])[:-1]
    parts = np.split(np.array(predictions, np.float64)[:, 0], ends)
    return dict(zip(cells, parts, strict=True))[metric]


def _read(
    store: FeatureStore, layer: int, position: IntArray, first: IntArray, n_frames: IntArray
) -> tuple[Float32, IntArray]:
    """Read the frames of items: of length 1, [n, dim], and their bounds, [n_items + 1]."""
    bounds = np.append(0, n_frames.cumsum())
    stored = np.empty((1, int(bounds[-1]), store.feature_dim), store.codec.value_dtype)
    cuts = [
        (int(position[i]), int(first[i]), stored[:, bounds[i] : bounds[i + 1]])
        for i in range(len(position))
    ]
    store.read_into(cuts, store.axes([layer]))
    return unit_frames(stored[0]), bounds


def _contexts(data: SpanData) -> IntArray:
    """Return a number for each pair of labels before and after a span, [n_spans].

    A neighbour is the span that ends where this one starts, or that starts where it ends; at the
    start and the end of an utterance, or beside labels that are left out as silence, there is none.
    """
    spans = data.placed.spans
    order = np.lexsort((spans.stop_s, spans.start_s, spans.utterance))
    utterance = spans.utterance[order]
    gap = np.abs(spans.start_s[order[1:]] - spans.stop_s[order[:-1]])
    is_next = (utterance[1:] == utterance[:-1]) & (gap <= _ADJACENT_S)
    label = spans.label[order].astype(np.int64)
    before, after = np.full((2, len(order)), -1, np.int64)
    before[order[1:]] = np.where(is_next, label[:-1], -1)
    after[order[:-1]] = np.where(is_next, label[1:], -1)
    both = np.stack([before, after], axis=1)[data.placed.row]
    return np.asarray(np.unique(both, axis=0, return_inverse=True)[1].reshape(-1), np.int64)
