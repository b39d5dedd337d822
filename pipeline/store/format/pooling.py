"""Pooled means, as they are stored."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from pipeline.store.format.codecs import Stored


def pool(stored: Stored) -> npt.NDArray[np.float32]:
    """Return means over frames, [n_layers, n_frames, dim] → [n_layers, dim]; sums are float64."""
    mean = stored.mean(axis=1, dtype=np.float64)
    return np.asarray(mean, np.float32)
