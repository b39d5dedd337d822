"""Memory that the process of a loader fills and its workers read."""

from __future__ import annotations

import mmap
import os
import tempfile
from collections.abc import Callable
from multiprocessing.reduction import DupFd
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from pipeline.feed.ahead.planning import MOST_CHUNKS, Needed

N_HALVES = 2
"""The portion that is being read, and the next one."""
_PAGE = 4096
_COUNTERS = _PAGE // 8  # the first of them is the last portion that nothing needs any more
NOTED_BYTES = 8 * (_COUNTERS + N_HALVES * MOST_CHUNKS)
"""Bytes of the notes."""


class Held(NamedTuple):
    """What a batch finds in the memory of its loader.

    Attributes:
        portion: Number of the portion, from 1; it never repeats.
        needed: Its ranges and chunks.
    """

    portion: int
    needed: Needed


class AheadMemory:
    """Two halves for portions, and the state of each chunk; shared by processes.

    It is given to new processes by inheritance, as torch's DataLoader does. Its pages are taken
    when they are first filled. The loader's process fills a chunk, and then notes that; a reader
    that sees the note sees the content.

    Args:
        half_bytes: Bytes of a portion at most.
    """

    def __init__(self, half_bytes: int) -> None:
        self.half_bytes = half_bytes
        self._open(_new_file(self._n_bytes))

    @property
    def _n_bytes(self) -> int:
        return NOTED_BYTES + N_HALVES * self.half_bytes

    def _open(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._map = mmap.mmap(descriptor, self._n_bytes)
        whole = np.frombuffer(self._map, np.uint8)
        noted = whole[:NOTED_BYTES].view(np.int64)
        self._counters = noted[:_COUNTERS]
        self._states = noted[_COUNTERS:].reshape(N_HALVES, MOST_CHUNKS)
        self._content = whole[NOTED_BYTES:]

    def __getstate__(self) -> dict[str, Any]:
        return {"half_bytes": self.half_bytes, "descriptor": DupFd(self._descriptor)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.half_bytes = state["half_bytes"]
        self._open(state["descriptor"].detach())

    def __del__(self, close: Callable[[int], None] = os.close) -> None:
        close(self._descriptor)  # the map keeps the memory while arrays refer to it

    def content(self, portion: int, start: int, n_bytes: int) -> npt.NDArray[np.uint8]:
        """Return bytes of a portion; one that is alone may take both halves, if it is even."""
        first = portion % N_HALVES * self.half_bytes + start
        return self._content[first : first + n_bytes]

    def note(self, portion: int, chunk: int, is_filled: bool) -> None:
        """Note that a chunk is there, or that it could not be fetched."""
        self._states[portion % N_HALVES, chunk] = 2 * portion + is_filled

    def is_filled(self, portion: int, first: int, stop: int) -> bool | None:
        """Return whether chunks `first:stop` of a portion are there; None while one is fetched."""
        states = self._states[portion % N_HALVES, first:stop]
        if (states < 2 * portion).any():
            return None
        return bool((states == 2 * portion + 1).all())

    def renumber(self, before: int, portion: int) -> None:
        """Note that what is there of a portion is that of a later one, in the same half."""
        states = self._states[portion % N_HALVES]
        states[states == 2 * before + 1] = 2 * portion + 1

    def cancel(self, portion: int) -> None:
        """Note that batches of portions up to one are not needed any more."""
        self._counters[0] = portion

    def is_cancelled(self, portion: int) -> bool:
        """Return whether a portion is not needed any more."""
        return int(self._counters[0]) >= portion


def _new_file(n_bytes: int) -> int:
    """Return a file in memory, which no folder such as /dev/shm limits, without a name."""
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("strata-ahead")
    else:
        with tempfile.TemporaryFile() as file:
            descriptor = os.dup(file.fileno())
    os.ftruncate(descriptor, n_bytes)
    return descriptor
