"""Front end and geometry of each architecture, from its configuration and feature extractor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pipeline.encoders.general import geometries
from pipeline.encoders.general.front_ends import WAVEFORM_EPS, WaveformFrontEnd
from pipeline.encoders.general.kaldi import (
    FRAME_SAMPLES,
    HOP_SAMPLES,
    SeamlessFrontEnd,
    Speech2TextFrontEnd,
)
from pipeline.encoders.general.kinds import Parts
from pipeline.encoders.general.log_mel import (
    GraniteFrontEnd,
    LasrFrontEnd,
    NemoFrontEnd,
    WhisperFrontEnd,
)
from pipeline.errors import ConfigError
from pipeline.store.format.geometry import FrameGeometry

_OMNIASR_EPS = 1e-5  # of OmniASRFeatureExtractor


def waveforms(config: Any, extractor: Any, name: str) -> Parts:
    """Return the parts of samples and convolutions."""
    return _of_waveforms(extractor, config.conv_kernel, config.conv_stride)


def omniasr(config: Any, extractor: Any, name: str) -> Parts:
    """Return the parts of OmniASR."""
    return _of_waveforms(extractor, config.conv_kernel, config.conv_stride, eps=_OMNIASR_EPS)


def squeezed_waveforms(config: Any, extractor: Any, name: str) -> Parts:
    """Return the parts of SEW and SEW-D."""
    squeeze = int(config.squeeze_factor)
    return _of_waveforms(extractor, config.conv_kernel, config.conv_stride, squeeze=squeeze)


def moonshine(config: Any, extractor: Any, name: str) -> Parts:
    """Return the parts of Moonshine."""
    return _of_waveforms(extractor, (127, 7, 3), (64, 3, 2))


def whisper(config: Any, extractor: Any, name: str) -> Parts:
    """Return the parts of Whisper and encoders of its shape."""
    front_end = WhisperFrontEnd(extractor, name)
    expected = 2 * int(config.max_source_positions) * front_end.hop_samples
    if front_end.window_samples != expected:
        raise ConfigError(
            f"the feature extractor of {name!r} has windows of {front_end.window_samples} samples; "
            f"its config.json expects {expected} "
            f"(max_source_positions={config.max_source_positions})"
        )
    _check_size(name, front_end.n_mels, int(config.num_mel_bins), "num_mel_bins")
    rate_hz = int(extractor.sampling_rate)
    return front_end, geometries.of_whisper(rate_hz, front_end.hop_samples, front_end.n_fft)


def seamless(config: Any, extractor: Any, name: str) -> Parts:
    """Return the parts of SeamlessM4T and w2v-BERT."""
    front_end = SeamlessFrontEnd(extractor)
    size = front_end.n_mels * front_end.stride
    _check_size(
        name, size, int(config.feature_projection_input_dim), "feature_projection_input_dim"
    )
    return front_end, geometries.of_stacked_frames(
        int(extractor.sampling_rate), HOP_SAMPLES, FRAME_SAMPLES, front_end.stride
    )


def parakeet(config: Any, extractor: Any, name: str) -> Parts:
    """Return the parts of Parakeet."""
    front_end = NemoFrontEnd(extractor)
    _check_size(name, front_end.n_mels, int(config.num_mel_bins), "num_mel_bins")
    return front_end, geometries.of_nemo(
        int(extractor.sampling_rate),
        front_end.hop_samples,
        front_end.win_samples,
        int(config.subsampling_conv_kernel_size),
        int(config.subsampling_factor).bit_length() - 1,
    )


def lasr(config: Any, extractor: Any, name: str) -> Parts:
    """Return the parts of LASR."""
    kernel, stride = config.subsampling_conv_kernel_size, config.subsampling_conv_stride
    hop, win = int(extractor.hop_length), int(extractor.win_length)
    mel = geometries.of_convolutions(1, (kernel, kernel), (stride, stride))
    field = (mel.receptive_field_samples - 1) * hop + win
    geometry = FrameGeometry(int(extractor.sampling_rate), mel.hop_samples * hop, field)
    front_end = LasrFrontEnd(extractor, field)
    _check_size(name, front_end.n_mels, int(config.num_mel_bins), "num_mel_bins")
    return front_end, geometry


def granite(config: Any, extractor: Any, name: str) -> Parts:
    """Return the parts of Granite Speech."""
    front_end = GraniteFrontEnd(extractor)
    _check_size(name, 2 * front_end.n_mels, int(config.input_dim), "input_dim")
    return front_end, geometries.of_centred_pairs(
        int(extractor.sampling_rate), front_end.hop_samples, front_end.win_samples
    )


def speech_to_text(config: Any, extractor: Any, name: str) -> Parts:
    """Return the parts of Speech2Text."""
    front_end = Speech2TextFrontEnd(extractor, name)
    size = int(config.input_feat_per_channel) * int(config.input_channels)
    _check_size(name, front_end.n_mels, size, "input_feat_per_channel")
    return front_end, geometries.of_padded_convolutions(
        int(extractor.sampling_rate), HOP_SAMPLES, FRAME_SAMPLES, config.conv_kernel_sizes
    )


def _of_waveforms(
    extractor: Any,
    kernels: Sequence[int],
    strides: Sequence[int],
    *,
    squeeze: int = 1,
    eps: float = WAVEFORM_EPS,
) -> Parts:
    rate_hz = int(extractor.sampling_rate)
    geometry = geometries.of_convolutions(rate_hz, kernels, strides, squeeze=squeeze)
    return WaveformFrontEnd(bool(extractor.do_normalize), geometry.n_samples(1), eps), geometry


def _check_size(name: str, found: int, expected: int, option: str) -> None:
    if found != expected:
        raise ConfigError(
            f"the feature extractor of {name!r} gives {found} values a frame; its config.json "
            f"expects {expected} ({option})"
        )
