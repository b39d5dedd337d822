"""Frame geometries of the front ends and convolutions of each architecture. Pure arithmetic.

Each is checked in `tests/encoders/test_general_geometry.py`: the number of frames of lengths around
the borders, and the samples that change a frame.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from pipeline.store.format.geometry import FrameGeometry


def of_convolutions(
    rate_hz: int, kernels: Sequence[int], strides: Sequence[int], *, squeeze: int = 1
) -> FrameGeometry:
    """Return the geometry of convolutions without padding, over samples.

    Args:
        rate_hz: Sample rate.
        kernels: Kernel of each convolution.
        strides: Stride of each.
        squeeze: Frames that are averaged to one after them (SEW).
    """
    kernels, strides = [*kernels, squeeze], [*strides, squeeze]
    hops = [math.prod(strides[:i]) for i in range(len(strides))]
    field = 1 + sum((kernel - 1) * hop for kernel, hop in zip(kernels, hops, strict=True))
    return FrameGeometry(rate_hz, math.prod(strides), field)


def of_whisper(rate_hz: int, hop: int, n_fft: int) -> FrameGeometry:
    """Return the geometry of two convolutions with kernel 3, of strides 1 and 2, over mel frames.

    Frame f sees the mel frames 2f - 2 to 2f + 2. The clip is padded to the length of the window,
    and every started frame counts.

    Args:
        rate_hz: Sample rate.
        hop: Samples between two mel frames.
        n_fft: Samples of a mel frame, which is centred.
    """
    return FrameGeometry(
        rate_hz,
        2 * hop,
        4 * hop + n_fft,
        pads_end=True,
        left_padding_samples=2 * hop + n_fft // 2,
    )


def of_stacked_frames(rate_hz: int, hop: int, frame: int, stride: int) -> FrameGeometry:
    """Return the geometry of frames that are stacked, `stride` to one, without padding."""
    return FrameGeometry(rate_hz, stride * hop, frame + (stride - 1) * hop)


def of_centred_pairs(rate_hz: int, hop: int, win: int) -> FrameGeometry:
    """Return the geometry of pairs of mel frames, whose windows are centred and padded."""
    return FrameGeometry(
        rate_hz,
        2 * hop,
        hop + win,
        left_padding_samples=win // 2,
        right_padding_samples=win // 2,
    )


def of_nemo(rate_hz: int, hop: int, win: int, kernel: int, n_convolutions: int) -> FrameGeometry:
    """Return the geometry of padded convolutions with stride 2 over centred mel frames (Parakeet).

    There are `n_samples // hop` mel frames, and the convolutions give `ceil(n / 2)` frames each.

    Args:
        rate_hz: Sample rate.
        hop: Samples between two mel frames.
        win: Samples of a mel frame. Preemphasis adds one.
        kernel: Kernel of the convolutions, odd.
        n_convolutions: Number of convolutions.
    """
    stride = 2**n_convolutions
    reach = (kernel // 2) * (stride - 1)  # mel frames on each side
    left = reach * hop + win // 2 + 1
    field = 2 * reach * hop + win + 1
    return FrameGeometry(
        rate_hz,
        stride * hop,
        field,
        left_padding_samples=left,
        right_padding_samples=field - hop - left,
    )


def of_padded_convolutions(
    rate_hz: int, hop: int, frame: int, kernels: Sequence[int]
) -> FrameGeometry:
    """Return the geometry of convolutions with stride 2 and padding over whole mel frames.

    Args:
        rate_hz: Sample rate.
        hop: Samples between two mel frames.
        frame: Samples of a mel frame, which is not padded.
        kernels: Kernel of each convolution, odd; each is padded by half of it.
    """
    reach = sum((kernel // 2) * 2**i for i, kernel in enumerate(kernels)) * hop
    return FrameGeometry(
        rate_hz,
        2 ** len(kernels) * hop,
        2 * reach + frame,
        left_padding_samples=reach,
        right_padding_samples=reach,
    )
