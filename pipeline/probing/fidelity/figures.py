"""Arithmetic of fidelity: signal-to-noise ratios and cosines of stored against reference frames.

The signal of a feature is what varies over the frames of an utterance: the sum of its squared
deviations from its mean there. A large constant part, which trained encoders have in some features,
tells frames apart no better, and would hide the loss of the rest.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]
Frames = npt.NDArray[np.float32]

WORST_FEATURES = 0.001
"""Share of the features below `LayerFigures.feature_worst_db`."""
WORST_FRAMES = 0.01
"""Share of the frames below `LayerFigures.cosine_worst`."""


@dataclass(frozen=True)
class LayerFigures:
    """What a layer loses. A ratio is in dB; None stands for no loss at all.

    A feature here is one of one utterance: there are `n_utterances * dim`.

    Attributes:
        layer: Number of the layer.
        snr_db: Signal-to-noise ratio over all features, of the median utterance.
        snr_lowest_db: That of the lowest utterance.
        feature_median_db: Ratio of the median feature.
        feature_worst_db: The lowest thousandth of the features is below.
        cosine_mean: Cosine similarity of stored and reference frames, mean over frames.
        cosine_worst: The lowest percentile of the frames is below.
        codec_snr_db: As `snr_db`, of the reference in the store's dtype: the loss of the dtype
            without that of the precision. None also if the reference has the store's precision.
    """

    layer: int
    snr_db: float | None
    snr_lowest_db: float | None
    feature_median_db: float | None
    feature_worst_db: float | None
    cosine_mean: float
    cosine_worst: float
    codec_snr_db: float | None = None


class LayerLoss:
    """Collects what one layer loses, utterance by utterance."""

    def __init__(self) -> None:
        self._utterances: list[float] = []
        self._features: list[FloatArray] = []
        self._cosines: list[FloatArray] = []

    def add(self, reference: Frames, stored: Frames) -> None:
        """Add an utterance; one without variation, such as a single frame, has no ratio.

        Args:
            reference: [n_frames, dim].
            stored: The same frames, as a reader returns them.
        """
        exact, found = reference.astype(np.float64), stored.astype(np.float64)
        self._cosines.append(cosines(exact, found))
        signal = np.square(exact - exact.mean(axis=0)).sum(axis=0)
        noise = np.square(found - exact).sum(axis=0)
        varies = signal > 0
        if varies.any():
            self._utterances.append(float(decibels(signal.sum(), noise.sum())))
            self._features.append(decibels(signal[varies], noise[varies]))

    def figures(self, layer: int, codec: LayerLoss | None = None) -> LayerFigures | None:
        """Return the figures; None if no utterance varies.

        Args:
            layer: Number of the layer.
            codec: Losses of the dtype alone.
        """
        if not self._utterances:
            return None
        utterances, features = np.array(self._utterances), np.concatenate(self._features)
        angles = np.concatenate(self._cosines)
        return LayerFigures(
            layer=layer,
            snr_db=_finite(quantile(utterances, 0.5)),
            snr_lowest_db=_finite(float(utterances.min())),
            feature_median_db=_finite(quantile(features, 0.5)),
            feature_worst_db=_finite(quantile(features, WORST_FEATURES)),
            cosine_mean=float(angles.mean()),
            cosine_worst=quantile(angles, WORST_FRAMES),
            codec_snr_db=None if codec is None else codec.median_db(),
        )

    def median_db(self) -> float | None:
        """Return the ratio of the median utterance; None for no loss."""
        return _finite(quantile(np.array(self._utterances), 0.5))


def decibels(signal: FloatArray | float, noise: FloatArray | float) -> FloatArray:
    """Return `10 log10(signal / noise)`; infinite where there is no noise. Signals are positive."""
    with np.errstate(divide="ignore"):
        return np.asarray(10 * (np.log10(signal) - np.log10(noise)), np.float64)


def cosines(first: FloatArray, second: FloatArray) -> FloatArray:
    """Return the cosine similarity of each pair of frames; 1 for equal ones, zero ones included.

    Args:
        first: [n_frames, dim].
        second: [n_frames, dim].

    Returns:
        [n_frames].
    """
    norms = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
    dots = (first * second).sum(axis=1)
    found = np.divide(dots, norms, out=np.zeros_like(dots), where=norms > 0)
    found[(first == second).all(axis=1)] = 1.0
    return np.asarray(np.clip(found, -1.0, 1.0))


def quantile(values: FloatArray, share: float) -> float:
    """Return the smallest value that at least `share` of the values do not exceed.

    It is one of the values, so infinite ones do no harm.
    """
    place = max(0, math.ceil(share * len(values)) - 1)
    return float(np.partition(values, place)[place])


def _finite(value: float) -> float | None:
    return None if math.isinf(value) else value
