"""A bucket and a prefix: reads, ranged reads, lists, writes and conditional creation."""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from pipeline.errors import NoSpaceError, StoreError, UnansweredError
from pipeline.files import Buffer
from pipeline.objects.base import ObjectInfo, Objects
from pipeline.objects.failures import Action, read_failure
from pipeline.objects.library import load_obstore
from pipeline.objects.requests import (
    Limits,
    PassingError,
    RequestError,
    Requests,
    as_os_error,
    is_failure,
)
from pipeline.objects.server import Server, find_server, server_time_s
from pipeline.objects.uri import ObjectUri, parse_uri

Result = TypeVar("Result")

SINGLE_PUT_BYTES = 64 << 20
"""The largest object that is written by one request. A larger one goes up in parts of
`PART_BYTES`, of which a crash leaves those that have arrived, invisible but stored."""
PART_BYTES = 32 << 20
PARTS_IN_FLIGHT = 4
_SMALL_BYTES = 1 << 20
_RANGE_NOT_SATISFIABLE = 416
_NOT_PARTIAL = "non-partial response"
_WITHOUT_REASON = (400, 401, 403)
"""Failures whose reason is in the content of an answer; the answer to a HEAD has none."""
_without_ranges: set[Server] = set()
"""Servers that answer a request for a range with the whole object, or say that they do (rclone)."""
LIST_PAGE = 1000
"""Objects that a server lists at a time."""


class ObjectClient(Objects):
    """The objects below a prefix of a bucket. Safe to use from several threads and after a fork.

    It pickles with the address of the server and no credentials; those come from the environment
    of the process that loads it.

    Reads raise a FileNotFoundError for a missing object and another OSError otherwise; its
    `filename` is the object's URI. Writes raise a StoreError.

    Args:
        uri: The bucket and the prefix.
        limits: How long to wait for the server.
        server: The server; by default that of the environment.

    Raises:
        ConfigError: The URI or the environment names no usable server.
    """

    def __init__(
        self, uri: str | ObjectUri, limits: Limits | None = None, server: Server | None = None
    ) -> None:
        self._uri = parse_uri(uri) if isinstance(uri, str) else uri
        self._requests = Requests(server or find_server(self._uri), limits or Limits())

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and self._identity == other._identity

    def __hash__(self) -> int:
        return hash(self._identity)

    def __repr__(self) -> str:
        return f"ObjectClient({str(self._uri)!r})"

    @property
    def _identity(self) -> tuple[ObjectUri, Server]:
        return self._uri, self._requests.server

    @property
    def uri(self) -> str:
        """The URI of the prefix."""
        return str(self._uri)

    @property
    def place(self) -> ObjectUri:
        """The bucket and the prefix."""
        return self._uri

    @property
    def limits(self) -> Limits:
        """How long to wait for the server."""
        return self._requests.limits

    @property
    def server(self) -> Server:
        """The server, which has its name as text."""
        return self._requests.server

    def locate(self, key: str) -> str:
        """Return the URI of an object."""
        return f"{self._uri}/{key}" if key else str(self._uri)

    def server_time_s(self) -> float:
        """Return the time by the server's clock, in seconds since the epoch."""
        return server_time_s(self.server)

    # Reading

    def get(self, key: str) -> bytes:
        """Read a whole object."""
        return bytes(self._read(key, lambda: self._fetch(key))[0])

    def fetch(
        self, key: str, start: int, length: int, etag: str = ""
    ) -> tuple[memoryview, ObjectInfo]:
        """Read a range of an object as `get_range` does, with what the server says of it.

        Raises:
            EOFError: The object ends before.
            OSError: It cannot be read, or has changed; then its `errno` is ESTALE.
        """
        return self._read(key, lambda: self._fetch(key, start, length, etag))

    def head(self, key: str) -> ObjectInfo:
        """Return the size, the ETag and the time of an object."""
        return self._read(key, lambda: self._head(key))

    def list(self, prefix: str = "", offset: str = "", last: str = "") -> Sequence[ObjectInfo]:
        """List the objects below a folder, in any order; a missing folder has none.

        Args:
            prefix: The folder, relative to the client's prefix.
            offset: List only keys after this one in the order of their bytes.
            last: List no keys after this one. Pages after it are not asked for.
        """
        folder = self._path(prefix.rstrip("/")) or None
        after = self._path(offset) if offset else None
        until = self._path(last) if last else None
        found = self._read(prefix, lambda: self._list(folder, after, until), "list")
        return [self._info(item) for item in found]

    def has_any(self, prefix: str = "") -> bool:
        """Return whether there is an object below a folder, by one request."""
        folder = self._uri.key(prefix.rstrip("/")) or None

        def first() -> bool:
            pages = load_obstore().list(self._requests.listing(), folder, chunk_size=1)
            return any(len(page) for page in pages)

        return self._read(prefix, first, "list")

    def list_folder(self, folder: str = "") -> tuple[Sequence[ObjectInfo], Sequence[str]]:
        """Return the objects directly below a folder, and the names of the folders there."""
        place = self._path(folder.rstrip("/")) or None
        found = self._read(
            folder,
            lambda: load_obstore().list_with_delimiter(self._requests.listing(), place),
            "list",
        )
        names = [path.rstrip("/").rpartition("/")[2] for path in found["common_prefixes"]]
        return [self._info(item) for item in found["objects"]], names

    # Writing

    def put(self, key: str, parts: Sequence[Buffer]) -> None:
        """Write an object, replace an older one; readers see the old one or the new one.

        Raises:
            NoSpaceError: The storage is full.
            StoreError: The object cannot be written.
        """
        content = _joined(parts)
        is_small = len(content) <= _SMALL_BYTES

        def send() -> None:
            store = self._requests.small() if is_small else self._requests.writing()
            load_obstore().put(
                store,
                self._path(key),
                content,
                use_multipart=len(content) > SINGLE_PUT_BYTES,
                chunk_size=PART_BYTES,
                max_concurrency=PARTS_IN_FLIGHT,
            )

        self._write(key, send, is_large=not is_small)

    def create(self, key: str, content: Buffer) -> bool:
        """Create a small object, unless there is one under the key already.

        On any doubt the object is read back. One with this very content counts as created by this
        call: a request whose answer was lost may have done it. So callers that race give each its
        own content.

        Returns:
            False if there was one with another content; it is left as it was.

        Raises:
            NoSpaceError: The storage is full.
            UnansweredError: A request was sent and not answered: the object may appear later.
            StoreError: The object cannot be created.
        """
        data = _joined([content])

        def send() -> bool:
            try:
                load_obstore().put(self._requests.small(), self._path(key), data, mode="create")
            except BaseException as error:
                if not is_failure(error):
                    raise
                failure = read_failure(error)
                if failure.is_denied:
                    raise
                found = self._try_read(key, is_there=failure.is_conflict)
                if found is not None:
                    return found == data
                if failure.is_conflict:  # a request that was under way, and came to nothing
                    raise PassingError(failure.reason) from None
                raise
            return True

        return self._write(key, send, is_creation=True)

    def delete(self, key: str) -> None:
        """Delete an object, if it exists."""

        def send() -> None:
            try:
                load_obstore().delete(self._requests.small(), self._path(key))
            except FileNotFoundError:
                return

        self._write(key, send, "delete")

    def _try_read(self, key: str, is_there: bool) -> bytes | None:
        """Return the content of an object; None if there is none, or it cannot be read now.

        Raises:
            UnansweredError: It is there, and this user may not read it, so its creator is unknown.
        """
        try:
            return bytes(self._fetch(key)[0])
        except PassingError:
            return None
        except BaseException as error:
            if not is_failure(error):
                raise
            failure = read_failure(error)
            if failure.is_denied and is_there:
                refused = RequestError(failure, 0.0, is_unanswered=True)
                cause = as_os_error(refused, self.locate(key), self.server, "read")
                raise UnansweredError(
                    f"{self.locate(key)} exists and cannot be read back: {cause.strerror}"
                ) from cause
            return None

    def _head(self, key: str) -> ObjectInfo:
        try:
            return self._info(load_obstore().head(self._requests.small(), self._path(key)))
        except BaseException as error:
            if is_failure(error) and read_failure(error).status in _WITHOUT_REASON:
                return self._fetch(key, 0, 1)[1]  # the content of its answer has the reason
            raise

    def _fetch(
        self, key: str, start: int = 0, length: int = -1, etag: str = ""
    ) -> tuple[memoryview, ObjectInfo]:
        options: dict[str, Any] = {"if_match": etag} if etag else {}
        is_cut = length >= 0 and self.server in _without_ranges
        if length >= 0 and not is_cut:
            options["range"] = (start, start + length)
        store = self._requests.reading()
        try:
            found = load_obstore().get(store, self._path(key), options=options)
        except BaseException as error:
            if "range" in options and _NOT_PARTIAL in str(error):
                _without_ranges.add(self.server)
                raise PassingError("the server answers ranges with whole objects") from None
            raise
        info = self._info(found.meta)
        if etag and info.etag != etag:
            raise _changed(self.locate(key))
        expected = info.size if length < 0 else min(length, max(0, info.size - start))
        content = memoryview(found.bytes())
        if is_cut:
            content = content[start : start + length]
        if len(content) != expected:
            raise PassingError(f"{len(content)} bytes came of {expected}")
        if expected < length:
            raise EOFError(f"{self.locate(key)} ends at byte {info.size}")
        return content, info

    def _list(self, folder: str | None, after: str | None, until: str | None) -> Sequence[Any]:
        found: list[Any] = []
        for page in load_obstore().list(
            self._requests.listing(), folder, offset=after, chunk_size=LIST_PAGE
        ):
            found += page
            if until is not None and page and page[-1]["path"] >= until:
                break
        # some servers do not know where to begin, and list everything
        return [
            item
            for item in found
            if (after is None or item["path"] > after) and (until is None or item["path"] <= until)
        ]

    def _info(self, meta: Any) -> ObjectInfo:
        modified_s = meta["last_modified"].timestamp()
        key = self._key(meta["path"])
        return ObjectInfo(key, meta["size"], meta["e_tag"] or "", modified_s)

    def _path(self, key: str) -> str:
        """Return the path within the bucket of an object."""
        return self._uri.key(key)

    def _key(self, path: str) -> str:
        """Return the key of an object from its path within the bucket."""
        return path[len(self._uri.prefix) + 1 :] if self._uri.prefix else path

    def _read(self, key: str, request: Callable[[], Result], action: Action = "read") -> Result:
        try:
            return self._requests.repeat(request, self.locate(key))
        except RequestError as error:
            if error.failure.status == _RANGE_NOT_SATISFIABLE:
                raise EOFError(f"{self.locate(key)} ends before") from None
            if error.failure.is_conflict:
                raise _changed(self.locate(key)) from None
            raise as_os_error(error, self.locate(key), self.server, action) from None

    def _write(
        self,
        key: str,
        request: Callable[[], Result],
        action: Action = "write",
        is_creation: bool = False,
        is_large: bool = False,
    ) -> Result:
        try:
            return self._requests.repeat(request, self.locate(key), is_large)
        except RequestError as error:
            place = self.locate(key)
            if error.failure.is_full:
                raise NoSpaceError(
                    f"no space left to write {place}: {self.server}: {error}; what was committed "
                    "is safe: make room and run the same command again"
                ) from None
            cause = as_os_error(error, place, self.server, action)
            kind = UnansweredError if is_creation and error.is_unanswered else StoreError
            done = "deleted" if action == "delete" else "written"
            raise kind(f"{place} cannot be {done}: {cause.strerror}") from cause


def _joined(parts: Sequence[Buffer]) -> bytes | memoryview:
    """Return bytes in one piece, without a copy if they are."""
    if len(parts) == 1 and memoryview(parts[0]).nbytes:
        return memoryview(parts[0]).cast("B")
    return b"".join(parts)


def _changed(uri: str) -> OSError:
    return OSError(errno.ESTALE, "the object has changed since it was opened", uri)
