"""Reading a store: any layer, any utterance, or a weighted sum, without running the encoder.

The rooms a trainer imports end here: this module needs torch, zarr and pyarrow, never ray,
datasets or torchaudio.
"""

from __future__ import annotations

import bisect
import difflib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from pipeline.errors import StoreError, StoreNotFoundError, UtteranceNotFoundError
from pipeline.store import index as index_files
from pipeline.store.layout import Layout
from pipeline.store.records import OK, QUARANTINED, RESERVED_NAMES
from pipeline.store.shards import ShardReader
from pipeline.store.writer import layout_of, read_attributes

Key = str | int


@dataclass(frozen=True, slots=True)
class Span:
    """Where one piece of an utterance lies.

    Attributes:
        slot: The slot.
        start: First frame within the slot.
        stop: One past its last frame, within the slot.
        position: Its place in the slot's pooled chunk.
    """

    slot: int
    start: int
    stop: int
    position: int

    @property
    def n_frames(self) -> int:
        """Number of frames."""
        return self.stop - self.start


def open_store(uri: str | os.PathLike[str]) -> FeatureStore:
    """Opens a store for reading.

    Args:
        uri: Its path.

    Raises:
        StoreNotFoundError: There is no store.

    Example:
        >>> store = open_store("features/hubert")            # doctest: +SKIP
        >>> store.read("clip-1", layers=[6]).shape           # doctest: +SKIP
        torch.Size([1, 212, 768])
    """
    return FeatureStore(uri)


class FeatureStore:
    """The committed features of one dataset and one encoder.

    Utterances come in the order of the source dataset. Only committed, complete utterances are
    visible. Picklable; it opens its files lazily, in each process for itself.
    """

    def __init__(self, uri: str | os.PathLike[str]) -> None:
        text = os.fspath(uri)
        if "://" in text:
            raise StoreNotFoundError(f"{text}: only stores on a file system can be opened so far")
        self._root = Path(text)
        self.attributes = read_attributes(self._root)
        self._layout: Layout = layout_of(self.attributes)
        self.refresh()

    def refresh(self) -> None:
        """Looks again which utterances are committed."""
        table = index_files.read_index(self._root)
        self._quarantined = table.filter(pc.equal(table["status"], QUARANTINED))
        self._pieces, self._first_piece = _complete_utterances(table)
        self._ids = self._pieces["id"].take(pa.array(self._first_piece[:-1]))
        self._order: npt.NDArray[np.int64] | None = None
        self._shards = ShardReader(self._root, self._layout)

    def __repr__(self) -> str:
        return (
            f"<FeatureStore {self._root}: {len(self)} utterances, layers {list(self.layers)}, "
            f"dim {self.feature_dim}>"
        )

    def __len__(self) -> int:
        return len(self._first_piece) - 1

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_shards"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._shards = ShardReader(self._root, self._layout)

    @property
    def layers(self) -> tuple[int, ...]:
        """Layers on the layer axis."""
        return self._layout.layers

    @property
    def feature_dim(self) -> int:
        """Features per frame."""
        return self._layout.dim

    @property
    def frame_rate_hz(self) -> float:
        """Frames per second of audio."""
        return float(self.attributes["frame_rate_hz"])

    @property
    def ids(self) -> list[str]:
        """Ids of the utterances, in order."""
        return list(self._ids.to_pylist())

    @property
    def metadata(self) -> pa.Table:
        """`id` and the carried columns of every utterance, in order, with their types."""
        names = [name for name in self._pieces.column_names if name not in RESERVED_NAMES]
        return self._pieces.select(["id", *names]).take(pa.array(self._first_piece[:-1]))

    @property
    def class_names(self) -> dict[str, list[str]]:
        """Names of the classes of each carried ClassLabel column."""
        columns = self.attributes["identity"]["source"]["columns"]
        return {item["name"]: item["class_names"] for item in columns if item["class_names"]}

    @property
    def quarantined(self) -> pa.Table:
        """`id` and `reason` of the utterances that could not be extracted."""
        return self._quarantined.select(["id", "reason"])

    def n_frames(self, key: Key) -> int:
        """Number of frames of an utterance."""
        return sum(span.n_frames for span in self._spans(self._position(key)))

    def record(self, key: Key) -> dict[str, Any]:
        """Everything that the index says of an utterance (of its first piece)."""
        first = int(self._first_piece[self._position(key)])
        return dict(self._pieces.slice(first, 1).to_pylist()[0])

    def read(
        self,
        key: Key,
        layers: Sequence[int] | None = None,
        start: int | None = None,
        stop: int | None = None,
    ) -> Tensor:
        """Features of one utterance, as stored.

        Args:
            key: Its id, or its position in `ids` (negative counts from the end).
            layers: Layers to read, in this order; None reads all.
            start: First frame, as in a slice.
            stop: One past the last frame, as in a slice.

        Returns:
            float16 [n_layers, n_frames, dim].

        Raises:
            UtteranceNotFoundError: No such utterance; also a KeyError.
            StoreError: No such layer.
            DamagedError: A shard is missing or of the wrong size.
        """
        position = self._position(key)
        axes = self._axes(layers)
        parts = [
            self._shards.read(axis, span.slot, span.start, span.stop)
            for axis in axes
            for span in _clip(self._spans(position), start, stop)
        ]
        per_layer = len(parts) // len(axes)
        out = np.empty(
            (len(axes), sum(len(part) for part in parts[:per_layer]), self.feature_dim), np.float16
        )
        for i in range(len(axes)):
            if per_layer:
                np.concatenate(parts[i * per_layer : (i + 1) * per_layer], out=out[i])
        return torch.from_numpy(out)

    def read_many(self, keys: Sequence[Key], layers: Sequence[int] | None = None) -> list[Tensor]:
        """Features of several utterances; they are read in the order in which they lie on disk.

        Args:
            keys: Ids or positions.
            layers: As for `read`.

        Returns:
            A float16 tensor [n_layers, n_frames, dim] per key, in the order of `keys`.
        """
        positions = [self._position(key) for key in keys]
        on_disk = sorted(set(positions), key=lambda p: int(self._first_piece[p]))
        features = {position: self.read(position, layers) for position in on_disk}
        return [features[position] for position in positions]

    def weighted_sum(self, key: Key, weights: Sequence[float] | Tensor) -> Tensor:
        """Weighted sum over the layers of one utterance, layer by layer.

        Args:
            key: Its id or position.
            weights: One number per layer of the store; used as they are, not normalised.

        Returns:
            float32 [n_frames, dim].
        """
        numbers = torch.as_tensor(weights, dtype=torch.float32).tolist()
        if len(numbers) != len(self.layers):
            raise StoreError(
                f"{len(numbers)} weights for the {len(self.layers)} layers {list(self.layers)}"
            )
        total: Tensor | None = None
        for layer, weight in zip(self.layers, numbers, strict=True):
            if weight == 0.0 and total is not None:
                continue
            frames = self.read(key, [layer])[0].float()
            total = frames.mul_(weight) if total is None else total.add_(frames, alpha=weight)
        assert total is not None  # a layout has at least one layer
        return total

    def pooled(self, layers: Sequence[int] | None = None) -> Tensor:
        """Mean over frames of every utterance.

        Args:
            layers: As for `read`.

        Returns:
            float32 [n_utterances, n_layers, dim], in the order of `ids`.
        """
        axes = self._axes(layers)
        out = np.empty((len(self), len(axes), self.feature_dim), np.float32)
        chunks: dict[int, npt.NDArray[np.float32]] = {}
        for i in range(len(self)):
            spans = self._spans(i)
            total = np.zeros((len(axes), self.feature_dim), np.float64)
            for span in spans:
                if span.slot not in chunks:
                    chunks = {span.slot: self._shards.pooled(span.slot)}
                total += chunks[span.slot][span.position, axes].astype(np.float64) * span.n_frames
            out[i] = total / sum(span.n_frames for span in spans)
        return torch.from_numpy(out)

    def _position(self, key: Key) -> int:
        if isinstance(key, str):
            return self._lookup(key)
        if isinstance(key, bool) or not isinstance(key, int | np.integer):
            raise TypeError(f"an utterance is named by its id or its position, not by {key!r}")
        position = int(key) + (len(self) if key < 0 else 0)
        if not 0 <= position < len(self):
            raise IndexError(f"position {key} in a store of {len(self)} utterances")
        return position

    def _lookup(self, name: str) -> int:
        if self._order is None:
            self._order = pc.sort_indices(self._ids).to_numpy()
        order = self._order
        at = bisect.bisect_left(order, name, key=lambda i: self._ids[int(i)].as_py())
        if at < len(order) and self._ids[int(order[at])].as_py() == name:
            return int(order[at])
        raise UtteranceNotFoundError(self._why_missing(name))

    def _why_missing(self, name: str) -> str:
        lost = self._quarantined.filter(pc.equal(self._quarantined["id"], name))
        if len(lost):
            return f"utterance {name!r} is quarantined: {lost['reason'][0].as_py()}"
        close = difflib.get_close_matches(name, self._ids.slice(0, 20_000).to_pylist(), n=3)
        hint = f"; near it: {', '.join(close)}" if close else ""
        return f"no utterance {name!r} in {self._root}{hint}"

    def _axes(self, layers: Sequence[int] | None) -> list[int]:
        if layers is None:
            return list(range(len(self.layers)))
        unknown = [layer for layer in layers if layer not in self.layers]
        if unknown or not len(layers):
            raise StoreError(f"no layers {unknown} in the store; it has {list(self.layers)}")
        return [self.layers.index(layer) for layer in layers]

    def _spans(self, position: int) -> list[Span]:
        first, last = int(self._first_piece[position]), int(self._first_piece[position + 1])
        rows = self._pieces.slice(first, last - first)
        capacity = self._layout.frames_per_unit
        return [
            Span(slot, at - slot * capacity, at - slot * capacity + n, place)
            for slot, at, n, place in zip(
                rows["slot"].to_pylist(),
                rows["frame_start"].to_pylist(),
                rows["n_frames"].to_pylist(),
                rows["position"].to_pylist(),
                strict=True,
            )
        ]


def _complete_utterances(table: pa.Table) -> tuple[pa.Table, npt.NDArray[np.int64]]:
    """The pieces of the complete utterances in source order, and where each utterance begins.

    Returns:
        The rows, sorted by source row and piece, and the first row of each utterance with the
        number of rows at the end: [n_utterances + 1].
    """
    pieces = table.filter(pc.equal(table["status"], OK)).combine_chunks()
    row = pieces["row"].to_numpy()
    if len(row) > 1 and not bool(np.all(np.diff(row) > 0)):
        pieces = pieces.take(
            pc.sort_indices(pieces, sort_keys=[("row", "ascending"), ("piece", "ascending")])
        )
        row = pieces["row"].to_numpy()
    if pc.max(pieces["n_pieces"]).as_py() not in (None, 1):
        found = np.bincount(np.unique(row, return_inverse=True)[1])
        n_pieces = pieces["n_pieces"].to_numpy()
        complete = np.repeat(found, found) == n_pieces
        pieces, row = pieces.filter(pa.array(complete)), row[complete]
    starts = np.flatnonzero(np.diff(row, prepend=-1))
    return pieces, np.append(starts, len(row))


def _clip(spans: Sequence[Span], start: int | None, stop: int | None) -> Iterator[Span]:
    """The parts of `spans` within frames `start:stop` of the utterance."""
    total = sum(span.n_frames for span in spans)
    first, last, _ = slice(start, stop).indices(total)
    offset = 0
    for span in spans:
        low, high = max(first - offset, 0), min(last - offset, span.n_frames)
        if low < high:
            yield Span(span.slot, span.start + low, span.start + high, span.position)
        offset += span.n_frames
