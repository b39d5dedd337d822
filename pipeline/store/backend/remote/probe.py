"""A trial of what commits depend on: that of several creators of an object exactly one succeeds.

Some servers accept the condition and ignore it. Two drivers would then both commit.
"""

from __future__ import annotations

import threading
import uuid
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import PurePosixPath

from pipeline import files
from pipeline.errors import NoSpaceError, StoreError
from pipeline.objects.client import ObjectClient
from pipeline.store.format.layout import LEASE

N_RACERS = 8
_N_TRIALS = 3
"""A driver that has just got the lease may clean up the objects of another driver's trial."""
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
    for n_left in reversed(range(_N_TRIALS)):
        keys = [_trial_key() for _ in range(2)]
        try:
            _try_conditions(client, *keys)
        except _RefusedError as error:
            is_cleaned = _is_any_missing(client, keys)
            _delete(client, keys)
            if n_left == 0 or not is_cleaned:
                raise _refusal(client, str(error)) from error.__cause__
        except BaseException:
            _delete(client, keys)
            raise
        else:
            break
    for key in keys:
        client.delete(key)  # raises if this user may not: later objects would stay as well
    _honoured.add(client)


class _RefusedError(Exception):
    """A trial that failed; the text says what the server did."""


def _try_conditions(client: ObjectClient, first: str, second: str) -> None:
    try:
        if not client.create(first, b"first"):
            raise _RefusedError("an object that was not there could not be created")
        if client.create(first, b"second") or _get(client, first) != b"first":
            raise _RefusedError("the same object was created twice")
        winners = _race(client, second)
        if len(winners) != 1 or _get(client, second) != winners[0]:
            raise _RefusedError(f"{len(winners)} of {N_RACERS} clients created the same object")
        names = set(client.children(""))
        if not {first, second} <= names:
            raise _RefusedError("a list lacks what was just written")
    except NoSpaceError:
        raise
    except StoreError as error:
        if any(sign in str(error) for sign in _UNSUPPORTED):
            raise _RefusedError(str(error)) from error
        raise


def _get(client: ObjectClient, key: str) -> bytes | None:
    """Return the content of an object, or None if it is gone."""
    try:
        return client.get(key)
    except FileNotFoundError:
        return None


def _is_any_missing(client: ObjectClient, keys: Sequence[str]) -> bool:
    """Return whether objects of a trial are gone; before the race, the second one always is."""
    return not set(keys) <= set(client.children(""))


def _delete(client: ObjectClient, keys: Sequence[str]) -> None:
    for key in keys:
        with suppress(StoreError):
            client.delete(key)


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
