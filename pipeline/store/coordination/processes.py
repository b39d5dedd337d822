"""Which process this is, and whether another process of this host is still running."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

GONE = -1


def process_space() -> str:
    """Return the boot and the pid namespace in which pids of this process mean something."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return ""


def process_start(pid: int) -> int:
    """Return when a process started, in clock ticks since boot.

    A killed process exists until its last thread has ended: one thread may still be in a write
    while the first one is a zombie already. A process of another user may have no trace in /proc;
    then only a signal finds it.

    Returns:
        `GONE` if there is no such process, 0 if its start is unknown.
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
