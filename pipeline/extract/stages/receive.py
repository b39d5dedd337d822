"""Receipt of a batch's layers in the unit's buffer, while the next layers are computed.

A receiver takes the layers that an encoder yields, rounds them to the stored values, and notes
their range, so that values that cannot be stored are found without another pass. On a GPU it also
computes the means of each clip, and all of this runs on the device: the host only starts copies,
one per layer, from contiguous to contiguous page-locked memory.
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
from pipeline.store.format.codecs import Codec, Stored
from pipeline.store.tensors import encode_into, torch_dtype

FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Received:
    """What is known of a batch once its features are in the buffer.

    Attributes:
        lowest: Smallest value of each layer, NaN if it has one: `[n_layers]`.
        highest: Largest value of each layer, NaN if it has one: `[n_layers]`.
        means: float32 means of the stored values of each clip, `[n_clips, n_layers, dim]`; None if
            they were not computed.
    """

    lowest: FloatArray
    highest: FloatArray
    means: FloatArray | None = None

    def fits(self, codec: Codec) -> bool:
        """Return whether all values are finite and can be stored."""
        return codec.fits(float(self.lowest.min()), float(self.highest.max()))


PendingBatch = Callable[[], Received]
"""Waits until the features of a batch are in the buffer."""


class Receiver(Protocol):
    """Stores the layers of a batch.

    Attributes:
        depth: Number of batches that may be pending while another one is received.
        has_means: Whether it computes means, so that the frames need not be stored for them.
    """

    depth: int
    has_means: bool

    def receive(
        self,
        layers: Iterable[Tensor],
        kept: npt.NDArray[np.int64] | None,
        counts: Sequence[int],
        out: Stored | None,
    ) -> PendingBatch:
        """Store the layers of a batch; values that cannot be stored become undefined.

        Args:
            layers: Packed frames of each layer, `[n_frames, dim]`.
            kept: The frames to store, ascending; None for all.
            counts: Stored frames of each clip.
            out: Destination of the kept frames, `[n_layers, n_kept, dim]`. None stores nothing;
                only a receiver with means accepts it.
        """


def open_receiver(device: torch.device, codec: Codec) -> Receiver:
    """Return the receiver for features on a device."""
    if device.type == "cuda" and codec.is_rounding:
        return DeviceReceiver(device, codec)
    return HostReceiver(codec)


class HostReceiver:
    """Receives features that are on the host, or copies them there at once."""

    depth = 0
    has_means = False

    def __init__(self, codec: Codec) -> None:
        self._codec = codec

    def receive(
        self,
        layers: Iterable[Tensor],
        kept: npt.NDArray[np.int64] | None,
        counts: Sequence[int],
        out: Stored | None,
    ) -> PendingBatch:
        """Store each layer while it is in the cache."""
        assert out is not None  # it computes no means
        rows = None if kept is None else torch.from_numpy(kept)
        ranges = []
        for features, stored in zip(layers, out, strict=True):
            on_host = features.cpu()
            values = on_host if rows is None else on_host.index_select(0, rows)
            ranges.append(torch.stack(torch.aminmax(values)))
            encode_into(self._codec, values, stored)
        lowest, highest = torch.stack(ranges, dim=1).float().numpy()
        received = Received(lowest, highest)
        return lambda: received


class DeviceReceiver:
    """Receives features from a GPU: rounds, checks and averages them there, and copies on a stream.

    Args:
        device: The device. A CPU is accepted, for tests; then nothing runs in parallel.
        codec: A codec that rounds.
    """

    depth = 1
    has_means = True

    def __init__(self, device: torch.device, codec: Codec) -> None:
        self._device = device
        self._dtype = torch_dtype(codec)
        self._stream = _CopyStream(device)

    def receive(
        self,
        layers: Iterable[Tensor],
        kept: npt.NDArray[np.int64] | None,
        counts: Sequence[int],
        out: Stored | None,
    ) -> PendingBatch:
        """Start the copy of each layer as soon as it is computed."""
        rows = None if kept is None else to_device(torch.from_numpy(kept), self._device)
        clip_of_frame = np.repeat(np.arange(len(counts)), counts)
        owners = to_device(torch.from_numpy(clip_of_frame), self._device)
        n_frames = to_device(torch.tensor(counts, dtype=torch.float64), self._device)[:, None]
        clips = torch.arange(len(counts), device=self._device)
        summing = (owners == clips[:, None]).double()  # [n_clips, n_kept]
        ranges, means = [], []
        for i, features in enumerate(layers):
            values = features if rows is None else features.index_select(0, rows)
            ranges.append(torch.stack(torch.aminmax(values)))
            rounded = values.to(self._dtype)
            # The sums are exact, as `verify` requires: these values are multiples of 2⁻²⁴.
            means.append((summing @ rounded.double() / n_frames).float())
            if out is not None:
                self._stream.copy(rounded, torch.from_numpy(out[i]))
        facts = [torch.stack(ranges).float(), torch.stack(means, dim=1)]
        on_host = [torch.empty(x.shape, pin_memory=self._device.type == "cuda") for x in facts]
        for fact, copy in zip(facts, on_host, strict=True):
            self._stream.copy(fact, copy)
        wait = self._stream.mark()

        def finish() -> Received:
            wait()
            lowest, highest = on_host[0].numpy().T
            return Received(lowest, highest, on_host[1].numpy())

        return finish


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
