"""The run log: one JSON object per line, appended by `extract`, `collapse` and `repair`.

It is for users and for `status`; extraction does not depend on it. Every event has `time`, `run_id`
(12 hex digits, or `repair-` and 8) and `event`; the other fields depend on the event:

    run_started      units (how many), command
    unit_committed   report (fields of `UnitReport`)
    unit_failed      unit, slot, cause, error
    run_ended        failed (units), stopped (the signal, or empty)
    unit_taken_back  unit, problems: its commit was revoked by a repair
    repaired         units, swept (orphans removed), claims (replaced)
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

from pipeline.errors import StoreError
from pipeline.store.backend.base import Backend, Location
from pipeline.store.backend.opening import open_backend
from pipeline.store.format.layout import LOG

_PART_BYTES = 1 << 20


class RunLog:
    """Appends the events of one run."""

    def __init__(self, store: Location, run_id: str) -> None:
        self._backend = open_backend(store)
        self._run_id = run_id

    def write(self, event: str, **facts: Any) -> None:
        """Append one event with its facts; a log that cannot be written does not stop the run."""
        line = json.dumps({"time": now(), "run_id": self._run_id, "event": event, **facts}) + "\n"
        with suppress(StoreError):
            self._backend.append(LOG, line.encode())


def now() -> str:
    """Return the current time in UTC, ISO 8601 with milliseconds."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def read_log(store: Location) -> Iterator[dict[str, Any]]:
    """Yield the events, oldest first; lines that a crash cut short are skipped."""
    for line in _lines(open_backend(store)):
        try:
            event = json.loads(line.decode(errors="replace"))
        except ValueError:
            continue
        if isinstance(event, dict) and event.keys() >= {"time", "run_id", "event"}:
            yield event


def _lines(backend: Backend) -> Iterator[bytes]:
    """Yield the lines of the log, read in parts: the log of a long run is large."""
    try:
        reader = backend.open_reader(LOG)
    except FileNotFoundError:
        return
    rest, size = b"", reader.size
    for start in range(0, size, _PART_BYTES):
        *lines, rest = (rest + reader.read(start, min(_PART_BYTES, size - start))).split(b"\n")
        yield from lines
    yield rest
