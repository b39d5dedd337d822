"""The process that extracts beside a trainer, as the trainer's process sees it.

It is a process of its own, so that neither its threads nor the interpreter's lock slow the trainer
down, and so that PyTorch's number of threads, on which the last bits of features depend, is that of
`strata extract`. It is no child of `multiprocessing`, which would import the user's program again.

It ends with the trainer, however that ends: the trainer stops it when it leaves the first epoch or
exits, and a process whose parent has changed stops by itself (`pipeline/cli/beside.py`).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import weakref
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

import pipeline
from pipeline import errors
from pipeline.errors import RunError, StrataError

PROGRAM = "pipeline.cli.beside"
STOP_S = 60.0
"""Seconds that the process may take to commit what is encoded, once it is asked to stop."""
_AGAIN = "what was committed is safe: run the same program again to continue"


class Extraction:
    """Runs `strata extract` in a process; start it, then look at it now and then.

    The process writes its progress to stderr, and messages to this object: `ready` when the store
    is known to be the one that the settings make, then `done` or an error.

    Args:
        request: What to extract, JSON-able; see `pipeline/online/beside.py`.
    """

    def __init__(self, request: Mapping[str, Any]) -> None:
        self._request = json.dumps(request)
        self._process: subprocess.Popen[bytes] | None = None
        self._end: weakref.finalize[Any, Any] | None = None
        self._text = b""
        self._kinds: set[str] = set()  # of the messages so far

    @property
    def pid(self) -> int | None:
        """Process id of the process; None if it does not run."""
        return None if self._process is None else self._process.pid

    def start(self) -> None:
        """Start the process, unless it runs or has ended well."""
        if self._process is not None or self._has_ended_well:
            return
        self._text, self._kinds = b"", set()
        command = [sys.executable, "-m", PROGRAM, str(os.getpid())]
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=_environment()
        )
        self._process = process
        self._end = weakref.finalize(self, _stop, process, os.getpid())
        assert process.stdin is not None  # they are pipes
        assert process.stdout is not None
        os.set_blocking(process.stdout.fileno(), False)
        with suppress(BrokenPipeError):  # it has died, which `is_done` reports
            process.stdin.write(self._request.encode())
            process.stdin.close()

    def is_ready(self) -> bool:
        """Whether the store is known to be the one that the settings make.

        Raises:
            StrataError: As `is_done`.
        """
        return self.is_done() or "ready" in self._kinds

    def is_done(self) -> bool:
        """Whether the store is complete.

        Raises:
            StrataError: The extraction has failed: the error that `strata extract` ends in.
            RunError: The process has died.
        """
        if self._has_ended_well:
            return True
        process = self._process
        if process is None:
            raise RunError(f"the extraction was stopped; {_AGAIN}")
        code = process.poll()  # before its messages are read: they are complete then
        self._read(process)
        if code is None:
            return False
        self._forget()
        error = self._error(code)
        if error is not None:
            raise error
        return True

    def stop(self) -> None:
        """Stop the process: it drops the unit in hand, commits those before and frees the store."""
        if self._process is not None:
            _stop(self._process, os.getpid())
            self._forget()

    @property
    def _has_ended_well(self) -> bool:
        return "done" in self._kinds

    def _forget(self) -> None:
        assert self._process is not None  # called once for each process
        assert self._process.stdout is not None
        assert self._end is not None
        self._process.stdout.close()
        self._end.detach()
        self._process = None

    def _read(self, process: subprocess.Popen[bytes]) -> None:
        """Read the messages of the process, as far as they are there."""
        assert process.stdout is not None
        self._text += process.stdout.read() or b""
        self._kinds = {message["kind"] for message in self._messages()}

    def _messages(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self._text.splitlines(True) if line.endswith(b"\n")]

    def _error(self, code: int) -> StrataError | None:
        """Return the error that the process has ended in; None if it has ended well."""
        if self._has_ended_well:
            return None
        for message in self._messages():
            if message["kind"] == "error":
                kind: type[StrataError] = getattr(errors, message["name"])
                return kind(message["text"])
        how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
        return RunError(
            f"the process that extracts beside this one {how}; did it run out of memory? {_AGAIN}"
        )


def _environment() -> dict[str, str]:
    """Return the environment of the process: this package, and the GPU of this process."""
    found = dict(os.environ)
    root = str(Path(pipeline.__file__).resolve().parents[1])
    found["PYTHONPATH"] = os.pathsep.join(filter(None, [root, found.get("PYTHONPATH")]))
    device = _own_device(found)
    if device is not None:
        visible = [part for part in found.get("CUDA_VISIBLE_DEVICES", "").split(",") if part]
        if not visible:
            visible = [str(number) for number in range(torch.cuda.device_count())]
        if device < len(visible):
            found["CUDA_VISIBLE_DEVICES"] = visible[device]
    return found


def _own_device(environment: Mapping[str, str]) -> int | None:
    """Return the number of the GPU of this process among the visible ones; None if unknown.

    Each process of a distributed job extracts on the GPU on which it trains.
    """
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        return torch.cuda.current_device()
    local = environment.get("LOCAL_RANK", "")
    return int(local) if local.isdecimal() else None


def _stop(process: subprocess.Popen[bytes], owner: int) -> None:
    """Stop a process and wait for its end; a fork of its owner leaves it alone."""
    if os.getpid() != owner or process.poll() is not None:
        return
    try:
        process.terminate()
        process.wait(STOP_S)
    except BaseException as error:
        process.kill()
        process.wait()
        if not isinstance(error, subprocess.TimeoutExpired):
            raise


def wait_s() -> None:
    """Wait a moment, before the next look at a process or a store."""
    time.sleep(0.05)
