"""The environment of a campaign: a Ray cluster of two nodes and a small disk, on this machine."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

DRAIN_PREEMPTION = 2  # ray.rpc.autoscaler DRAIN_NODE_REASON_PREEMPTION
NODE = {"num_cpus": 1, "object_store_memory": 80 * 2**20}


class Nodes:
    """Ray cluster of two nodes on this machine; the second may be lost."""

    def __init__(self) -> None:
        import ray
        from ray.cluster_utils import Cluster

        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        self.cluster = Cluster(initialize_head=True, head_node_args=NODE)
        # before there is a second node: the node that this process connects to cannot be removed
        ray.init(address=self.cluster.address, log_to_driver=False, logging_level="ERROR")
        self.second = self.cluster.add_node(**NODE)
        self.address = self.cluster.address

    def workers(self) -> list[int]:
        """Return the processes of this cluster's workers."""
        raylets = {
            info.process.pid
            for node in self.cluster.list_all_nodes()
            for info in node.all_processes.get("raylet", [])
        }
        found = []
        for path in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                parent = int((path / "stat").read_text().rpartition(")")[2].split()[1])
                if parent in raylets and b"ray::_Actor" in (path / "cmdline").read_bytes():
                    found.append(int(path.name))
        return found

    def wait_for_orphans(self, timeout_s: float) -> bool:
        """Wait until no worker is left; return whether that is so."""
        end = time.monotonic() + timeout_s
        while self.workers():
            if time.monotonic() > end:
                return False
            time.sleep(0.1)
        return True

    def lose(self) -> None:
        """Remove the second node at once, and add a new one."""
        self.cluster.remove_node(self.second, allow_graceful=False)
        self.second = self.cluster.add_node(**NODE)

    def drain(self) -> None:
        """Give the second node notice, and remove it three seconds later."""
        from ray._private.worker import global_worker

        deadline_ms = int((time.time() + 30) * 1000)
        global_worker.gcs_client.drain_node(
            self.second.node_id, DRAIN_PREEMPTION, "chaos", deadline_ms
        )
        time.sleep(3)
        self.lose()

    def close(self) -> None:
        """End the cluster."""
        import ray

        ray.shutdown()
        self.cluster.shutdown()


@contextmanager
def own_disk(work: Path, megabytes: int) -> Iterator[tuple[Path, bool]]:
    """Mount a small file system if that is permitted, else make a folder."""
    disk = work / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "none", str(disk)]
    may_mount = not subprocess.run(mount, capture_output=True, check=False).returncode
    try:
        yield disk, may_mount
    finally:
        if may_mount:
            subprocess.run(["umount", "-l", str(disk)], check=False)
