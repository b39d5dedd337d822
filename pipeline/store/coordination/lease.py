"""One live driver per store: a lease with a heartbeat.

The lease is a small file that names its holder and is touched while the holder lives. A lease is
dead when its process is known to be gone (same host and pid namespace) or, where that cannot be
told (another host, a process that the system hides), when its heartbeat is older than
`STALE_AFTER_S`; a dead one is taken over.

Taking a lease, taking one over and giving it back are done under an advisory lock on
`lease.lock`, which the kernel drops with its process: between the judgement that a lease is dead
and its removal nobody can put a live one in its place. Where a file system has no locks, the
exclusive creation of the lease file still decides, with a window of milliseconds. The lock is held
for these moments only, and let go explicitly: a process that was forked in one of them has a copy
of the open file, which would keep the lock for as long as it lives.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from pipeline import files
from pipeline.errors import StoreBusyError, StoreError
from pipeline.store.format.layout import LEASE, LEASE_LOCK

HEARTBEAT_S = 5.0
STALE_AFTER_S = 60.0
LOCK_TIMEOUT_S = 10.0
GONE = -1


@dataclass(frozen=True)
class Holder:
    """Who holds a lease.

    Attributes:
        run_id: Its run.
        host: Its host name.
        pid: Its process.
        process_start: When that process started, in clock ticks since boot; tells a reused pid.
        process_space: The boot and the pid namespace in which `pid` means something.
    """

    run_id: str
    host: str
    pid: int
    process_start: int
    process_space: str


class Lease:
    """Holds the store for one driver while the `with` block runs.

    Raises:
        StoreBusyError: On entry, if a live driver holds it.
        StoreError: On entry, if the store's folder cannot be written.
    """

    def __init__(self, root: Path, run_id: str) -> None:
        self._path = root / LEASE
        self._holder = Holder(
            run_id, socket.gethostname(), os.getpid(), _process_start(os.getpid()), _process_space()
        )
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="strata-lease", daemon=True)

    def __enter__(self) -> Self:
        content = [files.json_bytes(asdict(self._holder))]
        with self._alone() as now_s:
            for _ in range(3):  # without locks several drivers may get here: one wins the create
                if files.create_exclusive(self._path, content):
                    self._thread.start()
                    return self
                holder = live_holder(self._path.parent, now_s=now_s)
                if holder is not None:
                    raise StoreBusyError(
                        f"store {self._path.parent} is in use by process {holder.pid} on "
                        f"{holder.host} (run {holder.run_id}, last sign of life "
                        f"{_age_s(self._path, now_s):.0f} s ago); "
                        "wait for it, or stop it and run again"
                    )
                self._set_aside_dead(now_s)
        raise StoreBusyError(f"store {self._path.parent}: another driver took the lease just now")

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if os.getpid() != self._holder.pid:
            return  # a fork of the holder ends; the lease is not its own
        self._stop.set()
        self._thread.join()
        if not self._path.parent.is_dir():
            return  # the store has vanished; do not begin another one in its place
        with suppress(StoreError, OSError), self._alone():  # else it goes stale by itself
            if self._is_mine():
                self._path.unlink(missing_ok=True)

    def check(self) -> None:
        """Makes sure that the lease is still this driver's.

        Raises:
            StoreBusyError: Another driver has taken it over.
            StoreError: The store is gone.
        """
        if not self._is_mine():
            if not self._path.exists():
                raise StoreError(
                    f"store {self._path.parent} has vanished, or its {LEASE} was removed (is it "
                    "still mounted?); what was committed is safe there: bring it back and run the "
                    "same command again"
                )
            raise StoreBusyError(
                f"store {self._path.parent}: another driver took the lease over, "
                "as this one showed no sign of life for too long; let that one finish"
            )

    def _is_mine(self) -> bool:
        try:
            return _read(self._path) == self._holder
        except OSError:
            return False

    @contextmanager
    def _alone(self) -> Iterator[float]:
        """Keeps other drivers out for a moment.

        Yields:
            The time by the file system's clock, which other hosts' heartbeats are written in.
        """
        path = self._path.with_name(LEASE_LOCK)
        with files.store_errors(path):
            files.make_folder(path.parent)
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            _lock(descriptor, path)
            with suppress(OSError):
                os.utime(descriptor)
            yield os.fstat(descriptor).st_mtime
        finally:
            with suppress(OSError):
                fcntl.flock(descriptor, fcntl.LOCK_UN)
            os.close(descriptor)

    def _set_aside_dead(self, now_s: float) -> None:
        """Removes a dead lease; a live one that came in between is put back."""
        aside = self._path.with_name(f"{LEASE}.{self._holder.run_id}.dead")
        with suppress(FileNotFoundError):
            self._path.rename(aside)
            if live_holder(aside.parent, aside.name, now_s) is not None:
                with suppress(FileExistsError):
                    os.link(aside, self._path)
            aside.unlink()

    def _beat(self) -> None:
        while not self._stop.wait(HEARTBEAT_S):
            with suppress(OSError):
                if self._is_mine():
                    os.utime(self._path)


def live_holder(root: Path, name: str = LEASE, now_s: float | None = None) -> Holder | None:
    """The live driver of the store at `root`, if there is one.

    Args:
        root: The store.
        name: The lease file.
        now_s: The time by the file system's clock; None takes this machine's.
    """
    path = root / name
    holder = _read(path)
    if holder is None:
        return None
    if holder.host == socket.gethostname() and holder.process_space == _process_space():
        start = _process_start(holder.pid)
        if start == GONE:
            return None
        if start and holder.process_start:
            return holder if start == holder.process_start else None
    age_s = _age_s(path, time.time() if now_s is None else now_s)
    return holder if age_s < STALE_AFTER_S else None


def _lock(descriptor: int, path: Path) -> None:
    """Locks an open file, or does without where there are no locks.

    Raises:
        StoreBusyError: Somebody else keeps it locked.
    """
    end_s = time.monotonic() + LOCK_TIMEOUT_S
    while True:
        try:
            return fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > end_s:
                raise StoreBusyError(
                    f"{path} has been locked for {LOCK_TIMEOUT_S:.0f} s by a driver that starts or "
                    "ends; wait for it, or stop it and run again"
                ) from None
            time.sleep(0.02)
        except OSError:
            return None


def _age_s(path: Path, now_s: float) -> float:
    """Seconds since the last heartbeat; infinite if the lease is gone."""
    try:
        return now_s - path.stat().st_mtime
    except FileNotFoundError:
        return float("inf")


def _read(path: Path) -> Holder | None:
    try:
        return Holder(**json.loads(path.read_bytes()))
    except (FileNotFoundError, NotADirectoryError, ValueError, TypeError):
        return None


def _process_space() -> str:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return ""


def _process_start(pid: int) -> int:
    """Start of a process in clock ticks since boot; GONE if there is none, 0 if it is not told.

    A process that was killed is there until its last thread is: one of them may still be in a
    write when the first is a zombie already. A process of another user may be there without a
    trace in /proc: only a signal finds it.
    """
    with suppress(OSError):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        state, n_threads, start = fields[0], int(fields[17]), int(fields[19])
        return GONE if state in "ZX" and n_threads <= 1 else start
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return GONE
    except OSError:
        pass
    return 0
