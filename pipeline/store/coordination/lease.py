"""One live driver per store: a lease with a heartbeat.

The lease is a small object that names its holder. The holder records a heartbeat every
`HEARTBEAT_S`. On the holder's host, a lease has expired when the holder's process
has ended. Elsewhere, or if the system hides that process, it has expired when its heartbeat is
older than `STALE_AFTER_S`, or lies in the future (a clock was set back) and has not changed for
that long while a driver waited. A driver that finds an expired lease takes it over.

In a folder, the lease is a file and its time the heartbeat. It is taken, taken over and released
under a lock on `lease.lock`. So a driver that has found an expired lease cannot remove a live one
that another driver has put in its place. On file systems without locks, the exclusive creation of
the file decides between two drivers; the check for expiry then has a race of a few milliseconds.
The lock is not held between these operations. In a bucket, leases are numbered, and creating the
next number decides (`store/backend/remote/leases.py`).

Before that, the driver tries what the storage can do. Where caches may hide the heartbeats of other
machines (mounts of cloud storage), no lease of another machine is taken over.
"""

from __future__ import annotations

import errno
import json
import os
import re
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, fields
from functools import partial
from types import TracebackType
from typing import Self

from pipeline.errors import StoreBusyError, StoreError
from pipeline.store.backend.base import Backend, FoundLease, Location
from pipeline.store.backend.folders import check_apart
from pipeline.store.backend.opening import open_backend
from pipeline.store.coordination.processes import GONE, process_space, process_start
from pipeline.store.format.layout import DROPPING, LEASE, LEASE_LOCK
from pipeline.store.serialization import json_bytes

HEARTBEAT_S = 5.0
STALE_AFTER_S = 60.0
LOCK_TIMEOUT_S = 10.0
WATCH_S = 0.5
"""Seconds between two looks at a heartbeat that lies in the future, or at an unreadable lease."""
READ_ATTEMPTS = 5
SHARE_LEASE = re.compile(r"lease-\d+\.json")
_READ_ONLY = (errno.EACCES, errno.EPERM, errno.EROFS)


@dataclass(frozen=True)
class Holder:
    """The holder of a lease.

    Attributes:
        run_id: Its run.
        host: Its host name.
        pid: Its process.
        process_start: When that process started, in clock ticks since boot; detects a reused pid.
        process_space: The boot and the pid namespace in which `pid` is valid.
    """

    run_id: str
    host: str
    pid: int
    process_start: int
    process_space: str


class Lease:
    """Holds the store, or a share of it, for one driver while the `with` block runs.

    Args:
        store: The store.
        run_id: Id of the run.
        key: Key of the lease. That of a share is `share_lease_key(rank)`; such a driver extracts
            only the units of its share, while another one holds the store.
        is_drop: Whether the driver completes a drop that was interrupted. No other one may write
            to such a store.

    Attributes:
        warning: What the user should know about the storage; empty if there is nothing.

    Raises:
        ConfigError: On entry, if a new store lies in another one, or around one.
        StoreBusyError: On entry, if a live driver holds it.
        StoreError: On entry, if the store cannot be written, or a drop was interrupted.
    """

    def __init__(
        self, store: Location, run_id: str, key: str = LEASE, is_drop: bool = False
    ) -> None:
        self._backend, self._key = open_backend(store), key
        self._is_drop = is_drop
        self._leases = self._backend.leases
        pid = os.getpid()
        self._holder = Holder(
            run_id, socket.gethostname(), pid, process_start(pid), process_space()
        )
        self._content = json_bytes(asdict(self._holder))
        self.warning = ""
        self._abandoned_s: float | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="strata-lease", daemon=True)

    def __enter__(self) -> Self:
        if self._key == LEASE:
            check_apart(self._backend)
        self.warning = self._leases.check()
        self._watch_future_heartbeat()
        with self._locked() as now_s:
            for _ in range(3):  # without locks several drivers may get here: one wins the create
                if self._leases.create(self._key, self._content):
                    if not self._is_drop:
                        self._check_no_drop()
                    self._thread.start()
                    return self
                holder = live_holder(self._backend, self._key, now_s)
                if holder is not None and not self._is_abandoned(self._leases.find(self._key)):
                    raise StoreBusyError(
                        f"store {self._backend} is in use by process {holder.pid} on "
                        f"{holder.host} (run {holder.run_id}, last heartbeat "
                        f"{_age_s(self._leases.find(self._key), now_s):.0f} s ago); "
                        "wait for it, or stop it and run again"
                    )
                self._check_heartbeat_is_seen()
                self._leases.expire(self._key, partial(self._is_live, now_s))
        raise StoreBusyError(f"store {self._backend}: another driver took the lease just now")

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if os.getpid() != self._holder.pid:
            return  # this is a fork of the holder, which does not own the lease
        self._stop.set()
        self._thread.join()
        if not self._is_mine():
            return  # taken over; or the store has vanished, and must not be created again
        with suppress(StoreError, OSError), self._locked():  # if this fails, the lease expires
            self._leases.release(self._key, self._content)

    def _check_no_drop(self) -> None:
        """Check that no drop was interrupted; release the lease if one was."""
        try:
            check_no_drop(self._backend)
        except StoreError:
            self._leases.release(self._key, self._content)
            raise

    def check(self) -> None:
        """Make sure that the lease still belongs to this driver.

        Raises:
            StoreBusyError: Another driver has taken it over.
            StoreError: The store is gone, or its lease cannot be read.
        """
        if not self._still_mine():
            if self._leases.find(self._key) is None:
                raise StoreError(
                    f"store {self._backend} has vanished, or its {self._key} was removed (is it "
                    "still mounted?); what was committed is safe there: mount it and run the "
                    "same command again"
                )
            raise StoreBusyError(
                f"store {self._backend}: another driver has taken over the lease, because this "
                f"one's heartbeat was more than {STALE_AFTER_S:.0f} s old; let that one finish"
            )

    def _still_mine(self) -> bool:
        """Whether the lease is this driver's; an error of the storage may pass within seconds.

        Raises:
            StoreError: It cannot be read.
        """
        for attempt in range(1, READ_ATTEMPTS + 1):
            try:
                return _holder(self._leases.find(self._key)) == self._holder
            except OSError as error:
                if attempt == READ_ATTEMPTS:
                    raise StoreError(
                        f"{self._backend.locate(self._key)} cannot be read: "
                        f"{error.strerror or error}; what was committed is safe: when the storage "
                        "is well again, run the same command again"
                    ) from error
                time.sleep(WATCH_S)
        raise AssertionError  # the loop returns or raises

    def _is_mine(self) -> bool:
        try:
            return _holder(self._leases.find(self._key)) == self._holder
        except OSError:
            return False

    @contextmanager
    def _locked(self) -> Iterator[float]:
        """Exclude other drivers for a moment.

        Yields:
            The time by the storage's clock, in which other hosts' heartbeats are recorded.
        """
        with ExitStack() as stack:
            try:
                lock = self._leases.lock(LEASE_LOCK, LOCK_TIMEOUT_S)
                now_s = stack.enter_context(lock)
            except TimeoutError as error:
                raise StoreBusyError(
                    f"{self._backend.locate(LEASE_LOCK)} has been locked for "
                    f"{LOCK_TIMEOUT_S:.0f} s by a driver that starts or ends; wait for it, or stop "
                    "it and run again"
                ) from error
            yield now_s

    def _check_heartbeat_is_seen(self) -> None:
        """Check that the age of a lease says something: caches may hide the heartbeats.

        Raises:
            StoreBusyError: Its driver is on another machine, and may be alive.
        """
        holder = _holder(self._leases.find(self._key))
        if self.warning and holder is not None and holder.host != socket.gethostname():
            raise StoreBusyError(
                f"store {self._backend} was in use by process {holder.pid} on {holder.host}, whose "
                "heartbeats this mount may hide; if no driver runs there, delete "
                f"{self._backend.locate(self._key)} and run again"
            )

    def _is_live(self, now_s: float, found: FoundLease) -> bool:
        """Whether a lease that was found expired is one that has just replaced it."""
        return _live(found, now_s) is not None and not self._is_abandoned(found)

    def _watch_future_heartbeat(self) -> None:
        """Watch a heartbeat in the future, whose age says nothing, until it changes or is stale."""
        if self._heartbeat_s() is None:
            return
        with self._locked() as now_s:
            if live_holder(self._backend, self._key, now_s) is None or not self._is_future(now_s):
                return
            heartbeat_s = self._heartbeat_s()
        end_s = time.monotonic() + STALE_AFTER_S
        while self._heartbeat_s() == heartbeat_s:
            if time.monotonic() > end_s:
                self._abandoned_s = heartbeat_s
                return
            time.sleep(WATCH_S)

    def _is_future(self, now_s: float) -> bool:
        heartbeat_s = self._heartbeat_s()
        return heartbeat_s is not None and heartbeat_s > now_s + STALE_AFTER_S

    def _is_abandoned(self, found: FoundLease | None) -> bool:
        """Whether a heartbeat is the one that did not change while it was watched."""
        if self._abandoned_s is None or found is None:
            return False
        return found.heartbeat_s == self._abandoned_s

    def _heartbeat_s(self) -> float | None:
        found = self._leases.find(self._key)
        return found.heartbeat_s if found is not None else None

    def _beat(self) -> None:
        while not self._stop.wait(HEARTBEAT_S):
            with suppress(OSError, StoreError):
                self._leases.beat(self._key, self._content)


def check_no_drop(backend: Backend) -> None:
    """Check that no drop was interrupted.

    Raises:
        StoreError: One was.
    """
    if backend.exists(DROPPING):
        raise StoreError(
            f"a drop from store {backend} was interrupted; run `strata drop {backend} "
            "confirm=true` first, which completes it"
        )


def check_no_share(backend: Backend) -> None:
    """Check that no driver extracts a share of the store.

    Raises:
        StoreBusyError: One does.
    """
    for name in backend.children(""):
        holder = live_holder(backend, name) if SHARE_LEASE.fullmatch(name) else None
        if holder is not None:
            raise StoreBusyError(
                f"a share of store {backend} is extracted by process {holder.pid} on "
                f"{holder.host} (run {holder.run_id}); wait for it, or stop it and run again"
            )


def live_holder(store: Location, name: str = LEASE, now_s: float | None = None) -> Holder | None:
    """Return the live driver of a store, or None.

    Args:
        store: The store.
        name: Key of the lease.
        now_s: The time by the storage's clock; None asks the storage, as well as it can say.
    """
    backend = open_backend(store)
    try:
        leases = backend.leases
    except StoreError:
        return None  # a storage that can only be read
    found = leases.find(name)
    return None if found is None else _live(found, leases.now_s() if now_s is None else now_s)


def is_read_only(error: StoreError) -> bool:
    """Return whether a lease was refused because this user may not write the store."""
    cause = error.__cause__
    return isinstance(cause, OSError) and cause.errno in _READ_ONLY


def _live(found: FoundLease, now_s: float) -> Holder | None:
    """Return the holder of a lease if it is live."""
    holder = _holder(found)
    if holder is None:
        return None
    if holder.host == socket.gethostname() and holder.process_space == process_space():
        start = process_start(holder.pid)
        if start == GONE:
            return None
        if start and holder.process_start:
            return holder if start == holder.process_start else None
    return holder if _age_s(found, now_s) < STALE_AFTER_S else None


def _age_s(found: FoundLease | None, now_s: float) -> float:
    """Return the seconds since the last heartbeat, at least 0; infinite if the lease is gone."""
    return float("inf") if found is None else max(0.0, now_s - found.heartbeat_s)


def _holder(found: FoundLease | None) -> Holder | None:
    if found is None:
        return None
    try:
        holder = Holder(**json.loads(found.content))
    except (ValueError, TypeError, RecursionError):
        return None
    is_sound = all(
        type(getattr(holder, item.name)).__name__ == item.type for item in fields(Holder)
    )
    return holder if is_sound else None
