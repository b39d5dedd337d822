"""Copy of features from the device to the host, while the device computes the next batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

PendingCopy = Callable[[], Tensor]
"""Waits for the copy and returns the features on the host."""


class DeviceCopy:
    """Copies features from a device to the host.

    On CUDA the features are rounded to the stored dtype on the device and copied into pinned memory
    on a separate stream, so that the next batch is computed meanwhile. Two buffers alternate. On
    the CPU nothing is copied.

    Args:
        device: Device of the features.
        dtype: Stored dtype.

    Attributes:
        depth: Number of copies that may be pending while another one is started.
    """

    def __init__(self, device: torch.device | str, dtype: torch.dtype) -> None:
        self._dtype = dtype
        self._stream: Any = None
        if torch.device(device).type == "cuda":
            self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._buffers: list[Tensor | None] = [None, None]
        self._turn = 0
        self.depth = 0 if self._stream is None else 1

    def start(self, features: Tensor) -> PendingCopy:
        """Start copying features of any shape; the copy is valid until the next but one starts."""
        if self._stream is None:
            return lambda: features
        rounded = features.to(self._dtype)
        host = self._pinned(rounded.numel()).view(rounded.shape)
        self._stream.wait_stream(torch.cuda.current_stream(rounded.device))
        with torch.cuda.stream(self._stream):
            host.copy_(rounded, non_blocking=True)
            rounded.record_stream(self._stream)  # its memory is not reused before it is copied
            copied: Any = torch.cuda.Event()  # type: ignore[no-untyped-call]
            copied.record(self._stream)

        def wait() -> Tensor:
            copied.synchronize()
            return host

        return wait

    def _pinned(self, n_elements: int) -> Tensor:
        buffer = self._buffers[self._turn]
        if buffer is None or buffer.numel() < n_elements:
            buffer = torch.empty(n_elements, dtype=self._dtype, pin_memory=True)
            self._buffers[self._turn] = buffer
        self._turn = 1 - self._turn
        return buffer[:n_elements]
