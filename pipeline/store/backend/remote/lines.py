"""Logs: lines that are appended, in objects of up to 64 KiB that their writer replaces."""

from __future__ import annotations

import os
import threading
import time
import uuid

from pipeline.objects.client import ObjectClient
from pipeline.store.backend.remote.parts import part_key

_PART_BYTES = 1 << 16
"""Lines in one object, about. Each line costs one request, which repeats the lines before it."""


class LineWriter:
    """Appends lines to the logs of one store.

    Every writer has objects of its own, named by the time at which it began them, so that none
    waits for another one, and the lines of several are in order about.
    """

    def __init__(self, client: ObjectClient) -> None:
        self._client = client
        self._open: dict[str, tuple[str, bytes]] = {}  # by key: the part, and its lines
        self._guard, self._pid = threading.Lock(), os.getpid()

    def append(self, key: str, line: bytes) -> None:
        """Append a line.

        Raises:
            StoreError: It cannot be written.
        """
        if self._pid != os.getpid():  # a fork: the parts that are open are the parent's
            self._open, self._guard, self._pid = {}, threading.Lock(), os.getpid()
        with self._guard:
            name, lines = self._open.get(key, ("", b""))
            if not name or len(lines) + len(line) > _PART_BYTES:
                name, lines = f"{time.time_ns():020d}-{uuid.uuid4().hex[:8]}", b""
            if lines and not lines.endswith(b"\n"):
                lines += b"\n"
            lines += line
            self._client.put(part_key(key, name), [lines])
            self._open[key] = (name, lines)
