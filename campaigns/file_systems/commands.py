"""`strata` in forks of the campaign's process, as another user or on another machine if need be."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from campaigns.chaos.drivers import preload
from pipeline.cli.app import app

CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH, CAP_FOWNER = 1, 2, 3
NOT_THE_OWNER = (CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH, CAP_FOWNER)
"""Capabilities without which root may write only its own files."""
_CLONE_NEWNS, _CLONE_NEWUTS, _CLONE_NEWPID = 0x00020000, 0x04000000, 0x20000000

SWEEP = ("pipeline.probing.run", "pipeline.probing.report.sweep_report", "sklearn.metrics")


def preload_all() -> None:
    """Import what commands use, so that their forks need not."""
    preload(*SWEEP, "torch._dynamo")  # the latter is imported by optimisers


class Command:
    """`strata` in a fork of this process, which has imported everything already."""

    def __init__(
        self, words: Sequence[str], log: Path, drop: Sequence[int] = (), host: str = ""
    ) -> None:
        self.log = log
        sys.stdout.flush()
        self.pid = os.fork()
        if self.pid == 0:
            _become(words, log, drop, host)
        with suppress(OSError):  # the child does the same; one of the two comes first
            os.setpgid(self.pid, self.pid)
        self.code: int | None = None

    def wait(self, timeout_s: float = 300.0) -> int:
        """Wait for the end; return the exit code, or minus the signal."""
        end_s = time.monotonic() + timeout_s
        while not self.ended():
            if time.monotonic() > end_s:
                self.kill()
            time.sleep(0.02)
        assert self.code is not None
        return self.code

    def ended(self) -> bool:
        """Return whether it has ended."""
        if self.code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.code = os.waitstatus_to_exitcode(status)
        return self.code is not None

    def kill(self) -> None:
        """End it by SIGKILL, with all that it has started."""
        if not self.ended():
            with suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)
            self.wait()

    def last_line(self) -> str:
        """Return the last line that it printed."""
        lines = [line.strip() for line in self.log.read_text().splitlines() if line.strip()]
        return lines[-1] if lines else "nothing"

    def is_clean(self) -> bool:
        """Return whether it printed no traceback and no unexpected error."""
        text = self.log.read_text()
        return "Traceback" not in text and "error: unexpected" not in text


def _become(words: Sequence[str], log: Path, drop: Sequence[int], host: str) -> None:
    """Run the command in this fork, and end the process."""
    code = 1
    try:
        os.setpgid(0, 0)
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        for standard in (1, 2):
            os.dup2(descriptor, standard)
        if host:
            _move_to_host(host)
        if drop:
            _drop_capabilities(drop)
        app(list(words), standalone_mode=True)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException as error:  # noqa: BLE001 - a fork must not go on in the campaign
        print(f"Traceback: {error!r}", file=sys.stderr)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _move_to_host(name: str) -> None:
    """Give this process a host name and processes of its own, as on another machine."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_CLONE_NEWNS | _CLONE_NEWUTS | _CLONE_NEWPID):
        raise OSError(ctypes.get_errno(), "unshare")
    child = os.fork()
    if child:
        os._exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) & 0xFF)
    libc.mount(b"none", b"/", None, 0x44000, None)  # private, and all below it
    libc.mount(b"proc", b"/proc", b"proc", 0, None)
    libc.sethostname(name.encode(), len(name))
    libc.prctl(1, signal.SIGKILL)  # end with the parent


def _drop_capabilities(numbers: Sequence[int]) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    data = (ctypes.c_uint32 * 6)()  # effective, permitted, inheritable; twice 32 bits
    libc.capget(header, data)
    for number in numbers:
        for part in range(3):
            data[number // 32 * 3 + part] &= ~(1 << number % 32)
    if libc.capset(header, data):
        raise OSError(ctypes.get_errno(), "capset")
