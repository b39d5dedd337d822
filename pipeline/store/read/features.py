"""The public reader: features of any layer of any utterance, or a weighted sum of layers.

A trainer imports this module. It needs torch, zarr and pyarrow, but neither ray, datasets nor
torchaudio.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import overload

import numpy as np
import torch
from torch import Tensor

from pipeline.errors import ConfigError, StoreError
from pipeline.store.backend.base import Location
from pipeline.store.format.codecs import FloatArray
from pipeline.store.format.pooling import MEAN
from pipeline.store.read.final_norm import FinalNorm
from pipeline.store.read.merged import Cut, gather, read_cut
from pipeline.store.read.pooled import read_pooled
from pipeline.store.read.several import JoinedView, locations_of
from pipeline.store.read.utterances import Key, StoreView
from pipeline.store.read.verified import LayerCheck, check_cuts, check_pooled
from pipeline.store.tensors import decode_into

_SUM_BLOCK = 512  # frames of a weighted sum, so that its buffers stay in the CPU's cache


def open_store(
    uri: Location | Iterable[Location],
    *,
    prefix: bool = False,
    verify: bool = False,
    labels: int | None = None,
) -> FeatureStore:
    """Open a store, or several as one, for reading.

    Several stores must be of one encoder, with the same layers, and return values of one type:
    int8 beside float16, but not float32 beside float16. Their utterances come one store after the
    other. A column that a store lacks has no values there, and classes are numbered over all.

    Args:
        uri: Its path, or a `Backend`; or the paths of several stores.
        prefix: Whether ids become `<folder of the store>/<id>`, for ids that several stores have.
        verify: Whether every read verifies what it returns; see `FeatureStore.read`. Datasets and
            loaders of the store do so, too.
        labels: Generation of labels to show; None is the newest. After the dataset was changed, 0
            has the utterances and columns from before the first change. Several stores have None.

    Raises:
        StoreNotFoundError: There is no store.
        StoreError: It has no such generation; or several stores have the same id, or a column of
            different types.
        IdentityError: Several stores have features of different kinds; the message lists every
            difference.
        ConfigError: No store is given, one is given twice, or `labels` is given for several.
        DamagedError: The attributes, the index or the labels of a store are damaged.
        TypeError: `labels` is no number.

    Example:
        >>> store = open_store("features/hubert")            # doctest: +SKIP
        >>> store.read("clip-1", layers=[6]).shape           # doctest: +SKIP
        torch.Size([1, 212, 768])
        >>> open_store(["clean-100", "clean-360"]).select(speaker="1034")  # doctest: +SKIP
    """
    if isinstance(labels, bool) or not (labels is None or hasattr(labels, "__index__")):
        raise TypeError(
            f"labels is {labels!r}; expected the number of a generation of labels, or None for the "
            "newest. Columns are in `store.metadata`"
        )
    locations = locations_of(uri)
    if not locations:
        raise ConfigError("no store is given; expected its path, or those of several")
    if len(locations) > 1 and labels is not None:
        raise ConfigError(
            f"labels={labels} is a generation of one store; several are opened with the newest"
        )
    stores = [FeatureStore(location, verify, labels) for location in locations]
    return JoinedStore(stores, prefix) if prefix or len(stores) > 1 else stores[0]


class FeatureStore(StoreView):
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
        layers: Sequence[int] | None = None,
        start: int | None = None,
        stop: int | None = None,
        *,
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
            layers: Layers to read, in this order; None reads all.
            start: First frame, as in a slice.
            stop: One past the last frame, as in a slice.
            final_norm: Apply the model's final LayerNorm to its last layer, as s3prl does and
                Hugging Face did before 5.16. Other layers do not change.
            verify: Whether to compare what is read with its checksums, before it is returned; None
                is what the store was opened with.

        Returns:
            [n_layers, n_frames, dim], float16, or float32 if the store holds float32 or bfloat16.

        Raises:
            UtteranceNotFoundError: There is no such utterance. It is also a KeyError.
            StoreError: A layer is not in the store, or the model has no final norm.
            DamagedError: A shard is missing or damaged; the message names it.
        """
        position = self.position(key)
        axes = self.axes(layers)
        norm = self.final_norm if final_norm else None
        first, last, _ = slice(start, stop).indices(self._catalogue.length(position))
        out = np.empty((len(axes), max(0, last - first), self.feature_dim), self.codec.value_dtype)
        cut = (position, first, out)
        read_cut(self._shards, self._catalogue, cut, axes)
        if self._verifies(verify):
            check_cuts(self._shards, self._catalogue, self._checksums, [cut], axes)
        features = torch.from_numpy(out)
        return features if norm is None else norm.apply(features, [self.layers[i] for i in axes])

    def read_many(
        self,
        keys: Sequence[Key] | slice,
        layers: Sequence[int] | None = None,
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
        axes = [axis for axis, weight in enumerate(numbers) if weight != 0.0]
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
                    total[start : start + n].add_(scaled[:n].mul_(numbers[axis]))
                start += n
        return total

    def pooled(
        self,
        layers: Sequence[int] | None = None,
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
            layers = [self.layers[axis] for axis in axes]
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


class JoinedStore(JoinedView, FeatureStore):
    """The features of several stores of one encoder, read as one store; see `open_store`.

    `backends` are the stores, and `store_numbers` has the one of each utterance. The reads of a
    batch are requested from all stores before the first one is waited for.
    """

    _parts: tuple[FeatureStore, ...]

    def read(
        self,
        key: Key,
        layers: Sequence[int] | None = None,
        start: int | None = None,
        stop: int | None = None,
        *,
        final_norm: bool = False,
        verify: bool | None = None,
    ) -> Tensor:
        """Read the features of one utterance; see `FeatureStore.read`."""
        position = self.position(key)
        part = self._parts[self._catalogue.store_of(position)]
        return part.read(position, layers, start, stop, final_norm=final_norm, verify=verify)

    def weighted_sum(
        self, key: Key, weights: Sequence[float] | Tensor, *, verify: bool | None = None
    ) -> Tensor:
        """Return the weighted sum over the layers of one utterance; see `FeatureStore`."""
        position = self.position(key)
        part = self._parts[self._catalogue.store_of(position)]
        return part.weighted_sum(position, weights, verify=verify)

    def read_into(
        self,
        cuts: Sequence[Cut],
        axes: Sequence[int],
        norm: FinalNorm | None = None,
        *,
        verify: bool | None = None,
    ) -> None:
        """Read frames of several utterances into given arrays; see `FeatureStore.read_into`."""
        shares: dict[int, list[Cut]] = {}
        for cut in cuts:
            shares.setdefault(self._catalogue.store_of(cut[0]), []).append(cut)
        found = [(self._parts[number], shares[number]) for number in sorted(shares)]
        gather([(part._shards, share) for part, share in found], self._catalogue, axes)
        for part, share in found:
            part._finish(share, axes, norm, verify)

    def _read_pooled(
        self, axes: Sequence[int], statistic: str, out: FloatArray, verify: bool | None
    ) -> None:
        for part in self._parts:
            part._read_pooled(axes, statistic, out, verify)
