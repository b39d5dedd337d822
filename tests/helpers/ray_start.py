"""Clusters that `ray start` makes on this machine, each with a home folder of its own."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

START_S = 60.0
"""How long a cluster may take to start."""


def clean_environment(home: Path) -> dict[str, str]:
    """The environment without Ray's settings, with another home folder and this Python first.

    Ray starts no workers before somebody needs one, and does not count its users.
    """
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    path = f"{Path(sys.executable).parent}{os.pathsep}{kept.get('PATH', '')}"
    root = Path(__file__).parents[2]
    kept |= {"HOME": str(home), "PATH": path, "PYTHONPATH": str(root)}
    return kept | {"RAY_prestart_worker_first_driver": "0", "RAY_USAGE_STATS_ENABLED": "0"}


def free_port() -> int:
    """Return a port on which nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def wait_for_port(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    """Wait until somebody listens on a port.

    Raises:
        RuntimeError: The process has ended, or takes too long.
    """
    end = time.monotonic() + START_S
    while process.poll() is None and time.monotonic() < end:
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(0.1)
    raise RuntimeError(f"Ray does not listen on port {port}: {log.read_text()[-2000:]}")


def end_group(process: subprocess.Popen[bytes]) -> None:
    """End a process and all that it has started in its session."""
    process.send_signal(signal.SIGTERM)  # `ray start --block` ends its children
    with suppress(subprocess.TimeoutExpired):
        process.wait(20)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@contextmanager
def ray_start(
    folder: Path, environment: Mapping[str, str], *, dashboard_port: int | None = None
) -> Iterator[str]:
    """A head node with two CPUs, as `ray start --head` makes it.

    Args:
        folder: For its log and its files.
        environment: Its environment.
        dashboard_port: Port for `ray job submit`; None starts no dashboard.

    Yields:
        Its address, host:port.
    """
    port = free_port()
    folder.mkdir()
    log = folder / "start.log"
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block"]
    command += [f"--port={port}", "--num-cpus=2", "--object-store-memory=100000000"]
    command += [f"--include-dashboard={dashboard_port is not None}", "--node-ip-address=127.0.0.1"]
    command += ["--include-log-monitor=false", "--no-monitor"]  # nobody reads logs, nor scales
    if dashboard_port is not None:
        command += [f"--dashboard-port={dashboard_port}"]
    # Its sockets lie there, whose paths are short.
    with log.open("wb") as file:
        process = subprocess.Popen(
            command, env=dict(environment), stdout=file, stderr=file, start_new_session=True
        )
    try:
        wait_for_port(port, process, log)
        if dashboard_port is not None:
            wait_for_port(dashboard_port, process, log)
        yield f"127.0.0.1:{port}"
    finally:
        end_group(process)
