"""Pooled statistics: what is stored of the frames of an utterance as a whole."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from pipeline.store.format.codecs import FLOAT16, Codec, FloatArray, Stored

MEAN, STD = "mean", "std"
STATISTICS = (MEAN, STD, "max", "first", "last")
"""Mean and standard deviation (of the population), largest value, and the first and last frame."""
_RELATIVE, _SMALL = 1e-5, 1e-6


def pool(
    codec: Codec, stored: Stored, scales: FloatArray, statistics: Sequence[str] = (MEAN,)
) -> FloatArray:
    """Return statistics over the frames of one utterance, of the values as they are stored.

    Sums are float64. Those of float16 values, and of the whole numbers of int8, are exact.

    Args:
        codec: Format of the stored values.
        stored: [n_layers, n_frames, dim].
        scales: [n_layers, n_scales, dim].
        statistics: Of `STATISTICS`.

    Returns:
        float32 [n_statistics, n_layers, dim].
    """
    if codec.n_scales:
        found = [_statistic(stored, name, np.int64) for name in statistics]
        offset, scale = scales[:, 0].astype(np.float64), scales[:, 1].astype(np.float64)
        pooled = [
            q * scale + (0.0 if name == STD else offset)
            for name, q in zip(statistics, found, strict=True)
        ]
    else:
        values = stored if stored.dtype.kind == "f" else codec.decode(stored, scales)
        pooled = [_statistic(values, name, np.float64) for name in statistics]
    return np.stack([np.asarray(values, np.float32) for values in pooled])


def _statistic(values: Stored, name: str, sums: type) -> npt.NDArray[np.float64]:
    """Return a statistic, [n_layers, n_frames, dim] → float64 [n_layers, dim]."""
    if name == "max":
        return np.asarray(values.max(axis=1), np.float64)
    if name in ("first", "last"):
        return np.asarray(values[:, 0 if name == "first" else -1], np.float64)
    n_frames = values.shape[1]
    mean = np.asarray(values.sum(axis=1, dtype=sums) / np.float64(n_frames))
    if name == MEAN:
        return mean
    assert name == STD
    total = np.zeros_like(mean)
    for layer, centre, out in zip(values, mean, total, strict=True):
        out += np.square(layer.astype(np.float64) - centre).sum(axis=0)
    return np.asarray(np.sqrt(total / n_frames))


def is_same(codec: Codec, statistic: str, found: FloatArray, expected: FloatArray) -> bool:
    """Return whether statistics agree with those of the frames.

    A device that computes them adds in another order. The mean of float16 is the same in any order;
    others agree within the rounding of float64 sums.
    """
    if statistic != STD and (codec == FLOAT16 or statistic != MEAN):
        return np.array_equal(found, expected)
    largest = float(np.abs(expected).max(initial=0.0))
    return np.allclose(found, expected, rtol=_RELATIVE, atol=_SMALL * largest)
