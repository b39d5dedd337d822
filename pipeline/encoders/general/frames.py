"""Statistics over the frames of a recording that arrives block by block.

Log-mel features are normalised over the whole recording, so a window needs its mean, its variance
or its largest value. Frames are added up in chunks of a fixed number of frames, so the result does
not depend on the blocks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.encoders.kernels.base import to_device

_CHUNK_FRAMES = 1024


@dataclass(frozen=True)
class FrameMoments:
    """Statistics over the frames of a recording.

    Attributes:
        count: Number of frames.
        total: Sum of each feature, float64 `[dim]`.
        squares: Sum of the squares of each feature, float64 `[dim]`.
        largest: Largest value.
    """

    count: int
    total: Tensor
    squares: Tensor
    largest: float

    def to(self, device: torch.device) -> FrameMoments:
        """Copy the sums to a device, without waiting for it."""
        total, squares = to_device(self.total, device), to_device(self.squares, device)
        return replace(self, total=total, squares=squares)

    @property
    def mean(self) -> Tensor:
        """Mean of each feature, float64 `[dim]`."""
        return self.total / self.count

    def variance(self, correction: int) -> Tensor:
        """Variance of each feature, float64 `[dim]`, as `torch.var` with this correction."""
        spread = (self.squares - self.total * self.mean).clamp_min(0.0)
        return spread / max(1, self.count - correction)


@dataclass(frozen=True)
class Framing:
    """Overlapping frames of a waveform.

    Attributes:
        frame_samples: Samples of a frame.
        hop_samples: Samples between the starts of two frames.
        left_samples: Zeros before the waveform.
        right_samples: Zeros after it.
    """

    frame_samples: int
    hop_samples: int
    left_samples: int = 0
    right_samples: int = 0

    def cut(self, padded: Tensor) -> Tensor:
        """Return the whole frames of a waveform that is already padded: `[n_frames, samples]`."""
        return padded.unfold(0, self.frame_samples, self.hop_samples)


class FrameAccumulator:
    """Accumulator of `FrameMoments`; see `StatisticsAccumulator`."""

    def __init__(
        self,
        framing: Framing,
        features: Callable[[Tensor], Tensor],
        *,
        preemphasis: float = 0.0,
    ) -> None:
        """Start without samples.

        Args:
            framing: Frames of the recording.
            features: Maps frames `[n_frames, samples]` to features `[n_frames, dim]`.
            preemphasis: Factor of the sample before, which is subtracted from each sample.
        """
        self._framing, self._features, self._preemphasis = framing, features, preemphasis
        self._rest = torch.zeros(framing.left_samples)
        self._before = torch.zeros(1)
        self._sums: list[FrameMoments] = []

    def update(self, samples: Tensor) -> None:
        """Add the next samples, float32 `[n]`."""
        if not samples.numel():
            return
        samples = samples.detach().cpu()
        if self._preemphasis:
            earlier = torch.cat([self._before, samples[:-1]])
            self._before = samples[-1:].clone()
            samples = samples - self._preemphasis * earlier
        self._rest = torch.cat([self._rest, samples])
        self._consume(whole_chunks=True)

    def finish(self) -> FrameMoments:
        """Return the statistics."""
        framing = self._framing
        self._rest = F.pad(self._rest, (0, framing.right_samples))
        if not self._sums and len(self._rest) < framing.frame_samples:
            self._rest = F.pad(self._rest, (0, framing.frame_samples - len(self._rest)))
        self._consume(whole_chunks=False)
        return FrameMoments(
            count=sum(part.count for part in self._sums),
            total=torch.stack([part.total for part in self._sums]).sum(0),
            squares=torch.stack([part.squares for part in self._sums]).sum(0),
            largest=max(part.largest for part in self._sums),
        )

    def _consume(self, *, whole_chunks: bool) -> None:
        frame, hop = self._framing.frame_samples, self._framing.hop_samples
        needed = (_CHUNK_FRAMES - 1) * hop + frame
        while len(self._rest) >= (needed if whole_chunks else frame):
            frames = self._framing.cut(self._rest[:needed])
            values = self._features(frames).double()
            self._sums.append(
                FrameMoments(
                    len(values), values.sum(0), values.square().sum(0), float(values.max())
                )
            )
            self._rest = self._rest[len(frames) * hop :]
