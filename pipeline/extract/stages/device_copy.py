"""Bringing features from the device to the host while the device goes on computing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Arrival = Callable[[], Tensor]
"""Waits for a transfer and returns the features on the host."""


class Transfer:
    """Copies features off a device; at most `depth` transfers may wait at a time.

    On CUDA features are rounded to the stored type on the device and copied into pinned memory on
    a stream of their own, so that the next batch computes meanwhile; two buffers take turns. On the
    CPU there is nothing to move.

    Attributes:
        depth: Transfers that may be begun before the first of them is received.
    """

    def __init__(self, device: torch.device | str, dtype: torch.dtype) -> None:
        self._dtype = dtype
        self._stream: Any = None
        if torch.device(device).type == "cuda":
            self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._buffers: list[Tensor | None] = [None, None]
        self._turn = 0
        self.depth = 0 if self._stream is None else 1

    def begin(self, features: Tensor) -> Arrival:
        """Begins to move features of any shape; what arrives is good until the next but one."""
        if self._stream is None:
            return lambda: features
        rounded = features.to(self._dtype)
        host = self._pinned(rounded.numel()).view(rounded.shape)
        self._stream.wait_stream(torch.cuda.current_stream(rounded.device))
        with torch.cuda.stream(self._stream):
            host.copy_(rounded, non_blocking=True)
            rounded.record_stream(self._stream)  # its memory is not reused before it has been read
            done: Any = torch.cuda.Event()  # type: ignore[no-untyped-call]
            done.record(self._stream)

        def arrive() -> Tensor:
            done.synchronize()
            return host

        return arrive

    def _pinned(self, n_elements: int) -> Tensor:
        buffer = self._buffers[self._turn]
        if buffer is None or buffer.numel() < n_elements:
            buffer = torch.empty(n_elements, dtype=self._dtype, pin_memory=True)
            self._buffers[self._turn] = buffer
        self._turn = 1 - self._turn
        return buffer[:n_elements]
