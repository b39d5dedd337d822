"""The run log: one JSON object per line, appended by the driver.

It is a diary for people and for `status`; nothing depends on it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

from pipeline.errors import StoreError
from pipeline.store.backend.base import Location
from pipeline.store.backend.opening import open_backend
from pipeline.store.format.layout import LOG


class RunLog:
    """Appends what happens in one run."""

    def __init__(self, store: Location, run_id: str) -> None:
        self._backend = open_backend(store)
        self._run_id = run_id

    def write(self, event: str, **facts: Any) -> None:
        """Appends one event with its facts; a diary that cannot be written stops nobody."""
        line = json.dumps({"time": now(), "run_id": self._run_id, "event": event, **facts}) + "\n"
        with suppress(StoreError):
            self._backend.append(LOG, line.encode())


def now() -> str:
    """This moment in UTC, ISO 8601 with milliseconds."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def read_log(store: Location) -> Iterator[dict[str, Any]]:
    """The events so far, oldest first; a line torn by a crash is passed over."""
    try:
        lines = open_backend(store).read(LOG).split(b"\n")
    except FileNotFoundError:
        return
    for line in lines:
        try:
            event = json.loads(line.decode(errors="replace"))
        except ValueError:
            continue
        if isinstance(event, dict) and event.keys() >= {"time", "run_id", "event"}:
            yield event
