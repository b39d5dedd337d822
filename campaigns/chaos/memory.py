"""The kernel's out-of-memory killer, for one process: a cgroup with hardly any memory."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from pathlib import Path

ROOTS = {  # the file with the limit, by the folder in which a group is made
    Path("/sys/fs/cgroup/memory"): "memory.limit_in_bytes",
    Path("/sys/fs/cgroup"): "memory.max",
}
LIMIT_BYTES = 2**20


class MemoryLimit:
    """A group of processes that the kernel kills as soon as they ask for memory."""

    def __init__(self) -> None:
        self.group: Path | None = None
        for root, name in ROOTS.items():
            group = root / f"strata-chaos-{os.getpid()}"
            with suppress(OSError):
                group.mkdir()
                (group / name).write_text(str(LIMIT_BYTES))
                self.group = group
                return
            with suppress(OSError):
                group.rmdir()

    @property
    def is_possible(self) -> bool:
        """Whether a group could be made."""
        return self.group is not None

    def kill(self, pid: int) -> None:
        """Move a process into the group."""
        assert self.group is not None
        with suppress(OSError):
            (self.group / "cgroup.procs").write_text(str(pid))

    def close(self) -> None:
        """Remove the group, once its processes have ended."""
        for _ in range(50):
            if self.group is None:
                return
            with suppress(OSError):
                self.group.rmdir()
                self.group = None
            time.sleep(0.1)
