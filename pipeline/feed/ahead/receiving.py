"""What a batch is read from, in the process of a loader or in one of its workers."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Hashable

from pipeline.feed.ahead.memory import AheadMemory, Held
from pipeline.feed.dataset import FeatureDataset
from pipeline.store.backend.held_reader import HeldRanges, Range

_POLL_S = 0.0005
_POLLS_PER_CHECK = 2000


class HeldDataset:
    """A dataset that is read from the memory of its loader. For one thread of one process."""

    def __init__(self, dataset: FeatureDataset, memory: AheadMemory) -> None:
        self._memory, self._held = memory, HeldRanges()
        self._dataset = dataset.holding(self._held)

    def of(self, held: Held) -> FeatureDataset | None:
        """Return the dataset as a batch reads it, once what it needs was fetched.

        What could not be fetched is read from its server.

        Returns:
            None if the batch is not needed any more.
        """
        memory, portion = self._memory, held.portion
        found: dict[Hashable, list[Range]] = {}
        rows = zip(held.needed.ranges.tolist(), held.needed.chunks.tolist(), strict=True)
        for (axis, slot, start, stop, place), chunks in rows:
            is_filled = self._await(portion, *chunks)
            if is_filled is None:
                return None
            if is_filled:
                content = memory.content(portion, place, stop - start)
                found.setdefault((axis, slot), []).append((start, content))
        self._held.replace(found)
        return self._dataset

    def _await(self, portion: int, first: int, stop: int) -> bool | None:
        """Wait for chunks; return whether all are there, None if they are not needed any more."""
        n_polls = 0
        while (is_filled := self._memory.is_filled(portion, first, stop)) is None:
            if self._memory.is_cancelled(portion):
                return None
            n_polls += 1
            if n_polls % _POLLS_PER_CHECK == 0:
                _check_parent()
            time.sleep(_POLL_S)
        return is_filled


def _check_parent() -> None:
    """Check that the process that fetches is alive."""
    parent = multiprocessing.parent_process()
    if parent is not None and not parent.is_alive():
        raise RuntimeError("the process of the loader has ended")
