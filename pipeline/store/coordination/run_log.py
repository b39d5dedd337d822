"""The run log: one JSON object per line, appended by `extract`, `collapse`, `copy` and `repair`.

It is for users and for `status`; extraction does not depend on it. Every event has `time`, `run_id`
(12 hex digits, or `repair-` and 8), `elapsed_s` (seconds since the run began, by a clock that
nobody sets) and `event`; the other fields depend on the event:

    run_started      units (how many), command
    unit_committed   report (fields of `UnitReport`)
    unit_failed      unit, slot, cause, error
    run_ended        failed (units), stopped (the signal, or empty)
    unit_taken_back  unit, problems: its commit was revoked by a repair
    repaired         units, swept (orphans removed), claims (replaced)
    dropped          utterances (how many), layers (which)
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

from pipeline.errors import StoreError
from pipeline.store.backend.base import Backend, Location
from pipeline.store.backend.opening import open_backend
from pipeline.store.format.layout import LOG

_PART_BYTES = 1 << 20
_LONGEST_LINE_BYTES = 1 << 24


class RunLog:
    """Appends the events of one run."""

    def __init__(self, store: Location, run_id: str) -> None:
        self._backend = open_backend(store)
        self._run_id = run_id
        self._start_s = time.monotonic()

    def write(self, event: str, **facts: Any) -> None:
        """Append one event with its facts; a log that cannot be written does not stop the run."""
        common = {"time": now(), "run_id": self._run_id, "event": event}
        elapsed = {"elapsed_s": round(time.monotonic() - self._start_s, 3)}
        line = json.dumps(common | facts | elapsed) + "\n"
        with suppress(StoreError):
            self._backend.append(LOG, line.encode())


def now() -> str:
    """Return the current time in UTC, ISO 8601 with milliseconds."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def read_log(
    store: Location, on_skipped: Callable[[], None] = lambda: None
) -> Iterator[dict[str, Any]]:
    """Yield the events, oldest first, with the fields that each has; other lines are skipped.

    Args:
        store: The store.
        on_skipped: Called for each line that is skipped, and if the log cannot be read on.
    """
    try:
        for line in _lines(open_backend(store)):
            event = _parse(line)
            if event is not None:
                yield event
            elif line.strip():
                on_skipped()
    except FileNotFoundError:
        return
    except (OSError, StoreError):
        on_skipped()


def _parse(line: bytes) -> dict[str, Any] | None:
    try:
        event = json.loads(line.decode(errors="replace"))
    except (ValueError, RecursionError):
        return None
    is_event = isinstance(event, dict) and event.keys() >= {"time", "run_id", "event"}
    return event if is_event else None


def _lines(backend: Backend) -> Iterator[bytes]:
    """Yield the lines of the log, read in parts: the log of a long run is large.

    Of a line that is longer than any event, as a crash may leave, only the end is yielded.
    """
    reader = backend.open_reader(LOG)
    rest, size = b"", reader.size
    for start in range(0, size, _PART_BYTES):
        *lines, rest = (rest + reader.read(start, min(_PART_BYTES, size - start))).split(b"\n")
        yield from lines
        rest = rest[-_LONGEST_LINE_BYTES:]
    yield rest
