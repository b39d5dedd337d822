"""Statistics over the frames of each span, in one pass over a store.

Utterances are read in the order of the disk, and of each only the frames that spans need. Memory is
bounded for any number and length of spans: a span that does not fit is read in parts.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.config.sizes import parse_bytes
from pipeline.errors import ConfigError, counted
from pipeline.spans.placing import UTTERANCE, PlacedSpans, place_spans
from pipeline.spans.table import IntArray, Spans
from pipeline.store.format.codecs import FloatArray
from pipeline.store.format.pooling import MEAN, STATISTICS, STD
from pipeline.store.read.features import FeatureStore

DEFAULT_MEMORY = "256MB"
_GAP_FRAMES = 32  # between spans, which are rather read than skipped
_COPIES = 3  # of the frames that are read: as stored, as float32, and the results of their spans


def pool_spans(
    store: FeatureStore,
    spans: Spans,
    layers: Sequence[int | str] | None = None,
    statistic: str = MEAN,
    *,
    out: FloatArray | None = None,
    times: str = UTTERANCE,
    segment_start: str | None = None,
    memory: int | str = DEFAULT_MEMORY,
) -> Tensor:
    """Return a statistic over the frames of every span, read in one pass over the store.

    Values are those that `store.read(span.id, span=span)` returns, and sums are float64. For many
    spans the result is large (a million spans of 12 layers of 768 features: 37 GB): give a
    memory map as `out`, or use `iter_pooled_spans`.

    Args:
        store: The store, or several that are read as one, or a selection.
        spans: The spans.
        layers: Layers to read, by number or name, in this order; None reads all.
        statistic: "mean", "std" (of the population), "max", "first" or "last" (frame).
        out: Where to write, float32 [n_spans, n_layers, dim], such as a `numpy.memmap`.
        times: "utterance" or "recording": from where times count; see `place_spans`. Of a span
            that is in several segments, the part in the first one counts.
        segment_start: Column with the start of each segment in its recording.
        memory: Largest size of what is read at a time, in bytes or as text such as "1GB"; `out` is
            not counted.

    Returns:
        float32 [n_spans, n_layers, dim]; NaN for spans without frames, which a warning counts.

    Raises:
        SourceError: The store has no utterance of the spans, or no span has a frame.
        ConfigError: The statistic or the memory is none, or `out` has another shape.
        StoreError: A layer is not in the store, or it keeps no frames.
        DamagedError: A shard is missing or damaged.

    Example:
        >>> spans = read_spans("alignments", tier="words")            # doctest: +SKIP
        >>> pool_spans(store, spans, layers=[6, 9]).shape             # doctest: +SKIP
        torch.Size([5312, 2, 768])
    """
    shape = (len(spans), len(store.axes(layers)), store.feature_dim)
    if out is None:
        out = np.empty(shape, np.float32)
    elif out.shape != shape or out.dtype != np.float32:
        raise ConfigError(f"out is {out.dtype} {list(out.shape)}; expected float32 {list(shape)}")
    placed = place_spans(store, spans, times=times, segment_start=segment_start)
    for note in placed.notes:
        warnings.warn(note, stacklevel=2)
    is_first = np.ones(len(placed), bool)
    is_first[1:] = placed.row[1:] != placed.row[:-1]
    has_frames = np.zeros(len(spans), bool)
    has_frames[placed.row] = True
    out[~has_frames] = np.nan
    once = placed.take(is_first)
    for rows, values in iter_pooled_spans(store, once, layers, statistic, memory=memory):
        out[once.row[rows]] = values.numpy()
    return torch.from_numpy(out)


def iter_pooled_spans(
    store: FeatureStore,
    placed: PlacedSpans,
    layers: Sequence[int | str] | None = None,
    statistic: str = MEAN,
    *,
    memory: int | str = DEFAULT_MEMORY,
) -> Iterator[tuple[IntArray, Tensor]]:
    """Yield a statistic over the frames of spans, in the order of the disk.

    Args:
        store: The store of `placed`.
        placed: The spans, of `place_spans`.
        layers: As for `pool_spans`.
        statistic: As for `pool_spans`.
        memory: As for `pool_spans`.

    Yields:
        Indices in `placed`, int64 [n], and their values, float32 [n, n_layers, dim]. Each index
        comes once.

    Raises:
        ConfigError: The statistic or the memory is none, or the memory is too small.
        StoreError: A layer is not in the store, or it keeps no frames.
        DamagedError: A shard is missing or damaged.
    """
    if statistic not in STATISTICS:
        raise ConfigError(f"no statistic {statistic!r}; there are {', '.join(STATISTICS)}")
    axes = store.axes(layers)
    store.check_frames()
    values = len(axes) * store.feature_dim
    frame_bytes = values * (store.codec.value_dtype.itemsize + 4 * (_COPIES - 1))
    n_frames = parse_bytes(memory) // frame_bytes
    if n_frames < 1:
        raise ConfigError(
            f"memory is {memory!r}; a frame of {counted(len(axes), 'layer')} takes "
            f"{frame_bytes:,} bytes"
        )
    for batch in _batches(store, placed, n_frames):
        yield _read(store, placed, batch, axes, statistic, n_frames)


@dataclass
class _Cover:
    """Consecutive frames of an utterance, with the spans that are in them.

    Attributes:
        position: The utterance.
        first: First frame.
        last: One past the last frame.
        spans: Indices in the placed spans.
    """

    position: int
    first: int
    last: int
    spans: list[int] = field(default_factory=list)


def _batches(store: FeatureStore, placed: PlacedSpans, most: int) -> Iterator[list[_Cover]]:
    """Yield covers that are read together, of at most `most` frames and spans if they can be."""
    batch: list[_Cover] = []
    n_frames = n_spans = 0
    for cover in _covers(store, placed, most):
        length = cover.last - cover.first
        if batch and (n_frames + length > most or n_spans + len(cover.spans) > most):
            yield batch
            batch, n_frames, n_spans = [], 0, 0
        batch.append(cover)
        n_frames, n_spans = n_frames + length, n_spans + len(cover.spans)
    if batch:
        yield batch


def _covers(store: FeatureStore, placed: PlacedSpans, most: int) -> Iterator[_Cover]:
    """Yield the frames that spans need, in the order of the disk.

    A cover has more than `most` frames only if a single span has.
    """
    order = np.lexsort((placed.last, placed.first, _disk_order(store)[placed.position]))
    cover: _Cover | None = None
    rows = zip(
        order.tolist(),
        placed.position[order].tolist(),
        placed.first[order].tolist(),
        placed.last[order].tolist(),
        strict=True,
    )
    for index, position, first, last in rows:
        if (
            cover is None
            or position != cover.position
            or first > cover.last + _GAP_FRAMES
            or max(last, cover.last) - cover.first > most
            or len(cover.spans) >= most
        ):
            if cover is not None:
                yield cover
            cover = _Cover(position, first, last)
        cover.last = max(cover.last, last)
        cover.spans.append(index)
    if cover is not None:
        yield cover


def _disk_order(store: FeatureStore) -> IntArray:
    """Return the rank of each utterance on the disk, by its first piece, int64 [n_utterances]."""
    utterance, slot, start, _ = store.piece_places()
    is_first = np.diff(utterance, prepend=-1) != 0
    ranks = np.empty(len(store), np.int64)
    order = np.lexsort((start[is_first], slot[is_first]))
    ranks[utterance[is_first][order]] = np.arange(len(order))
    return ranks


def _read(
    store: FeatureStore,
    placed: PlacedSpans,
    batch: Sequence[_Cover],
    axes: Sequence[int],
    statistic: str,
    most: int,
) -> tuple[IntArray, Tensor]:
    """Read a batch, and return its spans and their values."""
    indices = [index for cover in batch for index in cover.spans]
    out = torch.empty((len(indices), len(axes), store.feature_dim))
    if batch[0].last - batch[0].first > most:  # one span, alone in its batch
        out[0] = _in_parts(store, batch[0], axes, statistic, most)
        return np.array(indices, np.int64), out
    n_frames = sum(cover.last - cover.first for cover in batch)
    stored = np.empty((len(axes), n_frames, store.feature_dim), store.codec.value_dtype)
    cuts, starts, at = [], [], 0
    for cover in batch:
        length = cover.last - cover.first
        cuts.append((cover.position, cover.first, stored[:, at : at + length]))
        starts += [at - cover.first] * len(cover.spans)
        at += length
    store.read_into(cuts, axes)
    frames: FloatArray = torch.from_numpy(stored).float().numpy()  # NumPy converts more slowly
    firsts, lasts = placed.first[indices].tolist(), placed.last[indices].tolist()
    for i, (start, first, last) in enumerate(zip(starts, firsts, lasts, strict=True)):
        out[i] = torch.from_numpy(_statistic(frames[:, start + first : start + last], statistic))
    return np.array(indices, np.int64), out


def _statistic(frames: FloatArray, statistic: str) -> FloatArray:
    """Return a statistic: float32 [n_layers, n_frames, dim] → [n_layers, dim]; sums are float64.

    NumPy takes less time than torch for so few frames, and does not wait for other threads.
    """
    if statistic == MEAN:
        return np.asarray(frames.mean(1, dtype=np.float64), np.float32)
    if statistic == STD:
        return np.asarray(frames.std(1, dtype=np.float64), np.float32)
    if statistic == "max":
        return np.asarray(frames.max(1))
    return np.asarray(frames[:, 0 if statistic == "first" else -1])


def _in_parts(
    store: FeatureStore, cover: _Cover, axes: Sequence[int], statistic: str, most: int
) -> Tensor:
    """Return the statistic of a span that is read in parts, [n_layers, dim]; sums are float64."""
    if statistic in ("first", "last"):
        at = cover.first if statistic == "first" else cover.last - 1
        return _frames(store, cover.position, at, at + 1, axes)[:, 0].float()
    n = 0
    mean = squares = largest = torch.zeros(())
    for first in range(cover.first, cover.last, most):
        last = min(first + most, cover.last)
        frames = _frames(store, cover.position, first, last, axes)
        if statistic == "max":
            here = frames.amax(1)
            largest = here if n == 0 else torch.maximum(largest, here)
        else:  # Chan, Golub and LeVeque, 1979
            count = last - first
            own = frames.mean(1, dtype=torch.float64)
            own_squares = frames.std(1, correction=0).double().square() * count
            delta = own - mean
            squares = squares + own_squares + delta.square() * (n * count / (n + count))
            mean = mean + delta * (count / (n + count))
        n += last - first
    if statistic == "max":
        return largest
    return (mean if statistic == MEAN else (squares / n).sqrt()).float()


def _frames(
    store: FeatureStore, position: int, first: int, last: int, axes: Sequence[int]
) -> Tensor:
    """Return frames of an utterance, float32 [n_layers, n_frames, dim]."""
    shape = (len(axes), last - first, store.feature_dim)
    stored: np.ndarray[Any, Any] = np.empty(shape, store.codec.value_dtype)
    store.read_into([(position, first, stored)], axes)
    return torch.from_numpy(stored).float()
