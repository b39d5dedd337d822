"""The public reader: features of any layer of any utterance, or a weighted sum of layers."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any, Self, overload

import numpy as np
import torch
from torch import Tensor

from pipeline.errors import ConfigError, StoreError
from pipeline.store.backend.held_reader import HeldRanges
from pipeline.store.format.codecs import FloatArray
from pipeline.store.format.pooling import MEAN
from pipeline.store.read.final_norm import FinalNorm
from pipeline.store.read.merged import Cut, gather, read_cut, read_mapped
from pipeline.store.read.pooled import read_pooled
from pipeline.store.read.shards import ShardReader
from pipeline.store.read.timing import (
    FrameTimes,
    check_reduction,
    frame_times,
    frames_between,
    frames_to_join,
    join_frames,
    span_times,
)
from pipeline.store.read.utterances import Key
from pipeline.store.read.verified import LayerCheck, check_cuts, check_pooled
from pipeline.store.tensors import decode_into
from pipeline.store.tokens.view import TokenView

_SUM_BLOCK = 512  # frames of a weighted sum, so that its buffers stay in the CPU's cache


class FeatureStore(TokenView):
    """The committed features of one dataset and one encoder, or a selection of them.

    Utterances are in the order of the source dataset. Only complete utterances are visible, as of
    when the store was opened or last refreshed. A pickled store has the same utterances. Files are
    opened when they are needed, in each process. A store may be used by several threads, and both
    before and after a fork.

    `store[3]`, `store[-1]` and `store["clip-1"]` call `read`; `store[10:20]` calls `read_many`.

    Attributes:
        attributes: Attributes of the Zarr group: format version, layers, identity, provenance.
    """

    @overload
    def __getitem__(self, key: Key) -> Tensor: ...
    @overload
    def __getitem__(self, key: slice) -> list[Tensor]: ...
    def __getitem__(self, key: Key | slice) -> Tensor | list[Tensor]:
        return self.read_many(key) if isinstance(key, slice) else self.read(key)

    def read(
        self,
        key: Key,
        layers: Sequence[int | str] | None = None,
        start: int | None = None,
        stop: int | None = None,
        *,
        start_s: float | None = None,
        stop_s: float | None = None,
        span: Any = None,
        rate_hz: float | None = None,
        reduction: str = MEAN,
        final_norm: bool = False,
        verify: bool | None = None,
    ) -> Tensor:
        """Read the features of one utterance, as stored.

        A plain read notices a shard that is missing or cut short, but not a changed value. With
        `verify`, each layer of the utterance is compared with its checksum before anything is
        returned. From memory this takes twice the time (`benchmarks/bench_read.py`). A part of an
        utterance takes the time of its whole, or of its whole piece if it is longer than a unit.

        Args:
            key: Its id, or its position in `ids`; a negative one counts from the end.
            layers: Layers to read, by number or name (`layer_names`), in this order; None reads
                all. -1 is `conv`, not the last layer.
            start: First frame, as in a slice.
            stop: One past the last frame, as in a slice.
            start_s: Instead of `start`: frames whose centre is not before this time, in seconds
                from the start of the utterance.
            stop_s: Instead of `stop`: frames whose centre is before this time.
            span: Instead of these four: a row of `Spans`, or a pair (start_s, stop_s).
            rate_hz: Return so many frames a second: the store's `frame_rate_hz` divided by a whole
                number. Groups begin with the first frame that is read; the last may be smaller.
            reduction: What becomes of a group: its "mean", computed in float32, or its first frame
                ("stride").
            final_norm: Apply the model's final LayerNorm to its last layer, as s3prl does and
                Hugging Face did before 5.16. Other layers do not change.
            verify: Whether to compare what is read with its checksums, before it is returned; None
                is what the store was opened with.

        Returns:
            [n_layers, n_frames, dim], float16, or float32 if the store holds float32 or bfloat16.

        Raises:
            UtteranceNotFoundError: There is no such utterance. It is also a KeyError.
            StoreError: A layer is not in the store, or the model has no final norm.
            ConfigError: A part is given both in frames and in seconds, or the rate or the
                reduction is none.
            DamagedError: A shard is missing or damaged; the message names it.
        """
        position = self.position(key)
        axes = self.axes(layers)
        if span is not None:
            start_s, stop_s = self._times_of(span, key, (start, stop, start_s, stop_s))
        is_plain = start_s is None and stop_s is None and rate_hz is None and not final_norm
        if is_plain:
            features = self._read_mapped(position, axes, start, stop, verify)
            if features is not None:
                return features
        norm = self.final_norm if final_norm else None
        if start_s is not None or stop_s is not None:
            if start is not None or stop is not None:
                raise ConfigError("give start and stop, or start_s and stop_s, not both")
            start, stop = frames_between(self.geometry, start_s, stop_s)
        first, last, _ = slice(start, stop).indices(self._catalogue.length(position))
        layout = self._layout
        shape = (len(axes), last - first if last > first else 0, layout.dim)
        out = np.empty(shape, layout.codec.value_dtype)
        n_joined = 1 if rate_hz is None else self._frames_to_join(rate_hz, reduction)
        self._fill((position, first, out), axes, verify)
        features = torch.from_numpy(out)
        if norm is not None:
            features = norm.apply(features, self.numbers_at(axes))
        return features if n_joined == 1 else join_frames(features, n_joined, reduction)

    def times(self, key: Key, *, rate_hz: float | None = None, reduction: str = MEAN) -> FrameTimes:
        """Return start, centre and stop of each frame of an utterance, in seconds.

        They count from the start of the utterance, which may be a part of its file.

        Args:
            key: Its id or position.
            rate_hz: As for `read`, for the frames that it returns of the whole utterance.
            reduction: As for `read`.

        Returns:
            Arrays `start_s`, `centre_s` and `stop_s`, float64 [n_frames].

        Raises:
            UtteranceNotFoundError: There is no such utterance.
            ConfigError: The rate or the reduction is none.

        Example:
            >>> store.times("clip-1").centre_s[:2]               # doctest: +SKIP
            array([0.0125, 0.0325])
        """
        n_joined = 1 if rate_hz is None else self._frames_to_join(rate_hz, reduction)
        return frame_times(self.geometry, self.n_frames(key), n_joined, reduction)

    def read_many(
        self,
        keys: Sequence[Key] | slice,
        layers: Sequence[int | str] | None = None,
        *,
        verify: bool | None = None,
    ) -> list[Tensor]:
        """Read the features of several utterances; reads are merged and sorted by place on disk.

        Args:
            keys: Ids or positions, or a slice of positions.
            layers: As for `read`.
            verify: As for `read`.

        Returns:
            A tensor [n_layers, n_frames, dim] per key, in the order of `keys`.
        """
        wanted = range(len(self))[keys] if isinstance(keys, slice) else keys
        positions = [self.position(key) for key in wanted]
        axes = self.axes(layers)
        shape, dtype = (len(axes), self.feature_dim), self.codec.value_dtype
        cuts: dict[int, Cut] = {
            position: (position, 0, np.empty((shape[0], n_frames, shape[1]), dtype))
            for position, n_frames in zip(
                positions, self.frame_counts[positions].tolist(), strict=True
            )
        }
        self.read_into(list(cuts.values()), axes, verify=verify)
        if len(cuts) == len(positions):
            return [torch.from_numpy(out) for _, _, out in cuts.values()]
        # a repeated key is read once, but no two tensors share memory
        given = {position: torch.from_numpy(out) for position, (_, _, out) in cuts.items()}
        return [
            given[position] if position not in positions[:i] else given[position].clone()
            for i, position in enumerate(positions)
        ]

    def weighted_sum(
        self, key: Key, weights: Sequence[float] | Tensor, *, verify: bool | None = None
    ) -> Tensor:
        """Return the weighted sum over the layers of one utterance.

        The sum is float32, in the order of `layers`, and bit for bit equal to
        `w[0] * x[0].float() + w[1] * x[1].float() + ...`; of an int8 store the layers `x` are
        decoded to float32, which `read` would round to float16. Layers of weight zero are not read.

        Args:
            key: Its id or position.
            weights: One number per layer of the store; they are not normalised.
            verify: As for `read`, of the layers that are read.

        Returns:
            float32 [n_frames, dim].
        """
        numbers = torch.as_tensor(weights, dtype=torch.float32).tolist()
        if len(numbers) != len(self.layers):
            raise StoreError(
                f"{len(numbers)} weights for the {len(self.layers)} layers {list(self.layers)}"
            )
        position = self.position(key)
        n_frames = self._catalogue.length(position)
        total = torch.zeros((n_frames, self.feature_dim), dtype=torch.float32)
        shards, codec = self._shards, self.codec
        stored = np.empty((min(n_frames, _SUM_BLOCK), self.feature_dim), codec.dtype)
        scaled = torch.empty(stored.shape, dtype=torch.float32)
        weight_of = dict(zip(self._layout.kept_axes, numbers, strict=True))
        axes = [axis for axis, weight in weight_of.items() if weight != 0.0]
        spans = self._catalogue.spans(position, 0, n_frames)
        for slot, first, last, _ in spans:
            for axis in axes:
                shards.prefetch(axis, slot, first, last)
        checks = {}
        if self._verifies(verify):
            checks = {
                axis: LayerCheck(shards, self._catalogue, self._checksums, position, axis)
                for axis in axes
            }
        start = 0
        for slot, first, last, place in spans:
            scales = {axis: shards.scales(axis, slot, place) for axis in axes}
            for at in range(first, last, _SUM_BLOCK):
                n = min(_SUM_BLOCK, last - at)
                for axis in axes:
                    shards.read_into(axis, slot, at, [stored[:n]])
                    if checks:
                        checks[axis].add(stored[:n])
                    decode_into(codec, stored[:n], scaled[:n], scales[axis])
                    total[start : start + n].add_(scaled[:n].mul_(weight_of[axis]))
                start += n
        return total

    def pooled(
        self,
        layers: Sequence[int | str] | None = None,
        *,
        statistic: str = MEAN,
        verify: bool | None = None,
    ) -> Tensor:
        """Return a statistic over the frames of every utterance.

        The checksum of each file of statistics is always compared. That a file is the right one is
        known only from the frames, so `verify` reads all frames of these layers. A statistic that
        the store does not keep is computed from the frames, which takes as long as reading them.

        Args:
            layers: As for `read`.
            statistic: "mean", "std" (of the population), "max", "first" or "last" (frame).
            verify: As for `read`.

        Returns:
            float32 [n_utterances, n_layers, dim], in the order of `ids`.

        Raises:
            StoreError: The statistic is unknown, or neither it nor the frames are kept.
            DamagedError: A file of statistics is missing or damaged.
        """
        axes = self.axes(layers)
        out = np.empty((len(self), len(axes), self.feature_dim), np.float32)
        self._read_pooled(axes, statistic, out, verify)
        return torch.from_numpy(out)

    @cached_property
    def final_norm(self) -> FinalNorm:
        """The model's final LayerNorm.

        Raises:
            StoreError: The store has none.
        """
        return FinalNorm.of(self.attributes)

    def read_into(
        self,
        cuts: Sequence[Cut],
        axes: Sequence[int],
        norm: FinalNorm | None = None,
        *,
        verify: bool | None = None,
    ) -> None:
        """Read frames of several utterances into given arrays.

        Args:
            cuts: Position, first frame and destination of each, [n_layers, n_frames, dim] of the
                codec's `value_dtype`.
            axes: Position on the layer axis of each layer of the destinations.
            norm: Applied to its layer, if that is read.
            verify: As for `read`.

        Raises:
            DamagedError: A shard is missing or damaged.
        """
        gather([(self._shards, cuts)], self._catalogue, axes)
        self._finish(cuts, axes, norm, verify)

    def _times_of(self, span: Any, key: Key, others: Sequence[Any]) -> tuple[float, float]:
        """Return start and stop of a span of an utterance, in seconds."""
        if any(value is not None for value in others):
            raise ConfigError("give span, or start and stop, or start_s and stop_s, not several")
        owner = getattr(span, "id", None)
        if owner is not None and self.position(owner) != self.position(key):
            raise ConfigError(f"span is of utterance {owner!r}, not of {key!r}")
        return span_times(span)

    def _frames_to_join(self, rate_hz: float, reduction: str) -> int:
        check_reduction(reduction)
        return frames_to_join(self.frame_rate_hz, rate_hz)

    def _read_mapped(
        self,
        position: int,
        axes: Sequence[int],
        start: int | None,
        stop: int | None,
        verify: bool | None,
    ) -> Tensor | None:
        """Read in the shortest way, which most reads can take; return None if this one cannot."""
        if len(axes) != 1 or (self._verify if verify is None else verify):
            return None
        out = read_mapped(self._shards, self._catalogue, position, axes[0], start, stop)
        return None if out is None else torch.from_numpy(out)

    def _fill(self, cut: Cut, axes: Sequence[int], verify: bool | None) -> None:
        """Read the destination of one cut, and verify it."""
        read_cut(self._shards, self._catalogue, cut, axes)
        if self._verifies(verify):
            check_cuts(self._shards, self._catalogue, self._checksums, [cut], axes)

    def shards_of(self, slot: int) -> ShardReader:
        """Return what reads the shards of a slot, numbered as in `piece_places`."""
        return self._shards

    @property
    def reads_wait(self) -> bool:
        """Whether reads of a store wait for a server."""
        return any(backend.reads_wait for backend in self.backends)

    def holding(self, held: HeldRanges) -> Self:
        """Return the same utterances, read from ranges in memory where they are there.

        Args:
            held: By axis and slot, numbered as in `piece_places`.
        """
        view = self._copy()
        view._shards = self._shards.holding(held)
        return view

    @property
    def verifies(self) -> bool:
        """Whether reads are compared with their checksums, unless they say otherwise."""
        return self._verify

    def _finish(
        self,
        cuts: Sequence[Cut],
        axes: Sequence[int],
        norm: FinalNorm | None,
        verify: bool | None,
    ) -> None:
        """Verify and normalise what was read."""
        if self._verifies(verify):
            check_cuts(self._shards, self._catalogue, self._checksums, cuts, axes)
        if norm is not None:
            layers = self.numbers_at(axes)
            for _, _, where in cuts:
                norm.apply(torch.from_numpy(where), layers)

    def _read_pooled(
        self, axes: Sequence[int], statistic: str, out: FloatArray, verify: bool | None
    ) -> None:
        """Read a statistic into an array; see `pooled`."""
        if self._verifies(verify):
            check_pooled(self._shards, self._catalogue, self._checksums, axes)
        read_pooled(self._shards, self._catalogue, axes, statistic, out)

    def _verifies(self, verify: bool | None) -> bool:
        return self._verify if verify is None else verify
