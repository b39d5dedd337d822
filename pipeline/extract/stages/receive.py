"""Receipt of a batch's layers in the unit's buffer, while the next layers are computed.

A receiver takes the layers that an encoder yields, encodes them as stored values, and notes their
range, so that values that cannot be stored are found without another pass. On a GPU it also
computes the statistics of each clip, and all of this runs on the device: the host only starts
copies, from contiguous to contiguous page-locked memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pipeline.encoders.kernels.base import to_device
from pipeline.extract.stages.clip_statistics import ClipFrames
from pipeline.store.format.codecs import (
    INT8,
    Codec,
    FloatArray,
    Stored,
)
from pipeline.store.format.pooling import MEAN
from pipeline.store.tensors import (
    as_tensor,
    encode_into,
    int8_scales,
    int8_steps,
    measure,
    torch_dtype,
)


@dataclass(frozen=True)
class Received:
    """What is known of a batch once its features are in the buffer.

    Attributes:
        lowest: Smallest value of each layer, NaN if it has one: `[n_layers]`.
        highest: Largest value of each layer, NaN if it has one: `[n_layers]`.
        statistics: float32 statistics of the stored values of each clip,
            `[n_clips, n_statistics, n_layers, dim]`; None if they were not computed.
    """

    lowest: FloatArray
    highest: FloatArray
    statistics: FloatArray | None = None

    def fits(self, codec: Codec) -> bool:
        """Return whether all values are finite and can be stored."""
        return codec.fits(float(self.lowest.min()), float(self.highest.max()))


PendingBatch = Callable[[], Received]
"""Waits until the features of a batch are in the buffer."""


@dataclass(frozen=True)
class ScaledClip:
    """Where a clip goes whose codec needs scales.

    Attributes:
        scales: Destination of its scales, float32 `[n_layers, n_scales, dim]`.
        held: Destination of the values of a window, float32 `[n_layers, n_kept, dim]`: the scales
            are those of the whole utterance, so it is encoded after its last window. None for a
            whole utterance.
    """

    scales: FloatArray
    held: FloatArray | None = None


class Receiver(Protocol):
    """Stores the layers of a batch.

    Attributes:
        depth: Number of batches that may be pending while another one is received.
        has_statistics: Whether it computes statistics, so that the frames need not be stored for
            them.
    """

    depth: int
    has_statistics: bool

    def receive(
        self,
        layers: Iterable[Tensor],
        kept: npt.NDArray[np.int64] | None,
        counts: Sequence[int],
        out: Stored | None,
        scaled: Sequence[ScaledClip] | None = None,
    ) -> PendingBatch:
        """Store the layers of a batch; values that cannot be stored become undefined.

        Args:
            layers: Packed frames of each layer, `[n_frames, dim]`.
            kept: The frames to store, ascending; None for all.
            counts: Stored frames of each clip.
            out: Destination of the kept frames, `[n_layers, n_kept, dim]`. None stores nothing;
                only a receiver with statistics accepts it.
            scaled: One per clip if the codec needs scales.
        """


def open_receiver(
    device: torch.device, codec: Codec, statistics: Sequence[str] = (MEAN,)
) -> Receiver:
    """Return the receiver for features on a device, and the statistics that a store keeps."""
    if device.type == "cuda" and (codec.is_rounding or codec == INT8):
        return DeviceReceiver(device, codec, statistics)
    return HostReceiver(codec)


class HostReceiver:
    """Receives features that are on the host, or copies them there at once."""

    depth = 0
    has_statistics = False

    def __init__(self, codec: Codec) -> None:
        self._codec = codec

    def receive(
        self,
        layers: Iterable[Tensor],
        kept: npt.NDArray[np.int64] | None,
        counts: Sequence[int],
        out: Stored | None,
        scaled: Sequence[ScaledClip] | None = None,
    ) -> PendingBatch:
        """Store each layer while it is in the cache."""
        assert out is not None  # it computes no statistics
        rows = None if kept is None else torch.from_numpy(kept)
        ranges = []
        for axis, (features, stored) in enumerate(zip(layers, out, strict=True)):
            on_host = features.cpu()
            values = on_host if rows is None else on_host.index_select(0, rows)
            ranges.append(torch.stack(torch.aminmax(values)))
            if scaled is None:
                as_tensor(self._codec, stored).copy_(values)
            else:
                self._scale(values, counts, stored, scaled, axis)
        lowest, highest = torch.stack(ranges, dim=1).float().numpy()
        received = Received(lowest, highest)
        return lambda: received

    def _scale(
        self,
        values: Tensor,
        counts: Sequence[int],
        stored: Stored,
        scaled: Sequence[ScaledClip],
        axis: int,
    ) -> None:
        """Encode one layer, clip by clip; hold the values of windows."""
        first = 0
        for clip, n_frames in zip(scaled, counts, strict=True):
            part = values[first : first + n_frames]
            if clip.held is not None:
                torch.from_numpy(clip.held[axis]).copy_(part)
            else:
                scales = clip.scales[axis]
                scales[...] = measure(self._codec, part)
                encode_into(self._codec, part, stored[first : first + n_frames], scales)
            first += n_frames


class DeviceReceiver:
    """Receives features from a GPU: encodes and checks them there, computes statistics, and copies.

    Copies run on a stream of their own.

    Args:
        device: The device. A CPU is accepted, for tests; then nothing runs in parallel.
        codec: A codec that rounds, or int8.
        statistics: Statistics to compute, of `STATISTICS`.
    """

    depth = 1
    has_statistics = True

    def __init__(
        self, device: torch.device, codec: Codec, statistics: Sequence[str] = (MEAN,)
    ) -> None:
        self._device, self._codec, self._statistics = device, codec, tuple(statistics)
        self._stream = _CopyStream(device)

    def receive(
        self,
        layers: Iterable[Tensor],
        kept: npt.NDArray[np.int64] | None,
        counts: Sequence[int],
        out: Stored | None,
        scaled: Sequence[ScaledClip] | None = None,
    ) -> PendingBatch:
        """Start the copy of each layer as soon as it is computed."""
        rows = None if kept is None else to_device(torch.from_numpy(kept), self._device)
        clips = ClipFrames(counts, self._device)
        ranges, pooled, scales = [], [], []
        for i, features in enumerate(layers):
            values = features if rows is None else features.index_select(0, rows)
            ranges.append(torch.stack(torch.aminmax(values)))
            if self._codec == INT8:
                low, high = (clips.reduce(values.float(), name) for name in ("min", "max"))
                scales.append(int8_scales(low, high))
                steps = int8_steps(values, scales[-1][clips.owners])
                stored = steps.to(torch.int8)
                found = clips.pool(stored, self._statistics, scales[-1])
                self._hold(values, counts, scaled or (), i)
            else:
                stored = values.to(torch_dtype(self._codec))
                found = clips.pool(stored, self._statistics)
            pooled.append(found)
            if out is not None:
                self._stream.copy(stored, as_tensor(self._codec, out[i]))
        facts = [torch.stack(ranges).float(), torch.stack(pooled, dim=2)]
        if scales:
            facts.append(torch.stack(scales, dim=1))
        on_host = [torch.empty(x.shape, pin_memory=self._device.type == "cuda") for x in facts]
        for fact, copy in zip(facts, on_host, strict=True):
            self._stream.copy(fact, copy)
        wait = self._stream.mark()

        def finish() -> Received:
            wait()
            for i, clip in enumerate(scaled or ()):
                if clip.held is None:
                    clip.scales[...] = on_host[2][i].numpy()
            lowest, highest = on_host[0].numpy().T
            return Received(lowest, highest, on_host[1].numpy())

        return finish

    def _hold(
        self, values: Tensor, counts: Sequence[int], scaled: Sequence[ScaledClip], axis: int
    ) -> None:
        """Start to copy the values of windows to where they wait for their whole utterance."""
        first = 0
        for clip, n_frames in zip(scaled, counts, strict=bool(scaled)):
            if clip.held is not None:
                part = values[first : first + n_frames].float()
                self._stream.copy(part, torch.from_numpy(clip.held[axis]))
            first += n_frames


class _CopyStream:
    """Copies to the host beside the computation; on a CPU at once."""

    def __init__(self, device: torch.device) -> None:
        self._stream: Any = None
        if device.type == "cuda":
            self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def copy(self, source: Tensor, target: Tensor) -> None:
        """Start a copy once the work submitted so far is done; `target` is page-locked."""
        if self._stream is not None:
            self._stream.wait_stream(torch.cuda.current_stream(source.device))
        with torch.cuda.stream(self._stream) if self._stream is not None else nullcontext():
            target.copy_(source, non_blocking=True)
        if self._stream is not None:
            source.record_stream(self._stream)  # its memory is not reused before it is copied

    def mark(self) -> Callable[[], None]:
        """Return a function that waits until all copies started so far are done."""
        if self._stream is None:
            return lambda: None
        copied: Any = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
        copied.record(self._stream)
        wait: Callable[[], None] = copied.synchronize
        return wait
