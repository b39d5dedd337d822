"""Fetches the portions of an epoch, in threads of the process of a loader."""

from __future__ import annotations

import os
import threading
import weakref
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass

from pipeline.errors import StoreError
from pipeline.feed.ahead.memory import N_HALVES, NOTED_BYTES, AheadMemory, Held
from pipeline.feed.ahead.planning import Chunk, Form, Portion, portions
from pipeline.feed.batching import BatchSpec
from pipeline.feed.dataset import FeatureDataset
from pipeline.feed.frames.axis import FrameAxis
from pipeline.store.read.shards import SCALES

IN_FLIGHT = 32
"""Requests of a loader at a time."""
CHUNK_BYTES = 4 << 20
"""Bytes of a request at most; larger ones are not faster."""
_LEAST_CHUNK_BYTES = 64 << 10
_SHARE_IN_FLIGHT = 8  # answers under way take an eighth of the memory at most


class ReadAhead:
    """What is fetched ahead for a loader, in bounded memory.

    While the batches of one portion are read, the next one is fetched. A chunk that cannot be
    fetched is left to the readers of its batches, which report what is wrong. What is in memory is
    not fetched again: a dataset that fits is fetched in its first epoch only.

    Args:
        dataset: The utterances.
        n_bytes: Bytes of memory at most: of two portions, and of the answers under way.

    Attributes:
        memory: Holds what was fetched; batches are read from it.
    """

    def __init__(self, dataset: FeatureDataset, n_bytes: int) -> None:
        in_flight_bytes = n_bytes // _SHARE_IN_FLIGHT
        chunk_bytes = max(_LEAST_CHUNK_BYTES, in_flight_bytes // IN_FLIGHT)
        self._chunk_bytes = min(CHUNK_BYTES, chunk_bytes)
        n_threads = max(1, min(IN_FLIGHT, in_flight_bytes // self._chunk_bytes))
        left = n_bytes - n_threads * self._chunk_bytes - NOTED_BYTES
        self.memory = AheadMemory(max(1, left // N_HALVES))
        self._process, self._store = os.getpid(), dataset.store
        self._axis = FrameAxis.of(dataset.store.piece_places(), by_disk=False)
        self._form = _form_of(dataset)
        self._pool, self._n_threads = ThreadPoolExecutor(n_threads, "strata-ahead"), n_threads
        self._guard = threading.RLock()
        self._running: set[Future[None]] = set()
        self._todo: deque[Iterator[tuple[int, int, Chunk]]] = deque()
        self._checking: weakref.WeakKeyDictionary[object, threading.Lock]
        self._checking = weakref.WeakKeyDictionary()
        self._failure: BaseException | None = None
        self._last = 0
        self._in_memory: dict[int, tuple[int, Portion]] = {}
        self._plan: Iterator[Portion | int] = iter(())
        self._planned: deque[_Planned] = deque()
        self._n_planned = self._n_given = self._n_done = 0

    def fits(self, dataset: FeatureDataset) -> bool:
        """Return whether this is for a dataset as it is now, in this process."""
        return self._process == os.getpid() and self._store is dataset.store

    def begin(self, windows: Iterable[Sequence[BatchSpec]]) -> None:
        """Begin an epoch, or the rest of one.

        Args:
            windows: The batches of each shuffle window.
        """
        self.stop()
        wait(list(self._running))  # they write to the memory
        most = self.memory.half_bytes
        sizes = most, N_HALVES * most, self._chunk_bytes
        self._plan = portions(self._axis, self._form, windows, *sizes)

    def stop(self) -> None:
        """Fetch nothing more for the present epoch; its batches are not read any more."""
        self.memory.cancel(self._last)
        with self._guard:
            self._todo.clear()
        self._plan, self._failure = iter(()), None
        self._planned.clear()
        self._n_planned = self._n_given = self._n_done = 0

    def next(self) -> Held | None:
        """Return what the next batch finds in memory; None if it is to be read as it is.

        Call it once for each batch, in their order.
        """
        number, self._n_given = self._n_given, self._n_given + 1
        while number >= self._n_planned and self._plan_next():
            pass
        self._fetch()
        found = next(item for item in self._planned if number < item.stop)
        if found.portion is None:
            return None
        needed = found.portion.needed(number - found.stop + found.portion.n_batches)
        return Held(found.number, needed) if len(needed.ranges) else None

    def done(self) -> None:
        """Note that the next batch, in their order, was read."""
        self._n_done += 1
        while self._planned and self._planned[0].stop <= self._n_done:
            self._planned.popleft()
        self._fetch()
        if self._failure is not None:
            raise self._failure

    def _plan_next(self) -> bool:
        """Plan the next portion; return whether there is one."""
        found = next(self._plan, None)
        if found is None:
            return False
        portion = found if isinstance(found, Portion) else None
        self._n_planned += 1 if portion is None else portion.n_batches
        self._planned.append(_Planned(self._next_number(portion), portion, self._n_planned))
        return True

    def _next_number(self, portion: Portion | None) -> int:
        """Number a portion; its half follows from that.

        One that is in memory keeps its half, and one that is larger than a half begins in the
        first: it is alone in its epoch.
        """
        self._last += 1
        if portion is not None and not self._planned:
            is_large, other = self._is_large(portion), self._last + 1
            if self._last % N_HALVES if is_large else self._is_in(other, portion):
                self._last = other
        return self._last

    def _is_large(self, portion: Portion) -> bool:
        return portion.n_bytes > self.memory.half_bytes

    def _is_in(self, number: int, portion: Portion) -> bool:
        """Return whether a portion, or a part of it, is in the half of a number."""
        _, found = self._in_memory.get(number % N_HALVES, (0, None))
        return found == portion

    def _fetch(self) -> None:
        """Fetch the portion that is being read and the next one, unless that has begun."""
        while len(self._planned) < N_HALVES and self._plan_next():
            pass
        for item in list(self._planned)[:N_HALVES]:
            if item.portion is not None and not item.is_begun:
                item.is_begun = True
                self._begin_portion(item.number, item.portion)
        self._submit()

    def _begin_portion(self, number: int, portion: Portion) -> None:
        side = number % N_HALVES
        if self._is_in(number, portion):
            self.memory.renumber(self._in_memory[side][0], number)
        for other, (_, found) in list(self._in_memory.items()):
            if other == side or self._is_large(portion) or self._is_large(found):
                del self._in_memory[other]  # it is overwritten
        self._in_memory[side] = number, portion
        with self._guard:
            self._todo.append((number, *item) for item in portion.chunks())

    def _submit(self) -> None:
        """Make requests, as many at a time as there are threads."""
        with self._guard:
            while self._todo and len(self._running) < self._n_threads:
                item = next(self._todo[0], None)
                if item is None:
                    self._todo.popleft()
                elif self.memory.is_filled(item[0], item[1], item[1] + 1) is not True:
                    try:
                        future = self._pool.submit(self._run, *item)
                    except RuntimeError:  # the process ends
                        self._todo.clear()
                        return
                    self._running.add(future)
                    future.add_done_callback(self._on_done)

    def _on_done(self, future: Future[None]) -> None:
        with self._guard:
            self._running.discard(future)
        if future.exception() is not None:
            self._failure = future.exception()
        self._submit()

    def _run(self, portion: int, number: int, chunk: Chunk) -> None:
        """Fetch a chunk."""
        is_filled = False
        try:
            reader = self._store.shards_of(chunk.slot).reader(chunk.axis, chunk.slot)
            if reader is not None:
                size = chunk.stop - chunk.start
                reader.fetch_into(self.memory.content(portion, chunk.place, size), chunk.start)
                with self._check_of(reader):
                    reader.check_end()
                is_filled = True
        except (OSError, EOFError, StoreError):  # the batch reads it again and reports the error
            pass
        finally:
            self.memory.note(portion, number, is_filled)

    def _check_of(self, reader: object) -> threading.Lock:
        """Return the lock of an object, whose end is compared once."""
        with self._guard:
            return self._checking.setdefault(reader, threading.Lock())


@dataclass
class _Planned:
    """A portion that was planned.

    Attributes:
        number: Its number.
        portion: None for a batch that does not fit in memory.
        stop: One past the number of its last batch in the epoch.
        is_begun: Whether it is fetched, or was.
    """

    number: int
    portion: Portion | None
    stop: int
    is_begun: bool = False


def _form_of(dataset: FeatureDataset) -> Form:
    store = dataset.store
    slots = store.slots
    shards = store.shards_of(int(slots[0])) if len(slots) else None
    layout = None if shards is None else shards.layout
    return Form(
        axes=tuple(store.axes(dataset.layers)),
        frame_bytes=layout.frame_bytes if layout else 1,
        scale_bytes=layout.scale_bytes if layout and layout.keeps_scales else 0,
        scales=SCALES,
        waits=lambda slot: store.shards_of(slot).reads_wait,
    )
