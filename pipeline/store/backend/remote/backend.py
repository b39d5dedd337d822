"""A store in a bucket."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from copy import copy
from typing import Any, Self

from pipeline.files import UNKNOWN_BYTES
from pipeline.objects.base import Objects
from pipeline.objects.client import ObjectClient
from pipeline.objects.listing import list_folder
from pipeline.objects.parallel import run_parallel
from pipeline.objects.requests import Limits
from pipeline.store.backend.base import Backend, Buffer, Map, ObjectReader
from pipeline.store.backend.ends import CheckCopy, End
from pipeline.store.backend.memory import MemoryReader
from pipeline.store.backend.remote.cache_folder import CacheFolder
from pipeline.store.backend.remote.cached_reader import CachedReader
from pipeline.store.backend.remote.leases import RemoteLeases
from pipeline.store.backend.remote.lines import LineWriter
from pipeline.store.backend.remote.partial_object import MemoryObject
from pipeline.store.backend.remote.parts import is_part, whole_key
from pipeline.store.backend.remote.reader import RemoteReader

_PUTS_IN_FLIGHT = 8
_READS_IN_FLIGHT = 32


class RemoteBackend(Backend):
    """A store below a prefix of a bucket.

    Large objects are collected in memory and written by plain puts, under keys that are unique to
    an attempt. Commits and claims are conditional creations of small objects. A write has arrived
    when the server has answered; nothing that is half-written is ever visible.

    Args:
        uri: The bucket and the prefix, or a client of them.
        limits: How long to wait for the server.
    """

    max_readers = 4096
    parallel_reads = _READS_IN_FLIGHT
    replaces_cheaply = False
    writes_in_memory = True

    _cache: CacheFolder | None = None
    _check: CheckCopy | None = None

    def __init__(self, uri: str | ObjectClient, limits: Limits | None = None) -> None:
        client = ObjectClient(uri, limits) if isinstance(uri, str) else uri
        self._client: Objects = client
        self._lines, self._leases = LineWriter(client), RemoteLeases(client)

    def __reduce__(self) -> tuple[Any, ...]:
        return RemoteBackend, (self._client,), self.__getstate__()

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and self._client == other._client

    def __hash__(self) -> int:
        return hash(self._client)

    def __repr__(self) -> str:
        return f"RemoteBackend({self.uri!r})"

    @property
    def uri(self) -> str:
        """The URI of the prefix."""
        return self._client.uri

    @property
    def client(self) -> Objects:
        """The objects below the prefix."""
        return self._client

    def locate(self, key: str) -> str:
        """Return the URI of an object."""
        return self._client.locate(key)

    @property
    def reads_wait(self) -> bool:  # type: ignore[override]
        """Whether reads wait for the server; those of copies do not."""
        return self._cache is None

    def cached(self, folder: CacheFolder) -> Self:
        """Return the same store, with whole copies of what is read often in a folder."""
        backend = copy(self)
        backend._cache = folder
        return backend

    def check_copies(self, check: CheckCopy, n_bytes: int) -> None:
        """Have copies checked before they are used."""
        if self._cache is not None:
            self._cache.check_bound(n_bytes)
            self._check = check

    def __getstate__(self) -> dict[str, Any]:
        return {"_cache": self._cache}  # a store that is loaded checks copies by itself

    # Reading

    def read(self, key: str) -> bytes:
        """Read a whole object, or the parts of one in their order."""
        try:
            return self._client.get(key)
        except FileNotFoundError:
            content = self._read_parts(key)
            if content is None:
                raise
            return content

    def open_reader(self, key: str, *, whole: bool = False, end: End | None = None) -> ObjectReader:
        """Open an object by asking for its size and ETag; with an end, by no request."""
        if end is not None:
            reader = RemoteReader(self._client, key, end)
            return reader if self._cache is None else CachedReader(reader, self._cache, self._check)
        try:
            return RemoteReader(self._client, key)
        except FileNotFoundError:
            content = self._read_parts(key)
            if content is None:
                raise
            return MemoryReader(content)

    def exists(self, key: str) -> bool:
        """Return whether there is an object."""
        return self._client.exists(key) or bool(self._parts(key))

    def size(self, key: str) -> int:
        """Return the bytes of an object."""
        try:
            return self._client.head(key).size
        except FileNotFoundError:
            parts = self._parts(key)
            if not parts:
                raise
            return len(self._read_parts(key) or b"")

    def modified_s(self, key: str) -> float:
        """Return when an object was written, by the server's clock."""
        try:
            return self._client.head(key).modified_s
        except FileNotFoundError:
            parts = self._parts(key)
            if not parts:
                raise
            return max(info.modified_s for info in self._client.list(key))

    def list(self, prefix: str = "") -> Iterator[str]:
        """List the keys below a folder; what is kept in parts is one object."""
        seen = set()
        for info in self._client.list(prefix):
            key = whole_key(info.key)
            if key == info.key or key not in seen:
                seen.add(key)
                yield key

    def children(self, folder: str) -> Sequence[str]:
        """List the names directly below a folder, by one request for each thousand of them."""
        return [name for name in self._client.children(folder) if not is_part(name)]

    def stamps(self, folder: str, expected: Sequence[str] = ()) -> dict[str, str]:
        """Stamp each object by its size and its ETag, which differs with the content."""
        return {
            info.key.rpartition("/")[2]: f"{info.size}-{info.etag or info.modified_s}"
            for info in list_folder(self._client, folder, expected)
            if not is_part(info.key)
        }

    # Writing

    def put(self, key: str, parts: Sequence[Buffer]) -> None:
        """Write an object."""
        self._client.put(key, parts)

    def put_if_absent(self, key: str, parts: Sequence[Buffer]) -> bool:
        """Create an object conditionally; on any doubt, read back what is there."""
        return self._client.create(key, b"".join(parts))

    def open_partial(self, key: str) -> MemoryObject:
        """Begin an object in memory."""
        return MemoryObject(key)

    def publish(self, partials: Sequence[MemoryObject], run: Map = map) -> None:
        """Write all objects, several at a time; `run` is not needed: threads only wait here."""
        run_parallel(self._publish, partials, _PUTS_IN_FLIGHT)

    def append(self, key: str, line: bytes) -> None:
        """Append a line, by one request."""
        self._lines.append(key, line)

    def delete(self, key: str) -> None:
        """Delete an object, if it exists."""
        self._client.delete(key)

    def sync(self, folder: str) -> None:
        """Do nothing: a deletion that was answered has been made."""

    def ensure_folder(self, folder: str) -> None:
        """Do nothing: folders exist while there are objects in them."""

    def free_bytes(self) -> int:
        """Return 2**62: a bucket does not say how much it can take."""
        return UNKNOWN_BYTES

    @property
    def leases(self) -> RemoteLeases:
        """Leases as numbered objects."""
        return self._leases

    def _publish(self, partial: MemoryObject) -> None:
        self._client.put(partial.key, [partial.take()])

    def _parts(self, key: str) -> Sequence[str]:
        """Return the keys of the parts of an object, in their order."""
        return sorted(info.key for info in self._client.list(key) if is_part(info.key))

    def _read_parts(self, key: str) -> bytes | None:
        """Return the parts of an object, one after the other; None if it has none."""
        keys = self._parts(key)
        if not keys:
            return None
        found = run_parallel(self._client.get, keys, _READS_IN_FLIGHT)
        contents = [content for content in found if content]
        ended = (text if text.endswith(b"\n") else text + b"\n" for text in contents[:-1])
        return b"".join([*ended, *contents[-1:]])
