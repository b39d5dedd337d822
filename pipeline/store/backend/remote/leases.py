"""Leases in a bucket: numbered objects, of which the highest number is the lease that stands.

A lease is made by the conditional creation of the next number, so of any number of drivers exactly
one succeeds. It is released, and removed when it has expired, by replacing it with an empty object:
the highest number stays, so that no driver with an old list makes a lower one that seems to stand.
The holder records heartbeats in an object beside its own. Their age is the difference of two times
of the server: no clock of another machine matters.

    KEY/~000000000007         the lease: what its holder wrote, or nothing once it has ended
    KEY/~000000000007.beat    its heartbeat
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from pipeline.errors import StoreError
from pipeline.objects.base import ObjectInfo
from pipeline.objects.client import ObjectClient
from pipeline.store.backend.base import FoundLease, LeaseOperations
from pipeline.store.backend.remote.parts import part_key, part_name
from pipeline.store.backend.remote.probe import check_server

_BEAT = ".beat"
_NUMBER = re.compile(r"(\d{12})")


class RemoteLeases(LeaseOperations):
    """The leases of one store."""

    def __init__(self, client: ObjectClient) -> None:
        self._client = client
        self._contents: dict[str, bytes] = {}  # of numbers, which never change until they end
        self._own: dict[bytes, int] = {}  # numbers of the leases that were made here

    def check(self) -> str:
        """Try whether the server honours conditional creation."""
        check_server(self._client)
        return ""

    @contextmanager
    def lock(self, key: str, timeout_s: float) -> Iterator[float]:
        """Lock nothing; yield the server's time, which it gives to an object that is written now.

        The creation of the next number decides between drivers.
        """
        self._client.put(key, [b""])
        try:
            now_s = self._client.head(key).modified_s
        except OSError as error:
            raise StoreError(
                f"{self._client.locate(key)} cannot be read: {error.strerror or error}"
            ) from error
        yield now_s

    def now_s(self) -> float:
        """Return the server's time, which stands in every answer."""
        return self._client.server_time_s()

    def find(self, key: str) -> FoundLease | None:
        """Read the highest number, and the time of its heartbeat."""
        return self._find(key)[1]

    def create(self, key: str, content: bytes) -> bool:
        """Create the next number, unless the highest one stands."""
        try:
            number, found = self._find(key)
            if found is not None or not self._client.create(_lease(key, number + 1), content):
                return False
            if self._find(key)[0] != number + 1:  # the list was old: others came and went
                self._client.delete(_lease(key, number + 1))
                return False
            self._own[content] = number + 1
            self._tidy(key, number + 1)
        except OSError as error:
            raise StoreError(
                f"{self._client.locate(key)} cannot be read: {error.strerror or error}"
            ) from error
        return True

    def beat(self, key: str, content: bytes) -> None:
        """Write the heartbeat; readers ignore one of a lease that has ended."""
        if content in self._own:
            self._client.put(_lease(key, self._own[content]) + _BEAT, [b""])

    def expire(self, key: str, is_live: Callable[[FoundLease], bool]) -> None:
        """Empty the highest number, unless it is live."""
        number, found = self._find(key)
        if found is not None and not is_live(found):
            self._client.put(_lease(key, number), [b""])

    def release(self, key: str, content: bytes) -> None:
        """Empty the caller's number, and delete its heartbeat."""
        number = self._own.pop(content, None)
        if number is not None:
            self._client.put(_lease(key, number), [b""])
            self._client.delete(_lease(key, number) + _BEAT)

    def _find(self, key: str) -> tuple[int, FoundLease | None]:
        """Return the highest number, 0 if there is none, and its lease if that stands."""
        objects, _ = self._client.list_folder(key)
        by_name: dict[str, ObjectInfo] = {part_name(info.key): info for info in objects}
        numbers = [int(name) for name in by_name if _NUMBER.fullmatch(name)]
        if not numbers:
            return 0, None
        place = _lease(key, max(numbers))
        lease = by_name[part_name(place)]
        content = self._content(place, lease)
        if not content:
            return max(numbers), None
        beat = by_name.get(part_name(place) + _BEAT, lease)
        return max(numbers), FoundLease(content, max(lease.modified_s, beat.modified_s))

    def _content(self, place: str, info: ObjectInfo) -> bytes:
        if not info.size:
            return b""
        if place not in self._contents:
            try:
                self._contents[place] = self._client.get(place)
            except FileNotFoundError:
                return b""  # a higher number stands, and this one was removed
        return self._contents[place]

    def _tidy(self, key: str, number: int) -> None:
        """Delete the objects of earlier leases; a failure leaves them to the next driver."""
        with suppress(OSError, StoreError):
            for info in self._client.list_folder(key)[0]:
                match = _NUMBER.match(part_name(info.key))
                if match and int(match[1]) < number:
                    self._client.delete(info.key)


def _lease(key: str, number: int) -> str:
    return part_key(key, f"{number:012d}")
