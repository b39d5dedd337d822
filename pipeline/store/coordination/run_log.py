"""The run log: one JSON object per line, appended by the driver.

It is a diary for people and for `status`; nothing depends on it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pipeline.store.format.layout import LOG


class RunLog:
    """Appends what happens in one run."""

    def __init__(self, root: Path, run_id: str) -> None:
        self._path = root / LOG
        self._run_id = run_id

    def write(self, event: str, **facts: Any) -> None:
        """Appends one event with its facts; a diary that cannot be written stops nobody."""
        line = json.dumps({"time": now(), "run_id": self._run_id, "event": event, **facts}) + "\n"
        with suppress(OSError), self._path.open("ab+", buffering=0) as file:
            if file.tell() and os.pread(file.fileno(), 1, file.tell() - 1) != b"\n":
                line = "\n" + line  # a crash has torn the line before
            file.write(line.encode())


def now() -> str:
    """This moment in UTC, ISO 8601 with milliseconds."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def read_log(root: Path) -> Iterator[dict[str, Any]]:
    """The events so far, oldest first; a line torn by a crash is passed over."""
    try:
        with (root / LOG).open(encoding="utf-8", errors="replace") as file:
            for line in file:
                try:
                    event = json.loads(line)
                except ValueError:
                    continue
                if isinstance(event, dict) and event.keys() >= {"time", "run_id", "event"}:
                    yield event
    except FileNotFoundError:
        return
