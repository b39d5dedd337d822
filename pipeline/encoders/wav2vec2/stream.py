"""The stream of samples that the front end convolves: the clips of a batch, one after another.

Clips are not padded to each other. Each starts at a multiple of 320 samples, so the receptive
fields of its frames contain no samples of another clip. The rows (20 ms) between two clips, whose
receptive fields contain samples of both, are computed and dropped.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pipeline.encoders.kernels.base import Pack
from pipeline.encoders.wav2vec2.geometry import GEOMETRY, HOP_SAMPLES


class Stream:
    """Places of the clips of a batch in the stream.

    Attributes:
        pack: Places of their frames.
        n_samples: Samples of each clip.
        starts: First row of each clip; one row has 320 samples and gives one frame.
        n_rows: Number of rows.
        clip_rows: Clips start at multiples of this many rows.
    """

    def __init__(
        self, pack: Pack, n_samples: Sequence[int], clip_rows: int, row_multiple: int, gap: int
    ) -> None:
        """Lay out the clips.

        Args:
            pack: Places of their frames.
            n_samples: Samples of each clip.
            clip_rows: Clips start at multiples of this many rows.
            row_multiple: The number of rows is rounded up to a multiple of this.
            gap: Rows between two clips: 1, or 2 to hold also the samples that no frame uses.
        """
        self.pack, self.n_samples, self.clip_rows = pack, tuple(n_samples), clip_rows
        self._capacity = [(count + gap) * HOP_SAMPLES for count in pack.counts]
        sizes = -(-(np.asarray(pack.counts) + gap) // clip_rows) * clip_rows
        ends = np.cumsum(sizes)
        self.starts: npt.NDArray[np.int64] = (ends - sizes).astype(np.int64)
        multiple = int(np.lcm(clip_rows, row_multiple))
        self.n_rows = -(-int(ends[-1]) // multiple) * multiple

    @cached_property
    def clip_of_row(self) -> npt.NDArray[np.int64]:
        """Clip of each row, on the host: `[n_rows]`. A clip owns the rows up to the next one."""
        after = np.searchsorted(self.starts, np.arange(self.n_rows), side="right")
        return np.asarray(after - 1, np.int64)

    @cached_property
    def row_in_clip(self) -> npt.NDArray[np.int64]:
        """Position of each row within its clip, on the host: `[n_rows]`."""
        return np.arange(self.n_rows, dtype=np.int64) - self.starts[self.clip_of_row]

    @cached_property
    def rows_of_frames(self) -> Tensor:
        """Row of each packed frame, int64 `[n_frames]` on the device."""
        pack = self.pack
        return pack.indices(self.starts[pack.clip_of_frame] + pack.frame_in_clip)

    def fill(self, waveforms: Sequence[Tensor]) -> Tensor:
        """Copy the clips into the stream, on the device, in one transfer if they are on the host.

        Args:
            waveforms: float32 `[n_samples]` each, on any device.

        Returns:
            float32 `[n_rows * 320 + 80]`, zero outside the clips.
        """
        device = self.pack.device
        on_host = all(waveform.device.type == "cpu" for waveform in waveforms)
        stream = torch.zeros(
            GEOMETRY.n_samples(self.n_rows),
            device="cpu" if on_host else device,
            pin_memory=on_host and device.type == "cuda",
        )
        for waveform, start, capacity in zip(waveforms, self.starts, self._capacity, strict=True):
            part = waveform[:capacity]
            stream[start * HOP_SAMPLES :][: len(part)].copy_(part)
        return stream.to(device, non_blocking=True)
