"""Frame geometry: which samples a frame sees. Pure arithmetic.

Frame `f` sees the samples `[hop * f - left, hop * f - left + receptive_field)`, where `left` is the
padding at the start, so a cut at a multiple of the hop moves no frame.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from pipeline.errors import DamagedError
from pipeline.store.format.layout import GROUP


@dataclass(frozen=True)
class FrameGeometry:
    """Sample rate, hop and receptive field of an encoder.

    Attributes:
        sample_rate_hz: Rate of the waveforms that the encoder takes.
        hop_samples: Samples between the starts of two frames.
        receptive_field_samples: Samples that a frame sees.
        pads_end: Whether the encoder pads the end of a waveform, so that every started hop has a
            frame (Whisper). Otherwise only whole receptive fields have one (wav2vec 2.0).
        left_padding_samples: Zeros, or the like, that the encoder pads at the start of a waveform.
        right_padding_samples: The same at its end; they count as samples of a receptive field. 0
            with `pads_end`.

    Example:
        >>> FrameGeometry(16_000, 320, 400).n_frames(16_000)
        49
    """

    sample_rate_hz: int
    hop_samples: int
    receptive_field_samples: int
    pads_end: bool = False
    left_padding_samples: int = 0
    right_padding_samples: int = 0

    def __post_init__(self) -> None:
        numbers = (self.sample_rate_hz, self.hop_samples, self.receptive_field_samples)
        if any(isinstance(n, bool) or not isinstance(n, int) or n < 1 for n in numbers):
            raise ValueError(f"{self} is no geometry: expected whole numbers of at least 1")
        if not isinstance(self.pads_end, bool):
            raise ValueError(f"{self} is no geometry: expected true or false for pads_end")
        padding = (self.left_padding_samples, self.right_padding_samples)
        if any(isinstance(n, bool) or not isinstance(n, int) or n < 0 for n in padding):
            raise ValueError(f"{self} is no geometry: expected a padding of 0 samples or more")
        if sum(padding) > self.receptive_field_samples:
            raise ValueError(f"{self} is no geometry: a frame has only padding")
        if not self.pads_end and self.n_frames(1) > 1:
            raise ValueError(f"{self} is no geometry: 1 sample has {self.n_frames(1)} frames")

    @property
    def frame_rate_hz(self) -> float:
        """Frames per second."""
        return self.sample_rate_hz / self.hop_samples

    @property
    def centre_samples(self) -> float:
        """Centre of frame 0, in samples from the start of the waveform."""
        return self.receptive_field_samples / 2 - self.left_padding_samples

    @property
    def _needed_samples(self) -> int:
        """Samples that frame 0 needs beside the padding."""
        padding = self.left_padding_samples + self.right_padding_samples
        return self.receptive_field_samples - padding

    def n_frames(self, n_samples: int) -> int:
        """Number of frames of an utterance, at least 1: a shorter one is padded to one frame.

        Args:
            n_samples: Length at `sample_rate_hz`, at least 1.
        """
        if self.pads_end:
            return max(1, math.ceil(n_samples / self.hop_samples))
        return max(1, (n_samples - self._needed_samples) // self.hop_samples + 1)

    def n_samples(self, n_frames: int) -> int:
        """Number of samples that the first `n_frames` frames need.

        That many samples give exactly `n_frames` frames. An utterance with fewer than
        `n_samples(1)` is padded to one frame.

        Args:
            n_frames: At least 1.
        """
        if self.pads_end:
            return n_frames * self.hop_samples
        return max(1, (n_frames - 1) * self.hop_samples + self._needed_samples)

    def to_dict(self) -> dict[str, Any]:
        """Return the `geometry` entry of a store's attributes, ready for JSON."""
        fields = asdict(self)
        if not self.left_padding_samples and not self.right_padding_samples:
            del fields["left_padding_samples"], fields["right_padding_samples"]  # as before 0.2
        return fields

    @classmethod
    def from_attributes(cls, attributes: Mapping[str, Any]) -> FrameGeometry:
        """Read the geometry from the attributes of a store.

        Args:
            attributes: Of the group. Early stores of format version 1 have no `geometry`: they hold
                features of the wav2vec 2.0 family.

        Raises:
            DamagedError: The entry is no geometry.
        """
        stored = attributes.get("geometry")
        if stored is None:
            return _FORMAT_1
        try:
            return cls(**stored)
        except (TypeError, ValueError) as error:
            raise DamagedError(
                f"the geometry in {GROUP}/zarr.json is damaged ({error}); restore it from a copy"
            ) from error


_FORMAT_1 = FrameGeometry(sample_rate_hz=16_000, hop_samples=320, receptive_field_samples=400)
