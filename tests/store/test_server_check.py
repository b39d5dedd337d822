"""What a driver finds out about the server of a bucket before it begins."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from pipeline.errors import NoSpaceError, StoreError
from pipeline.store.backend.remote.probe import N_RACERS, check_server


class FakeClient:
    """A server in this process, sound unless a method is replaced.

    Attributes:
        objects: The objects.
        n_lists: Lists that were asked for.
    """

    uri = "s3://bucket/store"
    server = "the server"

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.n_lists = 0
        self._lock = threading.Lock()

    def create(self, key: str, content: bytes) -> bool:
        with self._lock:
            return self.objects.setdefault(key, content) is content

    def get(self, key: str) -> bytes:
        if key not in self.objects:
            raise FileNotFoundError(key)
        return self.objects[key]

    def delete(self, key: str) -> None:
        self.objects.pop(key, None)

    def children(self, folder: str) -> list[str]:
        self.n_lists += 1
        return list(self.objects)


def unconditional(client: FakeClient) -> None:
    """Overwrite what is there."""

    def create(key: str, content: bytes) -> bool:
        client.objects[key] = content
        return True

    client.create = create  # type: ignore[method-assign]


def racy(client: FakeClient) -> None:
    """Refuse an object that has been there for long, but not one of another request."""
    real = client.create
    barrier = threading.Barrier(N_RACERS)

    def create(key: str, content: bytes) -> bool:
        if content.startswith(b"client"):
            barrier.wait()
            client.objects[key] = content
            return True
        return real(key, content)

    client.create = create  # type: ignore[method-assign]


def hiding(client: FakeClient) -> None:
    """List nothing of what is new."""
    client.children = lambda folder: []  # type: ignore[method-assign]


LACKS: dict[str, Callable[[FakeClient], None]] = {
    "the same object was created twice": unconditional,
    f"{N_RACERS} of {N_RACERS} clients created the same object": racy,
    "a list lacks what was just written": hiding,
}


@pytest.mark.parametrize("words", LACKS)
def test_what_a_server_lacks_is_named(words: str) -> None:
    """With the address and a remedy; nothing is left."""
    client = FakeClient()
    LACKS[words](client)
    pattern = rf"^s3://bucket/store: the server does not support .*\({words}\).*strata copy"
    with pytest.raises(StoreError, match=pattern):
        check_server(client)  # type: ignore[arg-type]
    assert client.objects == {}


def test_a_place_is_tried_once() -> None:
    """And nothing is left."""
    client = FakeClient()
    for _ in range(2):
        check_server(client)  # type: ignore[arg-type]
    assert client.n_lists == 1
    assert client.objects == {}


@pytest.mark.parametrize("step", [b"second", b"client", "get"])
def test_another_driver_may_clean_up_the_trial(step: bytes | str) -> None:
    """Before any of its steps; the trial is made again."""
    client = FakeClient()
    real_create, real_get, left = client.create, client.get, [None]

    def clean_up() -> None:
        if left:
            left.pop()
            client.objects.clear()

    def create(key: str, value: bytes) -> bool:
        if isinstance(step, bytes) and value.startswith(step):
            clean_up()
        return real_create(key, value)

    def get(key: str) -> bytes:
        if step == "get":
            clean_up()
        return real_get(key)

    client.create, client.get = create, get  # type: ignore[method-assign]
    check_server(client)  # type: ignore[arg-type]
    assert not left
    assert client.objects == {}


def test_a_race_with_two_winners_is_enough() -> None:
    """The trial is made again only if its objects are gone, and not until it succeeds."""
    client = FakeClient()
    real, second_winner = client.create, iter([True])

    def create(key: str, value: bytes) -> bool:
        return real(key, value) or (value.startswith(b"client") and next(second_winner, False))

    client.create = create  # type: ignore[method-assign]
    with pytest.raises(StoreError, match=f"2 of {N_RACERS} clients created the same object"):
        check_server(client)  # type: ignore[arg-type]
    assert client.objects == {}


def test_full_storage_is_told_as_such() -> None:
    """It is not taken for something that the server lacks."""
    client = FakeClient()

    def create(key: str, content: bytes) -> bool:
        raise NoSpaceError("the storage is full: 400 Bad Request")

    client.create = create  # type: ignore[method-assign]
    with pytest.raises(NoSpaceError):
        check_server(client)  # type: ignore[arg-type]
