"""Reads of several stores as one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

from torch import Tensor

from pipeline.store.backend.held_reader import HeldRanges
from pipeline.store.format.codecs import FloatArray
from pipeline.store.read.catalogue import store_of_slot
from pipeline.store.read.features import FeatureStore
from pipeline.store.read.final_norm import FinalNorm
from pipeline.store.read.joined.view import JoinedView
from pipeline.store.read.merged import Cut, gather
from pipeline.store.read.shards import ShardReader
from pipeline.store.read.utterances import Key


class JoinedStore(JoinedView, FeatureStore):
    """The features of several stores of one encoder, read as one store; see `open_store`.

    `backends` are the stores, and `store_numbers` has the one of each utterance. The reads of a
    batch are requested from all stores before the first one is waited for.
    """

    _parts: tuple[FeatureStore, ...]

    def weighted_sum(
        self, key: Key, weights: Sequence[float] | Tensor, *, verify: bool | None = None
    ) -> Tensor:
        """Return the weighted sum over the layers of one utterance; see `FeatureStore`."""
        position = self.position(key)
        return self._part_of(position).weighted_sum(position, weights, verify=verify)

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

    def shards_of(self, slot: int) -> ShardReader:
        """Return what reads the shards of a slot; see `FeatureStore.shards_of`."""
        return self._parts[store_of_slot(slot)]._shards

    def holding(self, held: HeldRanges) -> Self:
        """Return the same utterances, of which some ranges are in memory."""
        view = self._copy()
        view._parts = tuple(part.holding(held) for part in self._parts)
        return view

    def _read_mapped(
        self,
        position: int,
        axes: Sequence[int],
        start: int | None,
        stop: int | None,
        verify: bool | None,
    ) -> Tensor | None:
        return self._part_of(position)._read_mapped(position, axes, start, stop, verify)

    def _fill(self, cut: Cut, axes: Sequence[int], verify: bool | None) -> None:
        self._part_of(cut[0])._fill(cut, axes, verify)

    def _part_of(self, position: int) -> FeatureStore:
        """Return the store of an utterance."""
        return self._parts[self._catalogue.store_of(position)]

    def _read_pooled(
        self, axes: Sequence[int], statistic: str, out: FloatArray, verify: bool | None
    ) -> None:
        for part in self._parts:
            part._read_pooled(axes, statistic, out, verify)
