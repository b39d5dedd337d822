"""Batches of frames, and the normalisation of their features."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from pipeline.errors import ConfigError
from pipeline.feed.batch_reader import BufferPool
from pipeline.feed.dataset import FeatureDataset
from pipeline.store.format.codecs import PORTABLE_DTYPES
from pipeline.store.frame_statistics import FrameStatistics

LAYER_NORM, STANDARDIZE = "layer_norm", "standardize"
_EPSILON = 1e-5  # of the layer norm, as in torch


@dataclass(frozen=True)
class FrameBatch:
    """Frames of any utterances.

    The features of a loader that does not convert them are a view of a large window, whose memory
    stays in use until all its batches are dropped: copy what you keep (`features.clone()`).

    Attributes:
        features: [n, n_layers, dim].
        utterances: Position in the dataset of the utterance of each frame, int64 [n].
        frames: Number of each frame within its utterance, from 0, int64 [n].
        dataset: The utterances.
    """

    features: Tensor
    utterances: Tensor
    frames: Tensor
    dataset: FeatureDataset = field(repr=False)

    def __len__(self) -> int:
        return len(self.features)

    @property
    def ids(self) -> list[str]:
        """Id of the utterance of each frame, [n]."""
        return self.dataset.describe(self.utterances.cpu().numpy())[0]

    def column(self, name: str) -> Tensor | list[Any]:
        """Return a column of the dataset for each frame.

        Args:
            name: One of the dataset's `columns` or `classes`.

        Returns:
            Tensor [n] of numbers or class numbers, else a list.

        Raises:
            StoreError: The dataset has no such column.
        """
        values = self.dataset.column(name)
        if isinstance(values, Tensor):
            return values.to(self.utterances.device)[self.utterances]
        return [values[i] for i in self.utterances.tolist()]

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Self:
        """Return the batch with its tensors on a device."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self, device: torch.device | str | None = None) -> Self:
        """Return the batch in pinned memory."""
        return self._map(lambda tensor: tensor.pin_memory())

    def _map(self, move: Callable[[Tensor], Tensor]) -> Self:
        return replace(
            self,
            features=move(self.features),
            utterances=move(self.utterances),
            frames=move(self.frames),
        )


class Conversion:
    """Normalisation and dtype of the features of batches. Computed in float32."""

    def __init__(
        self,
        stored: np.dtype[Any],
        dtype: str | torch.dtype | None,
        normalize: str | None,
        statistics: FrameStatistics | None,
    ) -> None:
        """Prepare it.

        Args:
            stored: Type of the features as they are read.
            dtype: Type of the features of batches; None is `stored`.
            normalize: LAYER_NORM, STANDARDIZE, or None.
            statistics: Of the layers of the batches, for STANDARDIZE.

        Raises:
            ConfigError: There is no such dtype.
        """
        name = str(stored) if dtype is None else str(dtype).removeprefix("torch.")
        if name not in PORTABLE_DTYPES:
            raise ConfigError(f"dtype is {dtype!r}; expected one of {', '.join(PORTABLE_DTYPES)}")
        self._normalize = normalize
        self._dtype = np.dtype(name)
        self.is_needed = normalize is not None or self._dtype != stored
        self._pool = BufferPool(self._dtype)
        if statistics is not None:
            self._mean = torch.from_numpy(statistics.mean).float()
            self._inverse = torch.from_numpy(statistics.inverse_std()).float()

    @property
    def itemsize(self) -> int:
        """Bytes of a value that this makes; 0 if features stay as they are."""
        return self._dtype.itemsize if self.is_needed else 0

    def apply(self, features: Tensor) -> Tensor:
        """Return converted features, of the shape of `features`: [n, n_layers, dim]."""
        if not self.is_needed:
            return features
        out = torch.from_numpy(self._pool.take(features.shape))
        if self._normalize == LAYER_NORM:
            dim = features.shape[2:]
            out.copy_(torch.nn.functional.layer_norm(features.float(), dim, eps=_EPSILON))
        elif self._normalize == STANDARDIZE:
            out.copy_(features.float().sub_(self._mean).mul_(self._inverse))
        else:
            out.copy_(features)
        return out
