"""Samples that carry no sound: digital silence, and channels that cancel in their mean."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pipeline.store.format.records import FLAG_CANCELLED, FLAG_SILENT

if TYPE_CHECKING:
    from numpy.typing import NDArray

_STEP = 7  # every seventh sample is enough for an energy
_CANCELLED_RATIO = 1e-2  # of the energy of channels that are not related: 20 dB below


class Levels:
    """Energy of the channels and of their mean, over the blocks of a segment."""

    def __init__(self) -> None:
        self._is_zero = True
        self._channels = self._mono = 0.0
        self._n_channels = 1

    def add(self, samples: NDArray[np.float32], mono: NDArray[np.float32]) -> None:
        """Add a block.

        Args:
            samples: `[n, n_channels]`.
            mono: `[n]`, their mean, or one of them.
        """
        if self._is_zero:
            self._is_zero = not (mono[:64].any() or mono.any())
        self._n_channels = samples.shape[1]
        if self._n_channels > 1:
            some, mean = samples[::_STEP], mono[::_STEP]
            with np.errstate(over="ignore", invalid="ignore"):
                self._channels += float(np.einsum("ij,ij->", some, some))
                self._mono += float(np.einsum("i,i->", mean, mean))

    def flags(self, is_mean: bool) -> tuple[str, ...]:
        """Return the flags of the blocks.

        Args:
            is_mean: Whether `mono` was the mean of several channels.
        """
        # The energy of the mean of unrelated channels is 1 / n of the mean of their energies.
        unrelated = self._channels / self._n_channels**2
        if is_mean and 0 < unrelated < np.inf and self._mono < _CANCELLED_RATIO * unrelated:
            return (FLAG_CANCELLED,)
        return (FLAG_SILENT,) if self._is_zero else ()
