"""A trial of what commits depend on: that of several creators of an object exactly one succeeds.

Some servers accept the condition and ignore it. Two drivers would then both commit.
"""

from __future__ import annotations

import threading
import uuid
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import PurePosixPath

from pipeline import files
from pipeline.errors import NoSpaceError, StoreError
from pipeline.objects.client import ObjectClient
from pipeline.store.format.layout import LEASE

N_RACERS = 8
_honoured: set[ObjectClient] = set()
"""Places that have passed the trial in this process."""
_UNSUPPORTED = ("501 ", "NotImplemented", "400 Bad Request")


def check_server(client: ObjectClient) -> None:
    """Check that a server honours conditional creation, and shows at once what was written.

    An object is created twice, and another one by eight clients at a time. They are named like
    partial objects of the lease, which any clean-up removes. A process tries a place once.

    Raises:
        NoSpaceError: The storage is full.
        StoreError: The store cannot be written, or the server does not do what is needed; it is
            named, with what can be done.
    """
    if client in _honoured:
        return
    keys = [_trial_key() for _ in range(2)]
    try:
        _try_conditions(client, *keys)
    except BaseException:
        for key in keys:
            with suppress(StoreError):
                client.delete(key)
        raise
    for key in keys:
        client.delete(key)  # raises if this user may not: later objects would stay as well
    _honoured.add(client)


def _try_conditions(client: ObjectClient, first: str, second: str) -> None:
    try:
        if not client.create(first, b"first"):
            raise _refusal(client, "an object that was not there could not be created")
        if client.create(first, b"second") or client.get(first) != b"first":
            raise _refusal(client, "the same object was created twice")
        winners = _race(client, second)
        if len(winners) != 1 or client.get(second) != winners[0]:
            raise _refusal(client, f"{len(winners)} of {N_RACERS} clients created the same object")
        names = set(client.children(""))
        if not {first, second} <= names:
            raise _refusal(client, "a list lacks what was just written")
    except (NoSpaceError, OSError):
        raise
    except StoreError as error:
        if any(sign in str(error) for sign in _UNSUPPORTED):
            raise _refusal(client, str(error)) from error
        raise


def _race(client: ObjectClient, key: str) -> list[bytes]:
    """Return the contents of those who were told that they have created an object."""
    barrier = threading.Barrier(N_RACERS)

    def create(number: int) -> bytes | None:
        content = f"client {number} of {uuid.uuid4().hex}".encode()
        barrier.wait()
        return content if client.create(key, content) else None

    with ThreadPoolExecutor(N_RACERS) as pool:
        return [content for content in pool.map(create, range(N_RACERS)) if content is not None]


def _trial_key() -> str:
    return files.partial_name(PurePosixPath(LEASE)).name  # type: ignore[arg-type]


def _refusal(client: ObjectClient, what: str) -> StoreError:
    return StoreError(
        f"{client.uri}: {client.server} does not support conditional creation ({what}), on which "
        "commits depend; write to a local directory and `strata copy` it there"
    )
