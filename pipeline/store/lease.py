"""One live driver per store: a lease with a heartbeat.

The lease is a small file that names its holder and is rewritten while the holder lives. A lease
is dead when its process is known to be gone (same host and pid namespace) or, from elsewhere, when
its heartbeat is older than `STALE_AFTER_S`; a dead one is taken over.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from pipeline.errors import StoreBusyError
from pipeline.store import files
from pipeline.store.layout import LEASE

HEARTBEAT_S = 5.0
STALE_AFTER_S = 60.0


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
        for _ in range(3):  # a dead lease may be taken over by several drivers: one wins the create
            if files.create_exclusive(self._path, content):
                self._thread.start()
                return self
            holder = live_holder(self._path.parent)
            if holder is not None:
                age_s = time.time() - self._path.stat().st_mtime
                raise StoreBusyError(
                    f"store {self._path.parent} is in use by process {holder.pid} on "
                    f"{holder.host} (run {holder.run_id}, last sign of life {age_s:.0f} s ago); "
                    "wait for it, or stop it and run again"
                )
            self._set_aside_dead()
        raise StoreBusyError(f"store {self._path.parent}: another driver took the lease just now")

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        self._thread.join()
        if self._is_mine():
            self._path.unlink(missing_ok=True)

    def check(self) -> None:
        """Makes sure that the lease is still this driver's.

        Raises:
            StoreBusyError: Another driver has taken it over.
        """
        if not self._is_mine():
            raise StoreBusyError(
                f"store {self._path.parent}: another driver took the lease over, "
                "as this one showed no sign of life for too long; let that one finish"
            )

    def _is_mine(self) -> bool:
        holder = _read(self._path)
        return holder is not None and holder == self._holder

    def _set_aside_dead(self) -> None:
        """Removes a dead lease; a live one that came in between is put back."""
        aside = self._path.with_name(f"{LEASE}.{self._holder.run_id}.dead")
        with suppress(FileNotFoundError):
            self._path.rename(aside)
            if live_holder(aside.parent, aside.name) is not None:
                with suppress(FileExistsError):
                    os.link(aside, self._path)
            aside.unlink()

    def _beat(self) -> None:
        while not self._stop.wait(HEARTBEAT_S):
            with suppress(OSError):
                if self._is_mine():
                    os.utime(self._path)


def live_holder(root: Path, name: str = LEASE) -> Holder | None:
    """The live driver of the store at `root`, if there is one."""
    path = root / name
    holder = _read(path)
    if holder is None:
        return None
    if holder.host == socket.gethostname() and holder.process_space == _process_space():
        return holder if _process_start(holder.pid) == holder.process_start else None
    try:
        age_s = time.time() - path.stat().st_mtime
    except FileNotFoundError:
        return None
    return holder if age_s < STALE_AFTER_S else None


def _read(path: Path) -> Holder | None:
    try:
        return Holder(**json.loads(path.read_bytes()))
    except (FileNotFoundError, ValueError, TypeError):
        return None


def _process_space() -> str:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return ""


def _process_start(pid: int) -> int:
    """Start of a process in clock ticks since boot; -1 if there is none, 0 if it cannot be told."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
        fields = stat.rpartition(")")[2].split()
        return -1 if fields[0] in "ZX" else int(fields[19])
    except FileNotFoundError:
        if Path("/proc/self/stat").exists():
            return -1
    except OSError:
        pass
    try:  # no /proc: only whether it is there
        os.kill(pid, 0)
    except ProcessLookupError:
        return -1
    except OSError:
        pass
    return 0
