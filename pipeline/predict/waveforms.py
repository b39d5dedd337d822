"""Waveforms of a program, as an extraction has them: float32, mono, at the encoder's rate."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from pipeline.audio.resample import check_resampling, resample
from pipeline.errors import AudioError, ConfigError, EncoderError

_SCALES = {"float32": None, "float64": None, "int16": 1 / (1 << 15), "int32": 1 / (1 << 31)}
"""What samples are multiplied by, of each type: as libsndfile does when it reads them as floats."""


def check_rate(sample_rate: Any) -> None:
    """Check the rate of waveforms.

    Raises:
        ConfigError: It is neither None nor a whole number above 0.
    """
    is_whole = isinstance(sample_rate, int | np.integer) and not isinstance(sample_rate, bool)
    if sample_rate is not None and not (is_whole and sample_rate > 0):
        raise ConfigError(
            f"sample_rate is {sample_rate!r:.40}; expected the samples per second of the "
            "waveforms, a whole number, or None for the encoder's rate"
        )


def as_waveform(samples: Any, sample_rate: int | None, rate_hz: int, number: int = 0) -> Tensor:
    """Return a waveform as the encoder takes it: float32 [n_samples] at its rate, on the CPU.

    Args:
        samples: float32 or float64, or int16 or int32, which are scaled to [-1, 1) as an
            extraction does it: a tensor or an array [n].
        sample_rate: Its samples per second; None is the encoder's rate. Other rates are resampled
            as an extraction does it.
        rate_hz: The encoder's rate.
        number: Its number in the list of waveforms, for messages.

    Raises:
        EncoderError: It is of another type or shape, or it has no samples.
        AudioError: A sample is not finite, or the rate is not one of audio.
    """
    name = f"waveform {number}"
    if isinstance(samples, tuple) and len(samples) == 2:
        raise EncoderError(
            f"{name} is a pair, as of samples and their rate; give the samples alone, and the rate "
            "as sample_rate=RATE"
        )
    if not isinstance(samples, Tensor | np.ndarray):
        raise EncoderError(
            f"{name} is a {type(samples).__name__}; expected a tensor or an array [n_samples]"
        )
    if samples.ndim != 1 or not len(samples):
        raise EncoderError(
            f"{name} has the shape {list(samples.shape)}; expected [n_samples], of one channel and "
            "with samples. Average the channels, or take one"
        )
    dtype = str(samples.dtype).removeprefix("torch.")
    if dtype not in _SCALES:
        raise EncoderError(
            f"{name} is {dtype}; expected float32 or float64, or int16 or int32, which are scaled "
            "to [-1, 1)"
        )
    values: NDArray[Any] = (
        samples.detach().cpu().numpy() if isinstance(samples, Tensor) else samples
    )
    scale = _SCALES[dtype]
    if scale is not None:
        values = values.astype(np.float64) * scale
    values = np.require(values, np.float32, ["C", "W"])
    if not np.isfinite(values).all():
        raise AudioError(f"{name} has samples that are not finite (NaN or infinity)")
    source_rate_hz = rate_hz if sample_rate is None else int(sample_rate)
    try:
        check_resampling(len(values), source_rate_hz, rate_hz)
    except AudioError as error:
        raise AudioError(f"{name}: {error}") from error
    return resample(values, source_rate_hz, rate_hz)
