"""Requests that have not succeeded yet, and a note for the user if one waits for long.

Requests to a server that is busy or gone are repeated for up to two minutes. The threads that make
them are blocked, so another thread looks at all requests of the process every second. It ends when
there are none.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

NOTE_AFTER_S = 10.0
"""Seconds after which a request is worth a note."""
NOTE_EVERY_S = 60.0
_LOOK_EVERY_S = 1.0
LARGE_S = 60.0
"""Seconds that a large object may take before its request counts as one that waits."""

Note = Callable[[str], object]


class Wait:
    """A request that has not succeeded yet.

    Attributes:
        place: URI of the object.
        start_s: When it was made first, by the monotonic clock.
        reason: Why it had to be made again; empty if it was not.
        n_retries: How often it was made again.
    """

    __slots__ = ("_limit_s", "_patience_s", "n_retries", "place", "reason", "start_s")

    def __init__(self, place: str, limit_s: float, is_large: bool) -> None:
        self.place, self.start_s = place, time.monotonic()
        self.reason, self.n_retries = "", 0
        self._limit_s, self._patience_s = limit_s, LARGE_S if is_large else 0.0

    def __enter__(self) -> Wait:
        _Watch.waits[id(self)] = self
        if not _Watch.is_running:
            _start()
        return self

    def __exit__(self, *_: object) -> None:
        _Watch.waits.pop(id(self), None)

    def retries(self, reason: str) -> None:
        """Note that the request is made again."""
        self.reason, self.n_retries = reason, self.n_retries + 1

    def waits_since(self, seconds: float) -> bool:
        """Return whether it has waited for so long, longer than its size explains."""
        patience_s = 0.0 if self.reason else self._patience_s
        return time.monotonic() - self.start_s >= seconds + patience_s

    def __str__(self) -> str:
        spent_s = time.monotonic() - self.start_s
        reason = self.reason or f"no answer for {spent_s:.0f} s"
        retried = f", retry {self.n_retries}" if self.n_retries else ""
        return f"{self.place}: {reason}{retried}, gives up after {self._limit_s:.0f} s"


class _Watch:
    """The thread of this process.

    Attributes:
        waits: The requests, by their identity.
        is_running: Whether there is a thread that looks at them.
        note: Receives notes.
        noted_s: When the last one was written.
    """

    waits: dict[int, Wait] = {}  # noqa: RUF012  there is one of this class
    is_running = False
    guard = threading.Lock()
    note: Note = logging.getLogger("strata").warning
    noted_s = -NOTE_EVERY_S


@contextmanager
def notes_sent_to(note: Note) -> Iterator[None]:
    """Let a function receive the notes of this process; else the logger `strata` does."""
    before, _Watch.note = _Watch.note, note
    try:
        yield
    finally:
        _Watch.note = before


def longest_wait(seconds: float) -> Wait | None:
    """Return a request of this process that has waited for so long, the longest; None if none."""
    waits = [wait for wait in list(_Watch.waits.values()) if wait.waits_since(seconds)]
    return min(waits, key=lambda wait: wait.start_s, default=None)


def _start() -> None:
    """Start the thread; a process that ends starts none."""
    with _Watch.guard, suppress(RuntimeError):
        if not _Watch.is_running:
            threading.Thread(target=_look, name="strata-waits", daemon=True).start()
            _Watch.is_running = True


def _look() -> None:
    while True:
        time.sleep(_LOOK_EVERY_S)
        with _Watch.guard:
            if not _Watch.waits:
                _Watch.is_running = False
                return
        wait = longest_wait(NOTE_AFTER_S)
        if wait is not None and time.monotonic() - _Watch.noted_s >= NOTE_EVERY_S:
            _Watch.noted_s = time.monotonic()
            with suppress(Exception):
                _Watch.note(f"waiting for {wait}")


def _after_fork() -> None:
    """Forget the requests of the parent, and its thread, which a fork does not have."""
    _Watch.waits, _Watch.is_running, _Watch.guard = {}, False, threading.Lock()


os.register_at_fork(after_in_child=_after_fork)
