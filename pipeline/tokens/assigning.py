"""The tokens of units: their frames are read, verified, and assigned to the nearest centroids.

The tokens of a piece of an utterance depend on nothing but its frames and the codebook. So any
process makes the same chunk, in any order and with any number of threads.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pipeline.errors import DamagedError
from pipeline.store import index as index_files
from pipeline.store.backend.base import Backend
from pipeline.store.format.codebook import Codebook
from pipeline.store.format.codecs import checksum
from pipeline.store.format.layout import Layout
from pipeline.store.format.records import OK
from pipeline.store.format.tokens import NO_TOKEN, chunk_key
from pipeline.store.read.shards import ShardReader
from pipeline.store.tensors import decode_into
from pipeline.store.tokens.stored import counts_of, put_chunk
from pipeline.threads import in_order
from pipeline.tokens.frames import weighted
from pipeline.tokens.kmeans import BLOCK_FRAMES
from pipeline.tokens.nearest import NonFiniteFrameError, Quantizer

Row = dict[str, Any]
_COLUMNS = ["unit", "slot", "status"]


@dataclass(frozen=True)
class AssignedUnit:
    """What was assigned in a unit.

    Attributes:
        n_frames: Frames with tokens.
        inertia: Sum of their squared distances from their centroids.
        counts: Frames of each code, int64 [k].
    """

    n_frames: int
    inertia: float
    counts: npt.NDArray[np.int64]


def slots_of_units(backend: Backend) -> dict[int, int]:
    """Return the slot of each committed unit that has frames, by unit, ascending."""
    index = index_files.of_status(index_files.read_index(backend, columns=_COLUMNS), OK)
    pairs = set(zip(index["unit"].to_pylist(), index["slot"].to_pylist(), strict=True))
    return dict(sorted(pairs))


class UnitTokenizer:
    """Makes the tokens of units of one store.

    Args:
        backend: The store.
        layout: Its layout.
        axes: Positions on the layer axis of the layers that are read.
        weights: Weight of each; None for a single layer.
        codebook: The centroids.
        device: Where to compute; None is the CPU.
    """

    def __init__(
        self,
        backend: Backend,
        layout: Layout,
        axes: Sequence[int],
        weights: Sequence[float] | None,
        codebook: Codebook,
        device: torch.device | None = None,
    ) -> None:
        self._backend, self._layout = backend, layout
        self._axes, self._weights = axes, weights
        self._k = codebook.k
        self._quantizer = Quantizer(torch.from_numpy(codebook.centroids), device)
        self._shards = ShardReader(backend, layout)
        self._shards.expect_whole()

    def write(self, name: str, unit: int, pool: ThreadPoolExecutor) -> AssignedUnit | None:
        """Make the tokens of a committed unit and write them.

        Args:
            name: Name of the tokens.
            unit: The unit.
            pool: Threads that compute.

        Returns:
            What was assigned. None if the unit has left its slot meanwhile, because of `drop` or
            `verify --repair`: then no tokens stay there.

        Raises:
            DamagedError: Frames differ from their checksums, are missing or not finite.
            StoreError: The tokens cannot be written.
        """
        rows = self._rows(unit)
        slot = int(rows[0]["slot"])
        tokens = np.full(self._layout.frames_per_unit, NO_TOKEN, np.uint16)
        inertia = 0.0
        calls = [partial(self._assign, slot, group) for group in _groups(rows)]
        for found in in_order(pool, calls, (os.cpu_count() or 1) + 1):
            for start, codes, total in found:
                tokens[start : start + len(codes)] = codes
                inertia += total
        put_chunk(self._backend, name, slot, tokens)
        if self._slot_now(unit) != slot:
            self._backend.delete(chunk_key(name, slot))
            return None
        n_frames = sum(row["n_frames"] for row in rows)
        return AssignedUnit(n_frames, inertia, counts_of(tokens, self._k))

    def _rows(self, unit: int) -> list[Row]:
        names = ["id", "position", "status", "slot", "frame_start", "n_frames", "crc32c"]
        table = index_files.of_status(index_files.read_unit(self._backend, unit).select(names), OK)
        found: list[Row] = table.to_pylist()
        return found

    def _slot_now(self, unit: int) -> int | None:
        try:
            rows = self._rows(unit)
        except DamagedError:  # revoked
            return None
        return int(rows[0]["slot"]) if rows else None

    def _assign(
        self, slot: int, rows: Sequence[Row]
    ) -> list[tuple[int, npt.NDArray[np.int64], float]]:
        """Return the first frame within the slot, codes and inertia of each piece."""
        first = self._layout.slot_start(slot)
        found = []
        for row in rows:
            start = row["frame_start"] - first
            frames = self._read(slot, start, row)
            try:
                codes, total = self._quantizer.assign(frames)
            except NonFiniteFrameError as error:
                raise DamagedError(
                    f"frame {error.frame} of utterance {row['id']!r} of store {self._backend} "
                    "is not finite, so it has no nearest centroid"
                ) from error
            found.append((start, codes, total))
        return found

    def _read(self, slot: int, start: int, row: Row) -> Tensor:
        """Return the frames of a piece, as `FeatureStore.read` does; compare their checksums."""
        codec, stop = self._layout.codec, start + row["n_frames"]
        dtype = torch.from_numpy(np.empty(0, codec.value_dtype)).dtype
        out = torch.empty((len(self._axes), row["n_frames"], self._layout.dim), dtype=dtype)
        for i, axis in enumerate(self._axes):
            stored = self._shards.read(axis, slot, start, stop)
            scales = self._shards.scales(axis, slot, row["position"])
            if checksum(stored, scales) != row["crc32c"][axis]:
                raise DamagedError(
                    f"layer {self._layout.layers[axis]} of utterance {row['id']!r} has a wrong "
                    f"checksum in {self._shards.locate_utterance(axis, slot)}; run `strata verify`"
                )
            if self._shards.is_direct:
                out[i] = torch.from_numpy(stored)
            else:
                decode_into(codec, stored, out[i], scales)
        return weighted(out, self._weights)


def _groups(rows: Iterable[Row]) -> Iterator[list[Row]]:
    """Divide the pieces of a unit into groups of about a block."""
    group: list[Row] = []
    n_frames = 0
    for row in rows:
        group.append(row)
        n_frames += row["n_frames"]
        if n_frames >= BLOCK_FRAMES:
            yield group
            group, n_frames = [], 0
    if group:
        yield group
