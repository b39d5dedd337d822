"""Faults below the C library: `layer.c`, its control block, and how it is compiled."""

from __future__ import annotations

import ctypes
import errno
import mmap
import random
import subprocess
from dataclasses import dataclass
from pathlib import Path

SOURCE = Path(__file__).with_name("layer.c")
READ, WRITE, SYNC, NAME, SHORT = 1, 2, 4, 8, 16
ENDLESS = 2**30


class Block(ctypes.Structure):
    """The control block, as in layer.c."""

    _fields_ = (
        ("clock_offset_s", ctypes.c_int64),
        ("calls", ctypes.c_int32),
        ("error", ctypes.c_int32),
        ("countdown", ctypes.c_int32),
        ("left", ctypes.c_int32),
        ("fired", ctypes.c_int32),
        ("counted", ctypes.c_int32),
        ("seen", ctypes.c_int32 * 5),
        ("prefix", ctypes.c_char * 256),
        ("host", ctypes.c_char * 64),
    )


@dataclass(frozen=True)
class Fault:
    """Calls that fail.

    Attributes:
        calls: READ, WRITE, SYNC, NAME (rename, link), SHORT (half of a write is written).
        error: Their errno.
        is_endless: Whether all calls fail from the first one on; else one to three.
    """

    calls: int
    error: int = 0
    is_endless: bool = False


FAULTS = {
    "EIO on write": Fault(WRITE, errno.EIO),
    "EIO on sync": Fault(SYNC, errno.EIO),
    "EIO on rename or link": Fault(NAME, errno.EIO),
    "EIO on read": Fault(READ, errno.EIO),
    "stale file handle on read": Fault(READ, errno.ESTALE),
    "no space on write": Fault(WRITE, errno.ENOSPC, is_endless=True),
    "quota exceeded": Fault(WRITE | NAME, errno.EDQUOT, is_endless=True),
    "short writes": Fault(SHORT, is_endless=True),
}
"""Kinds of fault on the files of a store."""


class Layer:
    """The control block of the processes of one campaign."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.write_bytes(bytes(ctypes.sizeof(Block)))
        with path.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), 0)
        self.block = Block.from_buffer(self._map)

    def calm(self) -> None:
        """End all faults."""
        ctypes.memset(ctypes.addressof(self.block), 0, ctypes.sizeof(Block))

    def count(self, prefix: Path) -> None:
        """Count the calls on files below a folder, and fail none."""
        self.calm()
        self.block.prefix = f"{prefix}/".encode()
        self.block.counted = READ | WRITE | SYNC | NAME | SHORT

    def counted(self) -> dict[int, int]:
        """Return how many calls of each kind were counted."""
        return {call: self.block.seen[i] for i, call in enumerate((READ, WRITE, SYNC, NAME, SHORT))}

    def arm(self, fault: Fault, prefix: Path, after: int, rng: random.Random) -> None:
        """Let calls on files below a folder fail, once `after` of them have succeeded."""
        self.calm()
        self.block.prefix = f"{prefix}/".encode()
        self.block.error = fault.error
        self.block.countdown = after
        self.block.left = ENDLESS if fault.is_endless else rng.randint(1, 3)
        self.block.calls = fault.calls


def compile_layer(folder: Path) -> Path | None:
    """Compile the layer; return None if there is no C compiler."""
    library = folder / "layer.so"
    command = ["gcc", "-O2", "-shared", "-fPIC", "-o", str(library), str(SOURCE), "-ldl"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return None
    if done.returncode:
        raise RuntimeError(f"{SOURCE.name} does not compile: {done.stderr}")
    return library
