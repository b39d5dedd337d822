"""Reading a store: any layer, any utterance, or a weighted sum, without running the encoder.

The rooms a trainer imports end here: this module needs torch, zarr and pyarrow, never ray,
datasets or torchaudio. Only the committed index says what is there; the extent of the arrays says
nothing.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from copy import copy
from functools import cached_property
from pathlib import Path
from typing import Any, overload

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from pipeline.errors import StoreError, StoreNotFoundError, UtteranceNotFoundError
from pipeline.store import index as index_files
from pipeline.store.catalogue import Catalogue, IntArray, Span, read_catalogue
from pipeline.store.layout import Layout
from pipeline.store.norm import FinalNorm
from pipeline.store.pooling import read_pooled
from pipeline.store.shards import Matrix, ShardReader
from pipeline.store.writer import layout_of, read_attributes

Key = str | int
Cut = tuple[int, int, npt.NDArray[np.float16]]
"""Position of an utterance, first frame, and where to put it: float16 [n_layers, n_frames, dim],
each layer contiguous."""

_SUMMED_AT_ONCE = 512  # frames of a weighted sum, so that its buffers stay in the CPU's cache


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
    """The committed features of one dataset and one encoder, or a selection of them.

    Utterances come in the order of the source dataset. Only committed, complete utterances are
    visible: what was committed when the store was opened, or at the last `refresh`. It pickles with
    exactly this view, opens its files lazily in each process, and may be used before and after a
    fork, and by several threads.

    `store[3]`, `store[-1]` and `store["clip-1"]` are `read`; `store[10:20]` is `read_many`.

    Attributes:
        attributes: Of the Zarr group: format version, layers, identity, provenance.
    """

    def __init__(self, uri: str | os.PathLike[str]) -> None:
        text = os.fspath(uri)
        if "://" in text:
            raise StoreNotFoundError(f"{text}: only stores on a file system can be opened so far")
        self._root = Path(text).absolute()
        self.attributes = read_attributes(self._root)
        self._layout: Layout = layout_of(self.attributes)
        self._conditions: tuple[pc.Expression, ...] = ()
        self._shards = ShardReader(self._root, self._layout)
        self.refresh()

    def refresh(self) -> None:
        """Looks again which utterances are committed; a selection selects among those."""
        catalogue = read_catalogue(self._root, self._layout.frames_per_unit)
        for condition in self._conditions:
            catalogue = catalogue.take(catalogue.matching(condition))
        self._catalogue: Catalogue = catalogue

    def select(self, condition: pc.Expression | None = None, **equal: Any) -> FeatureStore:
        """The utterances for which something holds, as a store of their own.

        Args:
            condition: A pyarrow expression on the metadata, `id` and `n_frames`.
            **equal: Columns with the value, or the list of values, that they should have. Classes
                go by number or by name.

        Returns:
            A view: it shares the files, and keeps the order. It may be empty.

        Raises:
            StoreError: No such column.

        Example:
            >>> store.select(split="train", speaker=["ann", "bob"])   # doctest: +SKIP
            >>> store.select(pc.field("n_frames") < 1000)             # doctest: +SKIP
        """
        conditions = [] if condition is None else [condition]
        for name, value in equal.items():
            if name not in (*self._catalogue.metadata.column_names, "n_frames"):
                known = ", ".join(self._catalogue.metadata.column_names)
                raise StoreError(f"no column {name!r} in {self._root}; the columns are {known}")
            values = list(value) if isinstance(value, list | tuple | set | range) else [value]
            conditions.append(pc.field(name).isin([self._class_number(name, v) for v in values]))
        view = copy(self)
        for item in conditions:
            view._catalogue = view._catalogue.take(view._catalogue.matching(item))
        view._conditions = (*self._conditions, *conditions)
        return view

    def __repr__(self) -> str:
        return (
            f"<FeatureStore {self._root}: {len(self):,} utterances, layers {list(self.layers)}, "
            f"dim {self.feature_dim}>"
        )

    def __len__(self) -> int:
        return len(self._catalogue)

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and self._catalogue.find(name) is not None

    @overload
    def __getitem__(self, key: Key) -> Tensor: ...
    @overload
    def __getitem__(self, key: slice) -> list[Tensor]: ...
    def __getitem__(self, key: Key | slice) -> Tensor | list[Tensor]:
        return self.read_many(key) if isinstance(key, slice) else self.read(key)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_shards"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._shards = ShardReader(self._root, self._layout)

    @property
    def root(self) -> Path:
        """Where the store is."""
        return self._root

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
        """Ids of the utterances, in order; a list made anew at each call."""
        return list(self._catalogue.ids.to_pylist())

    @property
    def metadata(self) -> pa.Table:
        """`id` and the carried columns of every utterance, in order, with their types."""
        return self._catalogue.metadata

    @property
    def class_names(self) -> dict[str, list[str]]:
        """Names of the classes of each carried ClassLabel column."""
        columns = self.attributes["identity"]["source"]["columns"]
        return {item["name"]: item["class_names"] for item in columns if item["class_names"]}

    @property
    def quarantined(self) -> pa.Table:
        """`id` and `reason` of the utterances that could not be extracted; none in a selection."""
        return self._catalogue.quarantined

    @property
    def frame_counts(self) -> IntArray:
        """Frames of every utterance: int64 [n_utterances]."""
        return self._catalogue.frame_counts

    @property
    def slots(self) -> IntArray:
        """Slot in which each utterance begins, its place on disk: int64 [n_utterances]."""
        return self._catalogue.slot[self._catalogue.first_piece[:-1]].astype(np.int64)

    def n_frames(self, key: Key) -> int:
        """Number of frames of an utterance."""
        return int(self.frame_counts[self.position(key)])

    def record(self, key: Key) -> dict[str, Any]:
        """Everything that the index says of an utterance (of its first piece).

        Raises:
            UtteranceNotFoundError: No such utterance.
            DamagedError: Its commit is gone or not readable.
        """
        first = int(self._catalogue.first_piece[self.position(key)])
        unit = index_files.read_unit(self._root, int(self._catalogue.unit[first]))
        row = unit.filter(pc.equal(unit["position"], int(self._catalogue.place[first])))
        return dict(row.to_pylist()[0])

    def read(
        self,
        key: Key,
        layers: Sequence[int] | None = None,
        start: int | None = None,
        stop: int | None = None,
        *,
        final_norm: bool = False,
    ) -> Tensor:
        """Features of one utterance, as stored.

        Args:
            key: Its id, or its position in `ids` (negative counts from the end).
            layers: Layers to read, in this order; None reads all.
            start: First frame, as in a slice.
            stop: One past the last frame, as in a slice.
            final_norm: Apply the model's final LayerNorm to its last layer, as s3prl does and
                Hugging Face did before 5.16. It touches no other layer.

        Returns:
            float16 [n_layers, n_frames, dim].

        Raises:
            UtteranceNotFoundError: No such utterance; also a KeyError.
            StoreError: No such layer; or a final norm is asked for and the model has none.
            DamagedError: A shard is missing or damaged.
        """
        position = self.position(key)
        axes = self.axes(layers)
        norm = self._final_norm if final_norm else None
        first, last, _ = slice(start, stop).indices(int(self.frame_counts[position]))
        out = np.empty((len(axes), max(0, last - first), self.feature_dim), np.float16)
        self.read_into([(position, first, out)], axes)
        features = torch.from_numpy(out)
        return features if norm is None else norm.apply(features, [self.layers[i] for i in axes])

    def read_many(
        self, keys: Sequence[Key] | slice, layers: Sequence[int] | None = None
    ) -> list[Tensor]:
        """Features of several utterances; reads are merged and go in the order of the disk.

        Args:
            keys: Ids or positions, or a slice of positions.
            layers: As for `read`.

        Returns:
            A float16 tensor [n_layers, n_frames, dim] per key, in the order of `keys`.
        """
        wanted = range(len(self))[keys] if isinstance(keys, slice) else keys
        positions = [self.position(key) for key in wanted]
        axes = self.axes(layers)
        shape = (len(axes), self.feature_dim)
        cuts: dict[int, Cut] = {
            position: (position, 0, np.empty((shape[0], n_frames, shape[1]), np.float16))
            for position, n_frames in zip(
                positions, self.frame_counts[positions].tolist(), strict=True
            )
        }
        self.read_into(list(cuts.values()), axes)
        if len(cuts) == len(positions):
            return [torch.from_numpy(out) for _, _, out in cuts.values()]
        # one that is asked for twice is read once, but no two tensors share memory
        given = {position: torch.from_numpy(out) for position, (_, _, out) in cuts.items()}
        return [
            given[position] if position not in positions[:i] else given[position].clone()
            for i, position in enumerate(positions)
        ]

    def weighted_sum(self, key: Key, weights: Sequence[float] | Tensor) -> Tensor:
        """Weighted sum over the layers of one utterance, layer by layer.

        The sum is taken in float32 in the order of `layers`: it is bit for bit what
        `w[0] * x[0].float() + w[1] * x[1].float() + ...` gives. Layers of weight zero are not read.

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
        position = self.position(key)
        n_frames = int(self.frame_counts[position])
        total = torch.zeros((n_frames, self.feature_dim), dtype=torch.float32)
        half = np.empty((1, min(n_frames, _SUMMED_AT_ONCE), self.feature_dim), np.float16)
        scaled = torch.empty(half.shape[1:], dtype=torch.float32)
        for start in range(0, n_frames, _SUMMED_AT_ONCE):
            n = min(_SUMMED_AT_ONCE, n_frames - start)
            for axis, weight in enumerate(numbers):
                if weight != 0.0:
                    self.read_into([(position, start, half[:, :n])], [axis])
                    scaled[:n].copy_(torch.from_numpy(half[0, :n])).mul_(weight)
                    total[start : start + n].add_(scaled[:n])
        return total

    def pooled(self, layers: Sequence[int] | None = None) -> Tensor:
        """Mean over frames of every utterance.

        Args:
            layers: As for `read`.

        Returns:
            float32 [n_utterances, n_layers, dim], in the order of `ids`.

        Raises:
            DamagedError: A pooled chunk is missing or damaged.
        """
        means = read_pooled(self._shards, self._catalogue, self.axes(layers))
        return torch.from_numpy(means)

    def position(self, key: Key) -> int:
        """Position of an utterance in `ids`.

        Raises:
            UtteranceNotFoundError: No such id; the message has its quarantine reason, or near ones.
            IndexError: No such position.
        """
        if isinstance(key, str):
            found = self._catalogue.find(key)
            if found is None:
                raise UtteranceNotFoundError(f"{self._root}: {self._catalogue.why_missing(key)}")
            return found
        if isinstance(key, bool) or not isinstance(key, int | np.integer):
            raise TypeError(f"an utterance is named by its id or its position, not by {key!r}")
        position = int(key) + (len(self) if key < 0 else 0)
        if not 0 <= position < len(self):
            raise IndexError(f"position {key} in a store of {len(self)} utterances")
        return position

    def axes(self, layers: Sequence[int] | None) -> list[int]:
        """Where `layers` lie on the layer axis.

        Raises:
            StoreError: No such layer, or none is asked for.
        """
        if layers is None:
            return list(range(len(self.layers)))
        unknown = [layer for layer in layers if layer not in self.layers]
        if unknown or not len(layers):
            raise StoreError(f"no layers {unknown} in the store; it has {list(self.layers)}")
        return [self.layers.index(layer) for layer in layers]

    def read_into(self, cuts: Sequence[Cut], axes: Sequence[int]) -> None:
        """Reads frames of several utterances straight to where they are wanted.

        The reads go layer by layer in the order of the disk; utterances that lie side by side are
        one read.

        Args:
            cuts: Position, first frame, and destination float16 [n_layers, n_frames, dim] of each.
            axes: Positions on the layer axis, one per layer of the destinations.

        Raises:
            DamagedError: A shard is missing or damaged.
        """
        parts = [part for cut in cuts for part in self._parts(*cut)]
        if len(parts) > 1:
            parts.sort(key=lambda part: (part[0].slot, part[0].start))
        runs: list[tuple[Span, list[Matrix]]] = []
        slot = stop = -1
        for span, where in parts:
            if span.slot == slot and span.start == stop:
                runs[-1][1].append(where)
            else:
                runs.append((span, [where]))
            slot, stop = span.slot, span.stop
        for i, axis in enumerate(axes):
            for span, targets in runs:
                self._shards.read_into(axis, span.slot, span.start, [part[i] for part in targets])

    def _parts(self, position: int, start: int, where: Matrix) -> list[tuple[Span, Matrix]]:
        """Which frames of which slot fill which part of a destination."""
        parts = []
        stop = start + where.shape[1]
        offset = 0
        for span in self._catalogue.spans(position):
            low, high = max(start - offset, 0), min(stop - offset, span.n_frames)
            if low < high:
                wanted = Span(span.slot, span.start + low, span.start + high)
                at = offset + low - start
                parts.append((wanted, where[:, at : at + high - low]))
            offset += span.n_frames
        return parts

    def _class_number(self, name: str, value: Any) -> Any:
        names = self.class_names.get(name)
        if names is None or not isinstance(value, str):
            return value
        if value not in names:
            raise StoreError(f"no class {value!r} in column {name!r}; it has {', '.join(names)}")
        return names.index(value)

    @cached_property
    def _final_norm(self) -> FinalNorm:
        return FinalNorm.of(self.attributes)
