"""Places of spans in a store: the utterance of each and its frames, and what has none.

A frame belongs to a span if its centre is in `[start_s, stop_s)`. So of adjacent spans exactly one
has each frame, and a span that is shorter than a hop may have none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import SourceError, UtteranceNotFoundError, counted, first_few
from pipeline.spans.id_forms import find_id_form
from pipeline.spans.segments import in_segments, latest_ends
from pipeline.spans.table import IntArray, Seconds, Spans
from pipeline.store.read.timing import first_frames
from pipeline.store.read.utterances import StoreView

UTTERANCE, RECORDING = "utterance", "recording"
_MANY_LATE = 0.1  # share of spans beyond the end, above which the note asks for the unit


@dataclass(frozen=True)
class PlacedSpans:
    """The spans of a store that have frames, each with its place.

    A span whose times are those of a recording may have several places, one in each segment.

    Attributes:
        spans: All spans that were given.
        row: Row in `spans`, int64 [n_places].
        position: Position of the utterance in the store, int64 [n_places].
        first: First frame within the utterance, int64 [n_places].
        last: One past the last frame, above `first`, int64 [n_places].
        annotated: Positions of the utterances that the file labels, also those in which no span
            has a frame, ascending, int64 [n].
        notes: What was left out and why, without what the labels left out (`spans.notes`).
    """

    spans: Spans
    row: IntArray
    position: IntArray
    first: IntArray
    last: IntArray
    annotated: IntArray
    notes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.row)

    @property
    def label(self) -> npt.NDArray[np.int32]:
        """Index in `spans.labels` of each, int32 [n_places]."""
        return self.spans.label[self.row]

    def take(self, which: npt.NDArray[np.int64] | npt.NDArray[np.bool_]) -> PlacedSpans:
        """Return some of the places, by index or mask."""
        names = ("row", "position", "first", "last")
        return replace(self, **{name: getattr(self, name)[which] for name in names})


def place_spans(
    store: StoreView,
    spans: Spans,
    *,
    times: str = UTTERANCE,
    segment_start: str | None = None,
) -> PlacedSpans:
    """Find the utterance and the frames of each span.

    Spans of utterances that the store does not have, or that are not selected, and spans without a
    frame are left out and noted. Spans that end after their utterance are cut there; those that do
    so by more than a hop are noted.

    Args:
        store: The store, or a selection of it.
        spans: The spans.
        times: "utterance": times count from the start of the utterance. "recording": the ids are
            values of the column `recording`, and times count from the start of the recording.
        segment_start: Column with the start of each segment in its recording, in seconds; None:
            `start` or `offset`.

    Raises:
        SourceError: The store has no utterance of the spans, or no span has a frame.
        ConfigError: The store has no recordings or no times of segments.
    """
    placed, notes = np.arange(len(spans)), list[str]()
    if times == RECORDING:
        found = in_segments(store, spans, segment_start)
        annotated = found.annotated
        placed, position, start, stop = found.row, found.position, found.start_s, found.stop_s
        notes += found.notes
    else:
        of_utterances, missing = _positions(store, spans)
        notes += missing
        annotated = np.sort(of_utterances[of_utterances >= 0])
        position = of_utterances[spans.utterance]
        placed = np.flatnonzero(position >= 0)
        position, start, stop = position[placed], spans.start_s[placed], spans.stop_s[placed]
    geometry = store.geometry
    n_frames = store.frame_counts[position]
    first = first_frames(geometry, start)
    last = np.minimum(first_frames(geometry, stop), n_frames)
    notes += _late(store, spans, placed, stop, n_frames)
    has_frames = last > first
    if not has_frames.all():
        empty = placed[~has_frames]
        shown = first_few([_shown(spans, row) for row in empty[:2].tolist()])
        notes.append(
            f"{counted(len(empty), 'span')} of {len(placed):,} without frames, since the centre of "
            f"no frame is inside (first {shown})"
        )
    if not has_frames.any():
        raise SourceError(
            f"no span has a frame of {store.location}: {'; '.join((*spans.notes, *notes))}"
        )
    placed, position, first, last = (x[has_frames] for x in (placed, position, first, last))
    return PlacedSpans(spans, placed, position, first, last, annotated, tuple(notes))


def _positions(store: StoreView, spans: Spans) -> tuple[IntArray, list[str]]:
    """Return the position of each utterance of the spans, -1 for none, and notes about these.

    Raises:
        SourceError: The store has none of the utterances.
    """
    wanted = pa.array(spans.utterances, pa.string())
    found = pc.fill_null(pc.index_in(wanted, value_set=_flat(store.metadata["id"])), -1)
    positions = np.asarray(found.to_numpy(), np.int64)
    absent = np.flatnonzero(positions < 0)
    if not len(absent):
        return positions, []
    counts = np.bincount(spans.utterance, minlength=len(positions))
    committed = _flat(store.whole_column("id"))
    quarantined = _flat(store.whole().quarantined["id"])
    left = pc.invert(pc.is_in(wanted, value_set=committed))
    lost = pc.and_(left, pc.is_in(wanted, value_set=quarantined))
    is_lost = np.asarray(lost.to_numpy(zero_copy_only=False))
    is_unknown = np.asarray(left.to_numpy(zero_copy_only=False)) & ~is_lost
    is_unselected = (positions < 0) & ~is_lost & ~is_unknown
    unknown = [spans.utterances[i] for i in np.flatnonzero(is_unknown).tolist()]
    notes = []
    for mask, words in (
        (is_unknown, f"not in the store: {first_few(unknown)}"),
        (is_lost, "quarantined: they have no features"),
        (is_unselected, "not selected"),
    ):
        if mask.any():
            n = int(counts[mask].sum())
            notes.append(
                f"{counted(n, 'span')} of {len(spans):,} in utterances that are {words} "
                f"({counted(int(mask.sum()), 'utterance')})"
            )
    if len(absent) == len(positions):
        hint = f"; {difference(unknown, store)}" if unknown else ""
        raise SourceError(f"{store.location} has no utterance of the spans: {notes[0]}{hint}")
    return positions, notes


def difference(unknown: Sequence[str], store: StoreView) -> str:
    """Return how ids of spans differ from those of a store, and what makes them equal.

    Args:
        unknown: Ids that are not in the store, at least one.
        store: The store.
    """
    found = find_id_form(unknown, store.whole_column("id").to_pylist())
    if found is not None:
        return (
            f"the spans have {found.one!r} where the store has {found.near!r}; "
            f"id_form={found.form!r} finds {found.n_found:,} of "
            f"{counted(len(unknown), 'utterance')}"
        )
    try:
        store.position(unknown[0])
    except UtteranceNotFoundError as error:
        first = store.ids[0]
        return f"{str(error).partition(': ')[2]}; ids of the store are such as {first!r}"
    return ""


def _late(
    store: StoreView, spans: Spans, rows: IntArray, stop: Seconds, n_frames: IntArray
) -> list[str]:
    """Return a note of the spans that end after their utterances."""
    ends = latest_ends(store.geometry, n_frames)
    late = np.flatnonzero(stop > ends + 1e-9)
    if not len(late):
        return []
    worst = late[np.argmax(stop[late] - ends[late])]
    doubt = ""
    if len(late) > _MANY_LATE * len(rows):
        doubt = "; are the times in seconds (unit=ms, unit=samples), and from the start of the "
        doubt += "utterance (times=recording)?"
    return [
        f"{counted(len(late), 'span')} of {len(rows):,} end after their utterances, by more than a "
        f"frame, and are cut there; the latest by {stop[worst] - ends[worst]:.2f} s "
        f"({_shown(spans, int(rows[worst]))}){doubt}"
    ]


def _shown(spans: Spans, row: int) -> str:
    span = spans[row]
    times = f"from {span.start_s:g} to {span.stop_s:g} s"
    return f"{span.label!r:.40} of {span.id!r} {times}, {spans.where(row)}"


def _flat(column: pa.ChunkedArray) -> pa.Array:
    """Return a column of text as one array."""
    flat = column.combine_chunks()
    if isinstance(flat, pa.ChunkedArray):  # of no rows
        flat = pa.array([], pa.string())
    return flat.cast(pa.string())
