"""Ranges of objects, fetched ahead: near ones by one request, many requests in flight.

Readers collect the ranges that they are asked to fetch. When one of them has to wait, the ranges of
all of them are requested: those of an object with small gaps between them together, many requests
at a time. What gap is small depends on the time of a request: up to 1 MB. A caller that announces
all its reads before the first one, as `merged.gather` does, makes few requests and waits once.
"""

from __future__ import annotations

import threading
import time
from bisect import bisect_right, insort
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from typing import TypeVar
from weakref import ref

from pipeline.objects.library import generation
from pipeline.objects.ranges import COALESCE_BYTES, LONGEST_BYTES, merge

MOST_AHEAD_BYTES = 128 << 20
"""Bytes that a process keeps fetched or being fetched before they are read; older ones are dropped,
and are fetched again if they are needed after all."""
IN_FLIGHT = 64
"""Requests at a time: with 20 ms for each, 32 ranges of 300 KB are not enough for a fast server."""
_LEAST_GAP_BYTES = 256 << 10
_GAP_BYTES_PER_S = 64 << 20
"""Gaps are closed that take less time than a request: 1 MB at 16 ms. That many requests are made at
a time is in this figure; a single stream passes more bytes a second."""
_SMALL_BYTES = 128 << 10  # an answer whose time is that of a request
_WINDOW_BYTES = 32 << 20
"""Bytes of one read that are requested at a time."""
_MOST_WAITING_BYTES = 16 << 20
"""Collected bytes from which on they are requested, even if no reader waits."""

Fetch = Callable[[int, int], memoryview]
Item = TypeVar("Item")


@dataclass(eq=False)
class _Segment:
    """A part of an object that was requested.

    Attributes:
        start: First byte.
        stop: One past the last byte.
        left: Bytes that readers have announced and not read yet.
        content: The bytes.
        is_held: Whether it counts among the bytes of the process.
    """

    start: int
    stop: int
    left: int
    content: Future[memoryview]
    is_held: bool = True


class Segments:
    """What is fetched of one object in this process.

    Args:
        fetch: Fetches a range, given its start and its length.
        place: Where the object is; requests to one place take about as long.
    """

    def __init__(self, fetch: Fetch, place: str = "") -> None:
        self._fetch, self._place = fetch, place
        self._requested: list[_Segment] = []
        self._wanted: dict[tuple[int, int], int] = {}
        self._fetcher = _fetcher(generation())

    def announce(self, start: int, stop: int) -> None:
        """Note that a range will be read, unless there is enough to be fetched already."""
        if self._fetcher.n_waiting + stop - start <= MOST_AHEAD_BYTES - _WINDOW_BYTES:
            self.add(start, stop)

    def add(self, start: int, stop: int) -> None:
        """Note that a range will be read; it is requested when a reader waits."""
        fetcher = self._fetcher
        with fetcher.guard:
            n_new = 0
            for first, last in self._uncovered(start, stop):
                n_new += last - first if (first, last) not in self._wanted else 0
                self._wanted[first, last] = self._wanted.get((first, last), 0) + last - first
            if n_new:
                fetcher.note(self, n_new)

    def take(self, start: int, stop: int) -> list[memoryview]:
        """Return a range in parts, and forget what no other reader has announced.

        Raises:
            EOFError: The object ends before.
            OSError: It cannot be read.
        """
        parts = []
        while start < stop:
            segment = self._at(start)
            if segment is None and self._fetcher.is_waiting:
                self._fetcher.request(self)
                segment = self._at(start)
            if segment is None:
                self.add(start, self._next_start(start, min(stop, start + _WINDOW_BYTES)))
                self._fetcher.request(self)
                continue
            last = min(stop, segment.stop)
            try:
                content = segment.content.result()
            except BaseException:
                self._drop(segment)
                raise
            parts.append(content[start - segment.start : last - segment.start])
            with self._fetcher.guard:
                segment.left -= last - start
                if segment.left <= 0:
                    self._drop(segment)
            start = last
        return parts

    def is_ahead(self, start: int) -> bool:
        """Return whether a byte was requested, or other ranges are waiting to be."""
        return self._at(start) is not None or self._fetcher.is_waiting

    def _uncovered(self, start: int, stop: int) -> list[tuple[int, int]]:
        """Return what of a range was not requested; count the rest as announced once more."""
        gaps = []
        while start < stop:
            segment = self._at(start)
            if segment is None:
                last = self._next_start(start, stop)
                gaps.append((start, last))
            else:
                last = min(stop, segment.stop)
                segment.left += last - start
            start = last
        return gaps

    def _at(self, start: int) -> _Segment | None:
        """Return the segment that has a byte."""
        with self._fetcher.guard:
            at = bisect_right(self._requested, start, key=_start) - 1
            segment = self._requested[at] if at >= 0 else None
        return segment if segment is not None and start < segment.stop else None

    def _next_start(self, start: int, stop: int) -> int:
        """Return where the first segment after a byte begins, or `stop` if that comes before."""
        with self._fetcher.guard:
            at = bisect_right(self._requested, start, key=_start)
            return min(stop, self._requested[at].start) if at < len(self._requested) else stop

    def _drop(self, segment: _Segment) -> None:
        with self._fetcher.guard:
            self.forget(segment)
            self._fetcher.release(segment)
            if self._fetcher.is_waiting:
                self._fetcher.request()

    def forget(self, segment: _Segment) -> None:
        """Fetch a segment again if it is read after all. Called with the guard held."""
        self._requested = [item for item in self._requested if item is not segment]

    def _timed(self, start: int, length: int) -> memoryview:
        """Fetch a range; note how long a small one takes."""
        start_s = time.perf_counter()
        content = self._fetch(start, length)
        if length <= _SMALL_BYTES:
            self._fetcher.note_time(self._place, time.perf_counter() - start_s)
        return content

    @property
    def _gap(self) -> int:
        """Bytes between two ranges that are rather read than requested apart."""
        request_s = self._fetcher.request_s.get(self._place, 1.0)
        return max(_LEAST_GAP_BYTES, min(COALESCE_BYTES, int(request_s * _GAP_BYTES_PER_S)))

    @property
    def n_to_send(self) -> int:
        """Bytes that would be requested, those of closed gaps included."""
        wanted = list(self._wanted)
        lengths = [last - first for first, last in wanted]
        merged = merge([first for first, _ in wanted], lengths, self._gap)
        return sum(last - first for first, last, _ in merged)

    def send(self) -> int:
        """Request what is wanted; return its bytes. Called with the guard held."""
        wanted, self._wanted = self._wanted, {}
        spans = [(first, last, counted) for (first, last), counted in wanted.items()]
        starts = [first for first, _, _ in spans]
        lengths = [last - first for first, last, _ in spans]
        for first, last, members in merge(starts, lengths, self._gap):
            for start in range(first, last, LONGEST_BYTES):
                stop = min(last, start + LONGEST_BYTES)
                left = sum(_overlap(spans[member], start, stop) for member in members)
                content = self._fetcher.pool.submit(self._timed, start, stop - start)
                segment = _Segment(start, stop, left, content)
                insort(self._requested, segment, key=_start)
                self._fetcher.hold(self, segment)
        return sum(last - first for first, last, _ in spans)


class _Fetcher:
    """The requests of this process.

    Attributes:
        guard: Held for changes of what is wanted and requested.
        pool: Makes the requests.
        n_held: Bytes that were requested and are not read yet.
        request_s: The shortest time of a small request to each place.
    """

    def __init__(self) -> None:
        self.guard = threading.RLock()
        self.pool = ThreadPoolExecutor(IN_FLIGHT, "strata-fetch")
        self.n_held = 0
        self.request_s: dict[str, float] = {}
        self._held: deque[tuple[ref[Segments], _Segment]] = deque()
        self._waiting: dict[int, Segments] = {}
        self._n_waiting = 0

    def note_time(self, place: str, request_s: float) -> None:
        """Note how long a small request took."""
        self.request_s[place] = min(request_s, self.request_s.get(place, request_s))

    @property
    def n_waiting(self) -> int:
        """Bytes that were noted and are not requested yet."""
        return self._n_waiting

    @property
    def is_waiting(self) -> bool:
        """Whether there are ranges that are not requested yet."""
        return bool(self._waiting)

    def note(self, segments: Segments, n_bytes: int) -> None:
        """Remember that an object has wanted ranges, of so many more bytes."""
        self._waiting[id(segments)] = segments
        self._n_waiting += n_bytes
        if self._n_waiting > _MOST_WAITING_BYTES:
            self.request()

    def request(self, needed: Segments | None = None) -> None:
        """Request the ranges that are wanted, in the order of the objects, until enough is held.

        Args:
            needed: The object that a reader waits for: its ranges are requested in any case.
        """
        with self.guard:
            if needed is not None and id(needed) in self._waiting:
                self._send(needed)
            while self._waiting:
                segments = next(iter(self._waiting.values()))
                if self.n_held + segments.n_to_send > MOST_AHEAD_BYTES:
                    return
                self._send(segments)

    def _send(self, segments: Segments) -> None:
        del self._waiting[id(segments)]
        self._n_waiting -= segments.send()

    def hold(self, segments: Segments, segment: _Segment) -> None:
        """Count a segment; drop the oldest ones if there are too many bytes."""
        self._held.append((ref(segments), segment))
        self.n_held += segment.stop - segment.start
        while self._held and (
            self._is_gone(*self._held[0])
            or (self.n_held > MOST_AHEAD_BYTES and self._held[0][0]() is not segments)
        ):
            owner, oldest = self._held.popleft()
            found = owner()
            if found is not None:
                found.forget(oldest)  # and request nothing now: what is being sent needs the room
            self.release(oldest)

    def release(self, segment: _Segment) -> None:
        """Count a segment no more."""
        if segment.is_held:
            segment.is_held = False
            self.n_held -= segment.stop - segment.start

    def _is_gone(self, owner: ref[Segments], segment: _Segment) -> bool:
        return owner() is None or not segment.is_held


def run_together(call: Callable[[Item], None], items: Iterable[Item]) -> None:
    """Call a function with each of several items, in the threads that make requests."""
    for _ in _fetcher(generation()).pool.map(call, items):
        pass


@cache
def _fetcher(generation: int) -> _Fetcher:
    """Return the fetcher of this process; a fork has none of the threads of its parent."""
    return _Fetcher()


def _start(segment: _Segment) -> int:
    return segment.start


def _overlap(span: tuple[int, int, int], start: int, stop: int) -> int:
    """Return the announced bytes of a wanted range that are between two places."""
    first, last, announced = span
    shared = max(0, min(last, stop) - max(first, start))
    return shared * announced // (last - first)
