"""Drivers: `strata` in processes that are forked from one which has imported what it needs.

Imports take most of the time of a short run. The parent has one thread and has used no library.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

IMPORTS = (
    *("pipeline.cli.app", "pipeline.extract.run", "pipeline.store.coordination.run_history"),
    *("torchaudio", "soundfile", "hydra", "omegaconf", "zarr", "datasets", "pyarrow.parquet"),
    *("pipeline.encoders.registry", "pipeline.encoders.wav2vec2.encoder", "ray"),
    *("pipeline.sources.opening", "pipeline.audio.decode", "pipeline.extract.worker"),
    *("scipy.io", "pydantic", "torchcodec", "threadpoolctl", "typer._adapters"),
)


class Driver:
    """A process that runs one command; as `subprocess.Popen`, as far as a campaign needs it."""

    def __init__(self, pid: int, log: Path) -> None:
        self.pid, self.log = pid, log
        self.returncode: int | None = None
        self.ended = threading.Event()
        self.is_recorded = False

    def poll(self) -> int | None:
        """Return the exit code, or None while it runs."""
        return self.returncode

    def wait(self, timeout_s: float | None = None) -> bool:
        """Wait for the end; return whether it has ended."""
        return self.ended.wait(timeout_s)

    def send_signal(self, number: int) -> None:
        """Send a signal, if it still runs."""
        if self.returncode is None:
            try:
                os.kill(self.pid, number)
            except ProcessLookupError:
                return

    def output(self) -> str:
        """Return what it has printed."""
        return self.log.read_text(errors="replace")


class Drivers:
    """Starts drivers, and learns how they end."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._parent = subprocess.Popen(
            [sys.executable, __file__],
            env=dict(environment),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._started: dict[int, Driver] = {}
        self._answer: Any = None
        self._answered = threading.Event()
        threading.Thread(target=self._listen, daemon=True).start()

    def start(self, arguments: Sequence[str], log: Path, *, control: Path | None = None) -> Driver:
        """Start `strata` with these arguments.

        Args:
            arguments: Verb and overrides.
            log: Where it prints.
            control: Another control block than the one of the environment.
        """
        assert self._parent.stdin is not None
        log.write_text("")
        self._answered.clear()
        order = [list(arguments), str(log), str(control) if control else None]
        self._parent.stdin.write(json.dumps(order) + "\n")
        self._parent.stdin.flush()
        if not self._answered.wait(120):
            raise RuntimeError("no driver was started within two minutes")
        driver: Driver = self._answer
        return driver

    def _listen(self) -> None:
        assert self._parent.stdout is not None
        for line in self._parent.stdout:
            pid, code, log = json.loads(line)
            if code is None:
                self._answer = self._started[pid] = Driver(pid, Path(log))
                self._answered.set()
            else:
                driver = self._started.pop(pid)
                driver.returncode = code
                driver.ended.set()

    def end(self) -> None:
        """End all drivers."""
        for driver in list(self._started.values()):
            driver.send_signal(signal.SIGCONT)
            driver.send_signal(signal.SIGKILL)
            driver.wait(10)

    def close(self) -> None:
        """End all drivers, and their parent."""
        self.end()
        self._parent.kill()
        self._parent.wait()


def preload(*more: str) -> None:
    """Import what forks of this process use, so that they need not.

    Args:
        more: Modules besides those of a driver.
    """
    for name in (*IMPORTS, *more):
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    from pipeline.config import load_config

    load_config(["store=none", "dataset.path=none"])  # Hydra imports as it goes
    gc.freeze()  # else the first collection copies all pages


def _serve() -> None:
    """Fork a child for each order on stdin; print `[pid, null, log]`, and `[pid, code, log]`."""
    preload()
    logs: dict[int, str] = {}
    buffer = b""
    while True:
        ready, _, _ = select.select([0], [], [], 0.02)
        if ready:
            read = os.read(0, 2**16)
            if not read:
                return
            *orders, buffer = (buffer + read).split(b"\n")
            for order in orders:
                arguments, log, control = json.loads(order)
                pid = os.fork()
                if not pid:
                    _run(arguments, log, control)
                logs[pid] = log
                print(json.dumps([pid, None, log]), flush=True)
        while logs:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if not pid:
                break
            print(json.dumps([pid, os.waitstatus_to_exitcode(status), logs.pop(pid)]), flush=True)


def _run(arguments: list[str], log: str, control: str | None) -> None:
    """Run `strata` in the child; end as a program of its own ends."""
    os.setsid()
    with open(log, "ab", buffering=0) as file, open(os.devnull, "rb") as nothing:  # noqa: PTH123
        os.dup2(nothing.fileno(), 0)
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    if control is not None:
        ctypes.CDLL(None).chaos_attach(control.encode())
    sys.argv = ["strata", *arguments]
    from pipeline.cli.app import main

    main()
    sys.exit(0)


def wait_for(condition: Any, timeout_s: float) -> bool:
    """Wait until a condition holds; return whether it does."""
    end = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.01)
    return True


if __name__ == "__main__":
    _serve()
