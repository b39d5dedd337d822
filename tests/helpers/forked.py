"""Processes that are forked from one that has imported what tests use.

A new process imports torch and the rest for 3 to 5 CPU seconds; a fork takes a tenth of one.
`multiprocessing` has a server that forks, its "forkserver". Here the server is itself a fork of the
process that runs tests, made once all tests are collected and before the first of them: it has
imported everything, and no test has left a thread, a cache or an open file in it. So a child
has what a new process has after the same imports.
"""

from __future__ import annotations

import multiprocessing
import multiprocessing.util
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from multiprocessing import forkserver, resource_tracker
from multiprocessing.connection import Connection
from pathlib import Path
from types import ModuleType, SimpleNamespace
from unittest import mock

import pytest

from pipeline.online import extraction

CONTEXT = multiprocessing.get_context("forkserver")
"""For workers of a DataLoader that inherit nothing but the pickled dataset."""


def start_server() -> None:
    """Fork the server from this process, unless there is one.

    The fork is made by a thread that has computed nothing: OpenMP would wait for the threads that
    helped the main thread, which the fork does not have.
    """
    resource_tracker.ensure_running()  # else the server would run it
    with mock.patch.object(multiprocessing.util, "spawnv_passfds", _fork):
        thread = threading.Thread(target=forkserver.ensure_running)
        thread.start()
        thread.join()


def _fork(path: bytes, command: Sequence[str], kept: Iterable[int]) -> int:
    """Run the code of a `python -c` in a fork; return its process id."""
    pid = os.fork()
    if pid:
        return pid
    try:
        # Objects that still have the number of another descriptor stay harmless.
        nothing = os.open(os.devnull, os.O_RDWR)
        for number in map(int, os.listdir("/proc/self/fd")):  # noqa: PTH208
            if number > 2 and number not in (*kept, nothing):
                os.dup2(nothing, number)
        forkserver._forkserver._lock = threading.Lock()  # this process holds the old one
        exec(command[-1], {})
    finally:
        os._exit(0)


class Forked:
    """A process that runs Python code; as `subprocess.Popen`, as far as tests need it.

    Its standard streams are pipes of text. It ends with this process at the latest.

    Args:
        code: The program, which is `__main__`, as with `python -c`.
        arguments: Its arguments.
        environment: Its environment; None for that of this process.
        folder: Its working directory; None for that of this process.
        stderr: Descriptor for its stderr; None makes a pipe.
    """

    def __init__(
        self,
        code: str,
        *arguments: object,
        environment: Mapping[str, str] | None = None,
        folder: Path | None = None,
        stderr: int | None = None,
    ) -> None:
        (in_, mine), (out, print_), (err, errors) = (os.pipe() for _ in range(3))
        if stderr is not None:
            os.dup2(stderr, errors)
        streams = [Connection(in_, writable=False)]
        streams += [Connection(number, readable=False) for number in (print_, errors)]
        environment = dict(os.environ if environment is None else environment)
        self._process = CONTEXT.Process(
            target=_run,
            args=(code, list(map(str, arguments)), environment, folder or Path.cwd(), streams),
            daemon=True,
        )
        self._process.start()
        for stream in streams:
            stream.close()
        self.stdin = open(mine, "w")  # noqa: PTH123, SIM115
        self.stdout, self.stderr = open(out), open(err)  # noqa: PTH123, SIM115

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        """Its exit code, negative for a signal; None while it runs."""
        return self._process.exitcode

    poll = returncode.fget

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end; return its exit code."""
        self._process.join(timeout)
        if self.returncode is None:
            raise subprocess.TimeoutExpired("a forked process", timeout)
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Send it a signal, if it still runs."""
        with suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def terminate(self) -> None:
        """Send it SIGTERM, if it still runs."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Send it SIGKILL, if it still runs."""
        self.send_signal(signal.SIGKILL)

    def communicate(self, timeout: float | None = 60) -> tuple[str, str]:
        """Close its stdin and wait for its end; return the rest of what it prints."""
        with suppress(BrokenPipeError):
            self.stdin.close()
        with ThreadPoolExecutor(2) as pool, self.stdout, self.stderr:
            printed = [pool.submit(stream.read) for stream in (self.stdout, self.stderr)]
            try:
                self.wait(timeout)
            except subprocess.TimeoutExpired:
                self.kill()
                raise
            return printed[0].result(), printed[1].result()


def forked_strata(*arguments: str | Path, environment: Mapping[str, str] | None = None) -> Forked:
    """Start `strata` in a forked process."""
    program = "from pipeline.cli.app import main; main()"
    return Forked(program, *arguments, environment=environment)


def fork_beside(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `pipeline.online.extraction` fork the process that it starts beside a trainer.

    The module gets its own `subprocess`: other code keeps the class `subprocess.Popen`.
    """
    names = {**vars(subprocess), "Popen": _forked_beside}
    monkeypatch.setattr(extraction, "subprocess", SimpleNamespace(**names))


def _forked_beside(command: list[str], stdin: int, stdout: int, env: Mapping[str, str]) -> Forked:
    """Start what `pipeline.online.extraction` starts with `subprocess.Popen`, in a forked process.

    Its parent is the server, so it does not notice the end of this process.
    """
    assert command[1:] == ["-m", "pipeline.cli.beside", str(os.getpid())]
    process = Forked(_BESIDE, environment=env, stderr=2)
    process.stdin, process.stdout = process.stdin.detach(), process.stdout.detach()
    return process


_BESIDE = """
import os, runpy, sys
sys.argv[1:] = [str(os.getppid())]
runpy.run_module("pipeline.cli.beside", run_name="__main__")
"""


def finish(process: Forked, timeout_s: float = 60) -> str:
    """Return what a process prints; it must succeed."""
    out, err = process.communicate(timeout_s)
    assert process.returncode == 0, f"exit {process.returncode}\n{out}\n{err}"
    return out


def _run(
    code: str,
    arguments: list[str],
    environment: Mapping[str, str],
    folder: Path,
    streams: Sequence[Connection],
) -> None:
    """Become the program, in the forked process."""
    for target, stream in enumerate(streams):
        os.dup2(stream.fileno(), target)
        stream.close()
    sys.stdin, sys.stdout, sys.stderr = open(0), open(1, "w"), open(2, "w")  # noqa: SIM115
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    CONTEXT.current_process().daemon = False  # it may have children
    sys.argv = ["-c", *arguments]
    program = sys.modules["__main__"] = ModuleType("__main__")
    exec(code, program.__dict__)
