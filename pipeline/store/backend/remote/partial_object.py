"""An object that is collected in memory and goes up whole."""

from __future__ import annotations

import threading

from pipeline.store.backend.base import Buffer, PartialObject


class MemoryObject(PartialObject):
    """Bytes that become an object when they are published.

    They are in memory, so that nothing waits for the server before an object is complete. While
    the objects of a unit go up, the next unit is encoded.
    """

    def __init__(self, key: str) -> None:
        self.key = key
        self._content = bytearray()
        self._guard = threading.Lock()

    def write(self, data: Buffer, offset: int) -> None:
        """Copy bytes to their place."""
        view = memoryview(data).cast("B")
        with self._guard:
            n_missing = offset + len(view) - len(self._content)
            if n_missing > 0:
                self._content.extend(bytes(n_missing))
            self._content[offset : offset + len(view)] = view

    def take(self) -> memoryview:
        """Return the content, and forget it."""
        content, self._content = self._content, bytearray()
        return memoryview(content)

    def discard(self) -> None:
        """Forget the content."""
        self._content = bytearray()
