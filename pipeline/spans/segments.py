"""Spans whose times are those of recordings, in a store whose utterances are segments of these."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import ConfigError, SourceError, counted, first_few
from pipeline.spans.table import IntArray, Seconds, Spans
from pipeline.store.format.geometry import FrameGeometry
from pipeline.store.read.utterances import StoreView

_RECORDING = "recording"
_STARTS = ("start", "offset")


@dataclass(frozen=True)
class Segmented:
    """The parts of spans that are in segments.

    Attributes:
        row: Row of the span, int64 [n_parts].
        position: Position of the utterance in the store, int64 [n_parts].
        annotated: Positions of all segments of these recordings, ascending, int64 [n].
        start_s: Start from that of the utterance, in seconds, float64 [n_parts].
        stop_s: End, in seconds, float64 [n_parts].
        notes: What was left out or cut.
    """

    row: IntArray
    position: IntArray
    annotated: IntArray
    start_s: Seconds
    stop_s: Seconds
    notes: list[str]


def in_segments(store: StoreView, spans: Spans, start_column: str | None) -> Segmented:
    """Divide spans of recordings among the segments that they are in.

    Args:
        store: The store; its column `recording` has the ids of the spans.
        spans: The spans, with times of recordings.
        start_column: Column with the start of each segment, in seconds; None: `start` or `offset`.

    Raises:
        ConfigError: The store lacks these columns, or its segments are counted in samples.
        SourceError: The store has none of the recordings.
    """
    recordings, begin = _segments(store, start_column)
    end = begin + latest_ends(store.geometry, store.frame_counts)
    number = pc.fill_null(
        pc.index_in(recordings, value_set=pa.array(spans.utterances, pa.string())), -1
    )
    recording = np.asarray(number.to_numpy(), np.int64)
    chosen = np.flatnonzero(recording >= 0)
    if not len(chosen):
        raise SourceError(
            f"{store.location} has no recording of the spans: they are of "
            f"{first_few(spans.utterances)}, and its recordings are "
            f"{first_few(recordings.unique().slice(0, 6).to_pylist())}; give id_form=, or "
            "times=utterance if the spans have ids of utterances"
        )
    order = chosen[np.lexsort((begin[chosen], recording[chosen]))]
    bounds = np.searchsorted(recording[order], np.arange(len(spans.utterances) + 1))
    by_recording = np.argsort(spans.utterance, kind="stable")
    row_bounds = np.searchsorted(
        spans.utterance[by_recording], np.arange(len(spans.utterances) + 1)
    )
    rows, positions = [], []
    for i in np.flatnonzero(np.diff(bounds)).tolist():
        segments = order[bounds[i] : bounds[i + 1]]
        own = by_recording[row_bounds[i] : row_bounds[i + 1]]
        row, segment = _overlapping(spans, own, begin[segments], end[segments])
        rows.append(row)
        positions.append(segments[segment])
    row, position = np.concatenate(rows), np.concatenate(positions)
    start = spans.start_s[row] - begin[position]
    stop = np.minimum(spans.stop_s[row], end[position]) - begin[position]
    is_cut = (start < 0) | (spans.stop_s[row] > end[position])
    notes = []
    n_outside = len(spans) - len(np.unique(row))
    if n_outside:
        notes.append(f"{counted(n_outside, 'span')} of {len(spans):,} in no segment of the store")
    if is_cut.any():
        notes.append(f"{counted(int(is_cut.sum()), 'span')} cut at the ends of segments")
    in_order = np.argsort(row, kind="stable")
    return Segmented(
        row[in_order],
        position[in_order],
        chosen,
        np.maximum(start, 0.0)[in_order],
        stop[in_order],
        notes,
    )


def latest_ends(geometry: FrameGeometry, n_frames: IntArray) -> Seconds:
    """Return the latest times at which utterances of so many frames may end, in seconds, [n].

    The length of an utterance is known up to a hop.
    """
    hop = geometry.hop_samples
    return ((n_frames - 1) * hop + geometry.n_samples(1) + hop) / geometry.sample_rate_hz


def _overlapping(
    spans: Spans, rows: IntArray, begin: Seconds, end: Seconds
) -> tuple[IntArray, IntArray]:
    """Return the pairs of a span and a segment of one recording that overlap.

    Args:
        spans: All spans.
        rows: Those of the recording, [n].
        begin: Start of each segment of the recording, ascending, [n_segments].
        end: End of each segment.
    """
    start, stop = spans.start_s[rows], spans.stop_s[rows]
    low = np.searchsorted(np.maximum.accumulate(end), start, side="right")
    high = np.searchsorted(begin, stop, side="left")
    counts = np.maximum(high - low, 0)
    span = np.repeat(np.arange(len(rows)), counts)
    segment = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    segment += np.repeat(low, counts)
    overlaps = end[segment] > start[span]
    return rows[span[overlaps]], segment[overlaps]


def _segments(store: StoreView, start_column: str | None) -> tuple[pa.Array, Seconds]:
    """Return the recording of each utterance, and its start in it in seconds.

    Raises:
        ConfigError: The store lacks these columns, or its segments are counted in samples.
    """
    names = store.metadata.column_names
    if _RECORDING not in names:
        raise ConfigError(
            f"times=recording: {store.location} has no column {_RECORDING!r}, so its utterances "
            "are not segments of recordings; leave times out"
        )
    found = [name for name in _STARTS if name in names]
    if start_column is not None and start_column not in names:
        raise ConfigError(
            f"no column {start_column!r} in {store.location}; it has {', '.join(names)}"
        )
    if start_column is None and len(found) != 1:
        raise ConfigError(
            f"times=recording: give segment_start=COLUMN, the start of each segment in its "
            f"recording in seconds; {store.location} has {', '.join(names)}"
        )
    name = found[0] if start_column is None else start_column
    source = store.attributes["identity"].get("source", {})
    if source.get("segments", {}).get("unit") == "samples":
        raise ConfigError(
            f"times=recording: the segments of {store.location} are counted in samples of their "
            "files; give times from the start of each utterance instead"
        )
    column = store.metadata[name]
    if not (pa.types.is_floating(column.type) or pa.types.is_integer(column.type)):
        raise ConfigError(f"segment_start={name} holds {column.type}; expected seconds")
    begin: npt.NDArray[np.float64] = pc.fill_null(column.cast(pa.float64()), 0.0).to_numpy()
    return store.metadata[_RECORDING].combine_chunks().cast(pa.string()), begin
