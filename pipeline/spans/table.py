"""The table of spans: utterance, start, stop and label, and where each was read.

Ids and labels repeat, so a table holds each distinct one once: a span takes 36 bytes.
"""

from __future__ import annotations

import hashlib
import operator
from array import array
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.errors import SourceError, counted, first_few

Int32Array = npt.NDArray[np.int32]
IntArray = npt.NDArray[np.int64]
Seconds = npt.NDArray[np.float64]

_GIVEN = "the spans"  # that no file holds


class Span(NamedTuple):
    """A labelled interval of an utterance.

    Attributes:
        id: Id of the utterance.
        start_s: Start in seconds, from the start of the utterance.
        stop_s: End in seconds.
        label: Its label, such as a phone, a word or a speaker.
    """

    id: str
    start_s: float
    stop_s: float
    label: str


@dataclass(frozen=True, eq=False)
class Spans(Sequence[Span]):
    """Labelled intervals of utterances, in the order of their files.

    `spans[3]` is a `Span`, `len(spans)` their number, and `for span in spans` goes through them.

    Attributes:
        utterances: The distinct ids; also those whose spans were all left out by their labels.
        labels: The distinct labels.
        utterance: Index in `utterances` of each span, int32 [n_spans].
        start_s: Start of each span in seconds, float64 [n_spans].
        stop_s: End of each span in seconds, float64 [n_spans].
        label: Index in `labels` of each span, int32 [n_spans].
        files: Names of the files, each with what its places are called: line or row.
        file: Index in `files` of each span, int32 [n_spans].
        line: Line or row of each span, from 1, int64 [n_spans].
        notes: What was left out, for the user.
    """

    utterances: tuple[str, ...]
    labels: tuple[str, ...]
    utterance: Int32Array
    start_s: Seconds
    stop_s: Seconds
    label: Int32Array
    files: tuple[tuple[str, str], ...]
    file: Int32Array
    line: IntArray
    notes: tuple[str, ...] = ()

    @classmethod
    def of(
        cls,
        ids: Sequence[str],
        start_s: Sequence[float],
        stop_s: Sequence[float],
        labels: Sequence[str],
    ) -> Spans:
        """Make spans from values of a program.

        Args:
            ids: Ids of utterances, [n_spans].
            start_s: Seconds from the start of the utterance, at least 0, [n_spans].
            stop_s: Seconds, not before the start, [n_spans].
            labels: Labels, [n_spans].

        Raises:
            SourceError: A time is no number, is negative, or is before the start; a span is
                repeated; or there are none.

        Example:
            >>> spans = Spans.of(["clip-1", "clip-1"], [0.0, 0.4], [0.4, 0.9], ["six", "two"])
            >>> spans[1]
            Span(id='clip-1', start_s=0.4, stop_s=0.9, label='two')
        """
        builder = SpanBuilder()
        builder.open(_GIVEN, "row")
        rows = zip(ids, start_s, stop_s, labels, strict=True)
        for number, (utterance, start, stop, label) in enumerate(rows, start=1):
            builder.add(utterance, start, stop, label, number)
        return builder.finish()

    def __len__(self) -> int:
        return len(self.start_s)

    def __getitem__(self, row: Any) -> Any:
        if isinstance(row, slice):
            return self.take(np.arange(len(self))[row])
        at = operator.index(row)
        return Span(
            self.utterances[self.utterance[at]],
            float(self.start_s[at]),
            float(self.stop_s[at]),
            self.labels[self.label[at]],
        )

    def __iter__(self) -> Iterator[Span]:
        return (self[row] for row in range(len(self)))

    def __repr__(self) -> str:
        return (
            f"<{type(self).__name__}: {counted(len(self), 'span')} of "
            f"{counted(len(self.utterances), 'utterance')}, {counted(len(self.labels), 'label')}: "
            f"{first_few(self.labels)}>"
        )

    @property
    def table(self) -> pa.Table:
        """Columns id, start_s, stop_s, label, file and line; texts are dictionary-encoded."""
        named = (
            ("id", self.utterance, self.utterances),
            ("label", self.label, self.labels),
            ("file", self.file, tuple(name for name, _ in self.files)),
        )
        texts = {
            name: pa.DictionaryArray.from_arrays(pa.array(index), pa.array(values, pa.string()))
            for name, index, values in named
        }
        return pa.table(
            {
                "id": texts["id"],
                "start_s": self.start_s,
                "stop_s": self.stop_s,
                "label": texts["label"],
                "file": texts["file"],
                "line": self.line,
            }
        )

    @property
    def digest(self) -> str:
        """SHA-256 of ids, times and labels, in order; the names of the files do not matter."""
        digest = hashlib.sha256()
        for texts in (self.utterances, self.labels):
            for text in texts:
                digest.update(f"{len(text)}:{text}".encode())
        for values in (self.utterance, self.start_s, self.stop_s, self.label):
            digest.update(np.ascontiguousarray(values).tobytes())
        return digest.hexdigest()

    def where(self, row: int) -> str:
        """Name the file and the line of a span, for messages."""
        name, word = self.files[self.file[row]]
        return f"{name}, {word} {self.line[row]}"

    def take(self, rows: npt.ArrayLike) -> Spans:
        """Return the spans of some rows, in that order; distinct ids and labels become fewer."""
        rows = np.asarray(rows, np.int64)
        utterances, utterance = _compact(self.utterances, self.utterance[rows])
        labels, label = _compact(self.labels, self.label[rows])
        return replace(
            self,
            utterances=utterances,
            labels=labels,
            utterance=utterance,
            start_s=self.start_s[rows],
            stop_s=self.stop_s[rows],
            label=label,
            file=self.file[rows],
            line=self.line[rows],
        )

    def without(self, labels: Collection[str], ignore_case: bool = False) -> Spans:
        """Return the spans that have none of some labels; the number left out is noted.

        Args:
            labels: The labels.
            ignore_case: Whether labels that differ in case only are equal.
        """
        folded = {label.casefold() for label in labels} if ignore_case else set(labels)
        is_gone = [(label.casefold() if ignore_case else label) in folded for label in self.labels]
        gone = np.array(is_gone, bool)
        left_out = gone[self.label]
        n_gone = int(left_out.sum())
        if not n_gone:
            return self
        named = first_few([repr(self.labels[i]) for i in np.flatnonzero(gone)])
        kept = replace(  # an utterance without spans is still one that was labelled
            self.take(np.flatnonzero(~left_out)),
            utterances=self.utterances,
            utterance=self.utterance[~left_out],
        )
        note = f"{n_gone:,} of {counted(len(self), 'span')} left out by label: {named}"
        return replace(kept, notes=(*self.notes, note))

    def with_ids(self, form: Callable[[str], str]) -> Spans:
        """Return the spans with other ids, each made from the one there is."""
        made = [form(name) for name in self.utterances]
        distinct = {name: number for number, name in enumerate(dict.fromkeys(made))}
        numbers = np.array([distinct[name] for name in made], np.int32)
        return replace(self, utterances=tuple(distinct), utterance=numbers[self.utterance])


class SpanBuilder:
    """Collects spans, without an object for each."""

    def __init__(self) -> None:
        self._utterances: dict[str, int] = {}
        self._labels: dict[str, int] = {}
        self._files: list[tuple[str, str]] = []
        self._utterance, self._label, self._file = array("i"), array("i"), array("i")
        self._start, self._stop, self._line = array("d"), array("d"), array("q")
        self.notes: list[str] = []

    def __len__(self) -> int:
        return len(self._start)

    def open(self, file: str, word: str = "line") -> None:
        """Begin a file.

        Args:
            file: Its name, for messages.
            word: What its places are called.
        """
        self._files.append((file, word))

    def add(self, utterance: str, start_s: float, stop_s: float, label: str, line: int) -> None:
        """Add a span of the file that was opened last; `finish` checks its times."""
        self._utterance.append(self._utterances.setdefault(utterance, len(self._utterances)))
        self._label.append(self._labels.setdefault(label, len(self._labels)))
        self._file.append(len(self._files) - 1)
        self._start.append(start_s)
        self._stop.append(stop_s)
        self._line.append(line)

    def finish(self) -> Spans:
        """Return the spans.

        Raises:
            SourceError: There are none, a time is no number of seconds, a span ends before it
                starts, or it is repeated. The message names the file and the line.
        """
        spans = Spans(
            tuple(self._utterances),
            tuple(self._labels),
            np.array(self._utterance, np.int32),
            np.array(self._start, np.float64),
            np.array(self._stop, np.float64),
            np.array(self._label, np.int32),
            tuple(self._files),
            np.array(self._file, np.int32),
            np.array(self._line, np.int64),
            tuple(self.notes),
        )
        if not len(spans):
            raise SourceError(f"{first_few([name for name, _ in self._files])} has no spans")
        _check_times(spans)
        _check_repeated(spans)
        return spans


def _check_times(spans: Spans) -> None:
    """Check that times are seconds, and that no span ends before it starts.

    Raises:
        SourceError: They are not; the message names the first.
    """
    start, stop = spans.start_s, spans.stop_s
    wrong = np.flatnonzero(
        ~(np.isfinite(start) & np.isfinite(stop) & (start >= 0) & (stop >= start))
    )
    if not len(wrong):
        return
    span, where = spans[wrong[0]], spans.where(int(wrong[0]))
    if not np.isfinite([span.start_s, span.stop_s]).all():
        problem, expected = "has a time that is no number", "finite times"
    elif span.start_s < 0:
        problem, expected = "starts before its utterance", "times of at least 0"
    else:
        problem, expected = "ends before it starts", "an end that is not before the start"
    more = f" (and {len(wrong) - 1:,} more)" if len(wrong) > 1 else ""
    raise SourceError(
        f"{where}: the span {span.label!r:.40} of {span.id!r} {problem}: {span.start_s:g} to "
        f"{span.stop_s:g}; expected {expected}{more}"
    )


def _check_repeated(spans: Spans) -> None:
    """Check that no span has the utterance, times and label of another.

    Raises:
        SourceError: One does; the message names the first two.
    """
    keys = (spans.label, spans.stop_s, spans.start_s, spans.utterance)
    order = np.lexsort(keys)
    same = np.ones(max(len(order) - 1, 0), bool)
    for key in keys:
        same &= key[order][1:] == key[order][:-1]
    again = np.flatnonzero(same)
    if len(again):
        first, second = order[again[0]], order[again[0] + 1]
        span = spans[first]
        more = f" ({len(again):,} spans are repeated)" if len(again) > 1 else ""
        raise SourceError(
            f"{spans.where(second)} repeats {spans.where(first)}: {span.label!r:.40} of "
            f"{span.id!r} from {span.start_s:g} to {span.stop_s:g}; remove one{more}"
        )


def _compact(values: Sequence[str], index: Int32Array) -> tuple[tuple[str, ...], Int32Array]:
    """Return the values that are used, in their order, and the index into these."""
    used = np.zeros(len(values), bool)
    used[index] = True
    renumbered = np.cumsum(used, dtype=np.int32) - np.int32(1)
    return tuple(values[i] for i in np.flatnonzero(used).tolist()), renumbered[index]
