"""What all servers share: a free port, the start, the wait until it answers, and the end."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

START_S = 30.0
"""A server that does not answer after so many seconds has failed."""


@dataclass(frozen=True)
class Bucket:
    """A bucket of a running server.

    Attributes:
        uri: What a user would give, e.g. s3://bucket.
        endpoint: The server, e.g. http://127.0.0.1:4000.
        environment: The environment variables that a user would set to reach it.
        log: What the server has printed.
        pid: The server's process.
        folder: Where the server keeps the objects as files, if it does.
    """

    uri: str
    endpoint: str
    environment: Mapping[str, str] = field(repr=False)
    log: Path
    pid: int
    folder: Path | None = None

    def use(self, patch: pytest.MonkeyPatch) -> str:
        """Set the environment variables for a test; return the URI."""
        for name, value in self.environment.items():
            patch.setenv(name, value)
        return self.uri


def s3_environment(url: str, key: str, secret: str) -> dict[str, str]:
    """Return the variables with which a process finds a server of S3."""
    return {
        "AWS_ENDPOINT_URL": url,
        "AWS_ALLOW_HTTP": "true",
        "AWS_REGION": "us-east-1",
        "AWS_ACCESS_KEY_ID": key,
        "AWS_SECRET_ACCESS_KEY": secret,
    }


def free_port() -> int:
    """Return a port of the loopback that nothing uses at the moment."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
    return port


def command_of(name: str, package: str) -> str:
    """Return the path of a command of this environment; skip the test if it is not installed."""
    beside = shutil.which(name, path=sysconfig.get_path("scripts"))
    found = beside or shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed ({package}, in the extra `test`)")
    return found


@contextmanager
def running(
    command: Sequence[str], port: int, log: Path, environment: Mapping[str, str] | None = None
) -> Iterator[int]:
    """Run a server while the `with` block runs; yield the id of its process.

    Its port must answer within `START_S`. It is ended by its own process id.

    Args:
        command: The program and its arguments.
        port: Port of the loopback that it listens on.
        log: File for all that it prints.
        environment: Variables to set besides those of this process.

    Raises:
        RuntimeError: It ended, or did not answer in time; the message has the end of its log.
    """
    with log.open("wb") as printed:
        process = subprocess.Popen(
            list(command),
            stdout=printed,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            env={**os.environ, **(environment or {})},
        )
    try:
        _wait_until_it_answers(process, port, log)
        yield process.pid
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def python_command(module: str, *arguments: str) -> list[str]:
    """Return the command that runs a module with this interpreter."""
    return [sys.executable, "-m", module, *arguments]


def _wait_until_it_answers(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    end_s = time.monotonic() + START_S
    while True:
        with socket.socket() as probe:
            probe.settimeout(1)
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        problem = None
        if process.poll() is not None:
            problem = f"ended with status {process.returncode}"
        elif time.monotonic() > end_s:
            problem = f"did not answer on port {port} within {START_S:.0f} s"
        if problem:
            end = log.read_text(errors="replace")[-2000:]
            raise RuntimeError(f"{process.args!r} {problem}:\n{end}")
        time.sleep(0.02)
