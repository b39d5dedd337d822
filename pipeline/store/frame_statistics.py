"""Statistics over all frames of a store, layer by layer, which the store may keep.

`strata layers STORE frame_statistics=true` writes them, as `frame_statistics.parquet`. They are
bound to the utterances that they were computed of: when the store has others, readers compute them
again.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.errors import DamagedError, UnreachableError
from pipeline.store.backend.base import Backend
from pipeline.store.format.layout import FRAME_STATISTICS
from pipeline.store.read.utterances import StoreView
from pipeline.store.serialization import parquet_bytes, read_parquet

Float64 = npt.NDArray[np.float64]
_METADATA_KEY = b"strata"


@dataclass(frozen=True)
class FrameStatistics:
    """Mean and spread of every feature over frames.

    Attributes:
        layers: Layer numbers, [n_layers].
        n_frames: Frames that they were computed of.
        mean: Mean of each feature, float64 [n_layers, dim].
        std: Standard deviation of each feature (of the population), float64 [n_layers, dim].
        norm: Mean L2 norm of a frame, float64 [n_layers].
    """

    layers: tuple[int, ...]
    n_frames: int
    mean: Float64
    std: Float64
    norm: Float64

    def inverse_std(self) -> Float64:
        """Return 1 / std, and 1 for constant features, float64 [n_layers, dim]."""
        return 1 / np.where(self.std > 0, self.std, 1)

    def of_layers(self, layers: Sequence[int]) -> FrameStatistics:
        """Return the statistics of some layers, in that order."""
        rows = [self.layers.index(layer) for layer in layers]
        parts = (self.mean[rows], self.std[rows], self.norm[rows])
        return FrameStatistics(tuple(layers), self.n_frames, *parts)

    def joined(self, other: FrameStatistics) -> FrameStatistics:
        """Return the statistics of the frames of both (Chan, Golub and LeVeque, 1979)."""
        n = self.n_frames + other.n_frames
        share = other.n_frames / n
        delta = other.mean - self.mean
        variance = self.std**2 * (1 - share) + other.std**2 * share
        return FrameStatistics(
            self.layers,
            n,
            self.mean + delta * share,
            np.sqrt(variance + delta**2 * share * (1 - share)),
            self.norm * (1 - share) + other.norm * share,
        )


def read_frame_statistics(store: StoreView) -> FrameStatistics | None:
    """Read the statistics that a store keeps.

    Args:
        store: One store, all utterances of it.

    Returns:
        None if it keeps none, or those of other utterances.

    Raises:
        DamagedError: They are damaged.
    """
    table = _read(store.backend)
    if table is None:
        return None
    facts = json.loads(table.schema.metadata[_METADATA_KEY])
    if facts["utterances"] != _utterances(store):
        return None
    mean, std = (
        np.stack([np.asarray(row, np.float64) for row in table[name].to_pylist()])
        for name in ("mean", "std")
    )
    layers = tuple(table["layer"].to_pylist())
    return FrameStatistics(layers, facts["n_frames"], mean, std, table["norm"].to_numpy())


def keep_frame_statistics(store: StoreView, statistics: FrameStatistics) -> None:
    """Write the statistics of all utterances of a store into it.

    Raises:
        StoreError: The store cannot be written.
    """
    table = pa.table(
        {
            "layer": pa.array(statistics.layers, pa.int64()),
            "norm": pa.array(statistics.norm, pa.float64()),
            "mean": pa.array(list(statistics.mean), pa.list_(pa.float64())),
            "std": pa.array(list(statistics.std), pa.list_(pa.float64())),
        }
    )
    facts = {"n_frames": statistics.n_frames, "utterances": _utterances(store)}
    content = parquet_bytes(table, {_METADATA_KEY: json.dumps(facts).encode()})
    store.backend.put(FRAME_STATISTICS, [content])


def frame_statistics_problem(backend: Backend) -> str | None:
    """Return what is wrong with the statistics that a store keeps; None if nothing is."""
    try:
        _read(backend)
    except DamagedError as error:
        return str(error)
    return None


def _read(backend: Backend) -> pa.Table | None:
    try:
        return read_parquet(backend, FRAME_STATISTICS)
    except FileNotFoundError:
        return None
    except UnreachableError:
        raise
    except OSError as error:
        raise DamagedError(
            f"{backend.locate(FRAME_STATISTICS)} cannot be read ({error})"
        ) from error


def _utterances(store: StoreView) -> str:
    """Return a text that is equal for the same utterances of the same store."""
    checksum = 0
    for array in store.piece_places():
        checksum = zlib.crc32(np.ascontiguousarray(array).data, checksum)
    return f"{len(store)} utterances, {checksum:08x}"
