"""Seconds that a unit spends in each stage."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


class StoppedError(Exception):
    """The worker is closing; the unit that it is encoding is dropped."""


class Stopwatch:
    """Sums seconds per stage, for the encoding thread, and stops that thread between stages.

    On CUDA the stages of the device are timed by events, which are read at the end, so that timing
    does not synchronise with the device.
    """

    def __init__(self, device: torch.device | str) -> None:
        self._on_cuda = torch.device(device).type == "cuda"
        self._seconds: defaultdict[str, float] = defaultdict(float)
        self._events: list[tuple[str, Any, Any]] = []
        self._is_stopped = False

    def stop(self) -> None:
        """Let the next stage raise StoppedError; called from any thread."""
        self._is_stopped = True

    @contextmanager
    def host(self, stage: str) -> Iterator[None]:
        """Time a block on this thread."""
        if self._is_stopped:
            raise StoppedError("the worker is closing")
        start_s = time.perf_counter()
        try:
            yield
        finally:
            self._seconds[stage] += time.perf_counter() - start_s

    @contextmanager
    def device(self, stage: str) -> Iterator[None]:
        """Time the work that a block submits to the encoder's device."""
        if not self._on_cuda:
            with self.host(stage):
                yield
            return
        if self._is_stopped:
            raise StoppedError("the worker is closing")
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        first.record()
        yield
        last.record()
        self._events.append((stage, first, last))

    def take(self) -> dict[str, float]:
        """Return the seconds of each stage since the last call, and reset them."""
        for stage, first, last in self._events:
            last.synchronize()
            self._seconds[stage] += first.elapsed_time(last) / 1000
        seconds, self._seconds, self._events = self._seconds, defaultdict(float), []
        return dict(seconds)
