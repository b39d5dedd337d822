"""One request after the other until one succeeds: obstore's stores, retries, and errors.

obstore itself retries only lists and the parts of a large object. Everything else is retried
here. So the creation of an object knows whether an earlier request for it was left unanswered.
"""

from __future__ import annotations

import errno
import random
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

from pipeline.errors import NoBucketError, RefusedError, UnreachableError
from pipeline.objects.failures import Action, Failure, read_failure
from pipeline.objects.library import generation, load_obstore
from pipeline.objects.profiles import profile_settings
from pipeline.objects.server import Server
from pipeline.objects.waiting import Wait

Result = TypeVar("Result")

_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.1, 10.0
_STORE_NAMES = {"s3": "S3Store", "gs": "GCSStore", "az": "AzureStore"}


@dataclass(frozen=True)
class Limits:
    """How long to wait for a server.

    Attributes:
        answer_s: For the answer to a small request, or for the next bytes of a large one.
        transfer_s: For a whole object, or for one part of a large one.
        retry_s: Until a request that fails is given up.
        first_retry_s: The same before any request of this process was answered: the address may
            be wrong.
        given_up_s: The same after a request of this process was given up, until one succeeds.
    """

    answer_s: float = 20.0
    transfer_s: float = 300.0
    retry_s: float = 120.0
    first_retry_s: float = 15.0
    given_up_s: float = 2.0


class PassingError(Exception):
    """A request that must be tried again. Raised by requests, within this package only."""


class RequestError(Exception):
    """A request that is given up. Raised within this package only.

    Attributes:
        failure: What went wrong at last.
        is_unanswered: Whether one of the requests may have arrived although it failed.
    """

    def __init__(self, failure: Failure, waited_s: float, is_unanswered: bool) -> None:
        super().__init__(failure, waited_s, is_unanswered)
        self.failure, self.is_unanswered = failure, is_unanswered
        self._waited_s = waited_s

    def __str__(self) -> str:
        tried = f", tried again for {self._waited_s:,.1f} s" if self._waited_s else ""
        return f"{self.failure.reason}{tried}"


class Requests:
    """The requests to one server. Pickles without credentials; may be used after a fork.

    Attributes:
        server: The server.
        limits: How long to wait for it.
    """

    def __init__(self, server: Server, limits: Limits) -> None:
        self.server, self.limits = server, limits

    def small(self) -> Any:
        """Return obstore's store for small requests."""
        return _store(self.server, self.limits, "small")

    def reading(self) -> Any:
        """Return obstore's store for reads of any size."""
        return _store(self.server, self.limits, "reading")

    def listing(self) -> Any:
        """Return obstore's store for lists, whose pages it retries itself."""
        return _store(self.server, self.limits, "listing")

    def writing(self) -> Any:
        """Return obstore's store for writes of any size; it retries the parts of an object."""
        return _store(self.server, self.limits, "writing")

    def repeat(self, request: Callable[[], Result], place: str, is_large: bool = False) -> Result:
        """Call a function until it succeeds, with pauses that get longer.

        Args:
            request: What to call.
            place: What it asks for, for a note to the user if it takes long.
            is_large: Whether it may well take a minute.

        Raises:
            RequestError: The failure will not pass, or has not.
        """
        with Wait(place, self.limits.retry_s, is_large) as wait:
            return self._repeat(request, wait)

    def _repeat(self, request: Callable[[], Result], wait: Wait) -> Result:
        unanswered = False
        for pause_s in _pauses():
            try:
                result = request()
            except BaseException as error:
                if isinstance(error, PassingError):
                    failure = Failure(str(error), may_pass=True)
                elif is_failure(error):
                    failure = read_failure(error)
                else:
                    raise
            else:
                _answered.add(self.server)
                _given_up.discard(self.server)
                return result
            if failure.status:
                _answered.add(self.server)
            unanswered |= failure.may_have_arrived
            spent_s = time.monotonic() - wait.start_s
            is_wanted = not _is_left_over()
            if not (failure.may_pass and is_wanted) or spent_s + pause_s > self._limit_s():
                if failure.may_pass and is_wanted:
                    _given_up.add(self.server)
                tried_s = spent_s if wait.n_retries else 0.0
                raise RequestError(failure, tried_s, unanswered) from None
            wait.retries(f"{self.server}: {failure.reason}")
            time.sleep(pause_s)
        raise AssertionError  # there is always another pause

    def _limit_s(self) -> float:
        """Return how long a request is repeated.

        When one has been given up, others wait no longer, until one succeeds: a command that makes
        some after it must not take minutes for each.
        """
        if self.server in _given_up:
            return self.limits.given_up_s
        return self.limits.retry_s if self.server in _answered else self.limits.first_retry_s


def is_failure(error: BaseException) -> bool:
    """Return whether an exception is one of obstore's, and not of this process."""
    if isinstance(error, FileNotFoundError) or type(error).__name__ == "PanicException":
        return True
    return isinstance(error, load_obstore().exceptions.BaseError)


def as_os_error(error: RequestError, uri: str, server: Server, action: Action) -> OSError:
    """Return the error of a read, whose `filename` is the URI."""
    failure = error.failure
    if failure.is_without_bucket:
        return NoBucketError(errno.ENOENT, server.without_bucket, uri)
    if failure.is_missing:
        return FileNotFoundError(errno.ENOENT, "no such object", uri)
    if failure.is_of_key:
        return UnreachableError(errno.EINVAL, failure.reason, uri)
    text = f"{server}: {error}{failure.remedy(server.scheme, action)}"
    if failure.is_denied:
        return RefusedError(errno.EACCES, text, uri)
    return UnreachableError(errno.EIO, text, uri)


def _is_left_over() -> bool:
    """Return whether this request was made ahead by a process that ends now, and is not needed.

    The interpreter waits for such threads. Only the main thread, which commits what is left, tries
    again then.
    """
    if threading.current_thread() is threading.main_thread():
        return False
    with ThreadPoolExecutor(1) as pool:
        try:
            pool.submit(int)
        except RuntimeError:  # after the interpreter's shutdown
            return True
    return False


def _pauses() -> Iterator[float]:
    pause_s = _FIRST_WAIT_S
    while True:
        yield pause_s * random.uniform(0.5, 1.5)
        pause_s = min(2 * pause_s, _LONGEST_WAIT_S)


_answered: set[Server] = set()
_given_up: set[Server] = set()
_stores: dict[tuple[Any, ...], Any] = {}
_making = threading.Lock()


def _store(server: Server, limits: Limits, use: str) -> Any:
    """Return obstore's store for a use, made once per process: its connections are kept."""
    key = (generation(), server, limits, use)
    store = _stores.get(key)
    if store is None:
        with _lock():
            store = _stores.get(key)
            if store is None:
                store = _stores[key] = _make_store(server, limits, use)
    return store


def _lock() -> threading.Lock:
    """Return the lock of this process; that of the process before a fork may be held for ever."""
    global _making, _locked_generation
    if _locked_generation != generation():
        _making, _locked_generation = threading.Lock(), generation()
    return _making


_locked_generation = generation()


def _make_store(server: Server, limits: Limits, use: str) -> Any:
    obstore = load_obstore()
    is_large = use in ("reading", "writing")
    options = {
        "connect_timeout": timedelta(seconds=min(limits.answer_s, 10.0)),
        "timeout": timedelta(seconds=limits.transfer_s if is_large else limits.answer_s),
        "allow_http": server.allows_http,
        "user_agent": "strata",
    }
    if use == "reading":
        options["read_timeout"] = timedelta(seconds=limits.answer_s)
    patience_s = limits.retry_s if use == "writing" else limits.answer_s  # `repeat` tries on
    retries = {
        "max_retries": 8 if use in ("listing", "writing") else 0,
        "retry_timeout": timedelta(seconds=min(patience_s, limits.retry_s)),
        "backoff": {
            "init_backoff": timedelta(seconds=_FIRST_WAIT_S),
            "max_backoff": timedelta(seconds=_LONGEST_WAIT_S),
        },
    }
    settings: dict[str, Any] = {"config": server.config()}
    if server.scheme == "s3":
        profile = profile_settings(server)
        settings["config"] = profile.pop("config", {}) | settings["config"]
        settings |= profile
    make = getattr(obstore.store, _STORE_NAMES[server.scheme])
    return make(server.bucket, client_options=options, retry_config=retries, **settings)
