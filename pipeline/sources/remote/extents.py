"""Bytes of remote files that were read last: each is fetched once while there is room.

Hundreds of segments of one recording, read by several threads, take the bytes of that recording
once. A thread that needs bytes which another one is fetching waits for them.
"""

from __future__ import annotations

import os
import threading
from bisect import bisect_right
from collections import OrderedDict
from dataclasses import dataclass, field

from pipeline.errors import AudioError
from pipeline.sources.remote.reading import Info, read_range, read_start

MAX_BYTES = 1 << 27
"""Bytes that a process keeps of all remote files: 128 MiB."""
START_BYTES = 1 << 12
"""Bytes that the first request for a file asks for: most headers."""
_MAX_INFOS = 1 << 17


@dataclass
class _File:
    """The extents of a file, which do not overlap.

    Attributes:
        starts: First byte of each, ascending.
        contents: Its bytes.
        flying: First byte of each range that is being fetched, and the byte after its last one.
    """

    starts: list[int] = field(default_factory=list)
    contents: list[bytes] = field(default_factory=list)
    flying: list[tuple[int, int]] = field(default_factory=list)

    def find(self, position: int) -> tuple[int, bytes] | None:
        """Return the extent with a byte, and its first byte."""
        i = bisect_right(self.starts, position) - 1
        if i < 0 or position >= self.starts[i] + len(self.contents[i]):
            return None
        return self.starts[i], self.contents[i]

    def is_flying(self, position: int) -> bool:
        """Return whether a byte is being fetched."""
        return any(start <= position < stop for start, stop in self.flying)

    def free_until(self, position: int, stop: int) -> int:
        """Return the end of the range from a byte on that is neither kept nor being fetched."""
        i = bisect_right(self.starts, position)
        limits = [self.starts[i]] if i < len(self.starts) else []
        limits += [start for start, _ in self.flying if start > position]
        return min([stop, *limits])


class Extents:
    """The bytes that are kept; thread-safe.

    Args:
        max_bytes: Bound on their number.
    """

    def __init__(self, max_bytes: int = MAX_BYTES) -> None:
        self.max_bytes = max_bytes
        self.reset()

    def forget(self) -> None:
        """Forget everything: files may have changed."""
        with self._changed:
            self._files.clear()
            self._sizes.clear()
            self._infos.clear()
            self._n_bytes = 0

    def reset(self) -> None:
        """Forget everything, also who holds the lock: a thread of the process before a fork."""
        self._changed = threading.Condition()
        self._files: dict[str, _File] = {}
        self._sizes: OrderedDict[tuple[str, int], int] = OrderedDict()  # last used at the end
        self._infos: OrderedDict[str, Info] = OrderedDict()
        self._n_bytes = 0

    def info(self, uri: str) -> Info:
        """Return the size and the stamp of a file, as they were when it was read first.

        Raises:
            AudioError: It does not exist.
            SourceError: The server does not answer, or refuses it.
        """
        with self._changed:
            known = self._infos.get(uri)
        if known is not None:
            return known
        content, info = read_start(uri, START_BYTES)
        with self._changed:
            self._infos[uri] = info
            if len(self._infos) > _MAX_INFOS:
                self._infos.popitem(last=False)
            self._keep(self._files.setdefault(uri, _File()), uri, 0, content)
        return info

    def read(self, uri: str, position: int, n_ahead: int) -> tuple[int, bytes]:
        """Return bytes of a file among which is one that is wanted, and the first of them.

        Args:
            uri: The file.
            position: The wanted byte; it exists.
            n_ahead: Number of bytes to fetch, if they are not there.

        Raises:
            AudioError: The file does not exist, or has changed since it was read first.
            SourceError: The server does not answer, or refuses it.
        """
        info, changed = self.info(uri), self._changed
        with changed:
            while True:
                file = self._files.setdefault(uri, _File())
                found = file.find(position)
                if found is not None:
                    self._sizes.move_to_end((uri, found[0]))
                    return found
                if not file.is_flying(position):
                    break
                changed.wait()
            stop = file.free_until(position, min(position + n_ahead, info.n_bytes))
            file.flying.append((position, stop))
        content = b""
        try:
            content = read_range(uri, position, stop - position, info.stamp)
        except AudioError:
            with changed:
                self._infos.pop(uri, None)
            raise
        finally:
            with changed:
                file.flying.remove((position, stop))
                self._keep(file, uri, position, content)
                changed.notify_all()
        return position, content

    def all_of(self, uri: str, start: int, n_bytes: int) -> bytes:
        """Return a range of a file, all of which exists; what is missing is fetched, and no more.

        Raises:
            AudioError: As for `read`.
            SourceError: As for `read`.
        """
        parts, position, stop = [], start, start + n_bytes
        while position < stop:
            first, content = self.read(uri, position, stop - position)
            part = content[position - first : stop - first]
            parts.append(part)
            position += len(part)
        return b"".join(parts)

    def _keep(self, file: _File, uri: str, start: int, content: bytes) -> None:
        """Keep an extent; drop those that were not used for longest."""
        if not content or self._files.get(uri) is not file or file.find(start) is not None:
            return
        content = content[: file.free_until(start, start + len(content)) - start]
        i = bisect_right(file.starts, start)
        file.starts.insert(i, start)
        file.contents.insert(i, content)
        self._sizes[uri, start] = len(content)
        self._n_bytes += len(content)
        while self._n_bytes > self.max_bytes and len(self._sizes) > 1:
            (name, first), n_bytes = self._sizes.popitem(last=False)
            self._n_bytes -= n_bytes
            other = self._files[name]
            i = bisect_right(other.starts, first) - 1
            del other.starts[i], other.contents[i]
            if not other.starts and not other.flying:
                del self._files[name]


extents = Extents()
"""Those of this process."""
os.register_at_fork(after_in_child=extents.reset)
