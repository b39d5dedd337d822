"""A label for each frame, from spans."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from pipeline.errors import ConfigError, SourceError, counted, did_you_mean
from pipeline.spans.placing import UTTERANCE, PlacedSpans, place_spans
from pipeline.spans.table import IntArray, Spans
from pipeline.store.read.utterances import Key, StoreView

NONE = -1
"""The number of a frame without a label."""


class FrameLabels:
    """The label of each frame of a store: `labels["clip-1"]` is int64 [n_frames], -1 for none.

    It holds the spans, not the frames, so its size does not depend on the size of the store.

    Attributes:
        names: Names of the classes; a label is an index in them.
        counts: Frames of each class, int64 [n_classes].
        n_unlabelled: Frames without a label.
        positions: Positions of the utterances that the spans label, ascending, int64 [n].
        notes: What was left out and why.
    """

    def __init__(
        self,
        store: StoreView,
        names: Sequence[str],
        runs: tuple[IntArray, IntArray, IntArray],
        positions: IntArray,
        default: int,
        notes: Sequence[str],
    ) -> None:
        """Keep the labels.

        Args:
            store: The store.
            names: Names of the classes.
            runs: First frame of each run of a label, one past its last, and the label; frames are
                numbered through all utterances in the order of the store. Runs are ascending and
                do not overlap.
            positions: Utterances that the spans label, ascending.
            default: Label of other frames of these utterances.
            notes: What was left out.
        """
        self.names, self.notes, self.positions = tuple(names), tuple(notes), positions
        self._store, self._default = store, default
        self._first, self._last, self._label = runs
        lengths = store.frame_counts
        self._offsets = np.concatenate([[0], np.cumsum(lengths)])
        self._is_annotated = np.zeros(len(lengths), bool)
        self._is_annotated[positions] = True
        counts = np.zeros(len(names), np.int64)
        np.add.at(counts, self._label, self._last - self._first)
        if default != NONE:
            counts[default] += int(lengths[positions].sum()) - int(counts.sum())
        self.counts = counts
        self.n_unlabelled = int(self._offsets[-1]) - int(counts.sum())

    def __getitem__(self, key: Key) -> IntArray:
        """Return the labels of the frames of an utterance, int64 [n_frames]; -1 for none."""
        position = self._store.position(key)
        start, stop = self._offsets[position : position + 2]
        default = self._default if self._is_annotated[position] else NONE
        labels = np.full(int(stop - start), default, np.int64)
        low = int(np.searchsorted(self._last, start, side="right"))
        high = int(np.searchsorted(self._first, stop, side="left"))
        for first, last, label in zip(
            self._first[low:high].tolist(),
            self._last[low:high].tolist(),
            self._label[low:high].tolist(),
            strict=True,
        ):
            labels[max(first - start, 0) : last - start] = label
        return labels

    def at(self, positions: npt.ArrayLike, frames: npt.ArrayLike) -> IntArray:
        """Return the labels of some frames.

        Args:
            positions: Position of the utterance of each frame in the store, [n].
            frames: Frame within the utterance, [n].

        Returns:
            int64 [n]; -1 for none.
        """
        position = np.asarray(positions, np.int64)
        frame = self._offsets[position] + np.asarray(frames, np.int64)
        labels = np.where(self._is_annotated[position], self._default, NONE)
        if len(self._first):
            run = np.searchsorted(self._first, frame, side="right") - 1
            inside = (run >= 0) & (frame < self._last[run])
            labels = np.where(inside, self._label[run], labels)
        return labels


def frame_labels(
    store: StoreView,
    spans: Spans | PlacedSpans,
    *,
    classes: Sequence[str] | None = None,
    unlabelled: str | None = None,
    times: str = UTTERANCE,
    segment_start: str | None = None,
) -> FrameLabels:
    """Give each frame the label of the span that its centre is in.

    Args:
        store: The store, or a selection of it.
        spans: The spans; no frame may be in spans of different labels.
        classes: Names of the classes, in order; frames of other labels have none. None: all
            labels of the spans with frames, sorted.
        unlabelled: Name of a class for the frames in no span, such as "non-speech"; it becomes the
            last class if it is not in `classes`. Utterances without any span stay without labels.
        times: "utterance" or "recording": from where times count; see `place_spans`.
        segment_start: Column with the start of each segment in its recording.

    Returns:
        The labels. What was left out is in `notes` and in a warning.

    Raises:
        SourceError: A frame is in spans of different labels, or no span has a frame.
        ConfigError: `unlabelled` is no name, or a class is repeated.

    Example:
        >>> labels = frame_labels(store, read_spans("alignments", tier="phones"))
        ...                                                            # doctest: +SKIP
        >>> labels["clip-1"], labels.names                             # doctest: +SKIP
        (array([ 4,  4, 11, -1]), ('aa', 'ae', ...))
    """
    placed = spans
    if isinstance(placed, Spans):
        placed = place_spans(store, placed, times=times, segment_start=segment_start)
        for note in placed.notes:
            warnings.warn(note, stacklevel=2)
    names = list(_names(placed) if classes is None else classes)
    if len(set(names)) < len(names):
        raise ConfigError(f"classes has a name twice: {names}")
    if unlabelled is not None and (not isinstance(unlabelled, str) or not unlabelled):
        raise ConfigError(f"unlabelled is {unlabelled!r}; expected the name of a class, or None")
    if unlabelled is not None and unlabelled not in names:
        names.append(unlabelled)
    if not set(names) & set(placed.spans.labels):
        hint = did_you_mean(names[0], placed.spans.labels) if names else ""
        raise ConfigError(f"no span has a label of classes={names}{hint}")
    number_of = {name: number for number, name in enumerate(names)}
    numbers = np.array([number_of.get(label, NONE) for label in placed.spans.labels], np.int64)
    annotated = placed.annotated
    notes = list(placed.notes)
    offsets = np.concatenate([[0], np.cumsum(store.frame_counts)])[placed.position]
    first, last = placed.first + offsets, placed.last + offsets
    order = np.lexsort((last, first))
    label = numbers[placed.label]
    _check_overlaps(placed, first[order], last[order], placed.label[order], order)
    runs = _joined(first[order], last[order], label[order])
    known = runs[2] >= 0
    n_other = int((runs[1] - runs[0])[~known].sum())
    if n_other:
        notes.append(
            f"{counted(n_other, 'frame')} with a label that is no class, counted as unlabelled"
        )
    default = NONE if unlabelled is None else number_of[unlabelled]
    kept = (runs[0][known], runs[1][known], runs[2][known])
    return FrameLabels(store, names, kept, annotated, default, notes)


def _names(placed: PlacedSpans) -> list[str]:
    used = np.unique(placed.label).tolist()
    return sorted(placed.spans.labels[number] for number in used)


def _joined(
    first: IntArray, last: IntArray, label: IntArray
) -> tuple[IntArray, IntArray, IntArray]:
    """Join overlapping runs, which have the same label; runs are sorted by their first frame."""
    ends = np.maximum.accumulate(last)
    starts = np.flatnonzero(_begins(first, ends))
    stops = ends[np.append(starts[1:], len(first)) - 1]
    return first[starts], stops, label[starts]


def _begins(first: IntArray, ends: IntArray) -> npt.NDArray[np.bool_]:
    """Return whether each run begins a group: it shares no frame with those before it.

    Args:
        first: First frame of each run, ascending.
        ends: Latest end of each run and of those before it.
    """
    begins = np.ones(len(first), bool)
    begins[1:] = first[1:] >= ends[:-1]
    return begins


def _check_overlaps(
    placed: PlacedSpans,
    first: IntArray,
    last: IntArray,
    label: npt.NDArray[np.int32],
    order: IntArray,
) -> None:
    """Check that spans that share frames have the same label; they are sorted by first frame.

    Raises:
        SourceError: They do not; the message names the first two and their lines.
    """
    group = np.cumsum(_begins(first, np.maximum.accumulate(last))) - 1
    lowest = np.full(int(group[-1]) + 1, np.iinfo(np.int32).max, np.int32)
    np.minimum.at(lowest, group, label)
    wrong = np.flatnonzero(label != lowest[group])
    if not len(wrong):
        return
    at = int(wrong[0])
    in_group = np.flatnonzero(group == group[at])
    pair = _first_clash(first[in_group], last[in_group], label[in_group])
    one, other = (int(placed.row[order[in_group[i]]]) for i in pair)
    spans = placed.spans
    raise SourceError(
        f"{spans.where(other)}: the span {spans[other].label!r:.40} of {spans[other].id!r} has "
        f"frames in common with {spans[one].label!r:.40} of {spans.where(one)}; a frame has one "
        "label, so remove the overlap or choose spans that do not overlap (tier=, skip=)"
    )


def _first_clash(first: IntArray, last: IntArray, label: npt.NDArray[np.int32]) -> tuple[int, int]:
    """Return two spans of a group that share a frame and have different labels."""
    latest: dict[int, tuple[int, int]] = {}  # of each label: the latest end, and whose it is
    for i in range(len(first)):
        for other, (end, j) in latest.items():
            if other != label[i] and end > first[i]:
                return j, i
        if last[i] > latest.get(int(label[i]), (-1, 0))[0]:
            latest[int(label[i])] = (int(last[i]), i)
    raise AssertionError("a group of several labels has spans that overlap")
