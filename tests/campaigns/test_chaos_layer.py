"""The layer below the C library: calls fail as ordered, and clocks are wrong."""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from campaigns.chaos.layer import FAULTS, NAME, SHORT, SYNC, WRITE, Fault, Layer, compile_layer

pytestmark = pytest.mark.skipif(shutil.which("gcc") is None, reason="there is no C compiler")

PROGRAM = """
import errno, json, os, socket, sys, time
folder, n = sys.argv[1], int(sys.argv[2])
def attempt(function, *arguments):
    try:
        return function(*arguments)
    except OSError as error:
        return errno.errorcode[error.errno]
found = []
for i in range(n):
    file = os.open(f"{folder}/{i}", os.O_RDWR | os.O_CREAT)
    found.append({
        "write": attempt(os.write, file, b"12345678"),
        "pwrite": attempt(os.pwrite, file, b"12345678", 0),
        "writev": attempt(os.writev, file, [b"1234", b"5678"]),
        "fsync": attempt(os.fsync, file),
        "rename": attempt(os.rename, f"{folder}/{i}", f"{folder}/{i}-named"),
        "link": attempt(os.link, f"{folder}/{i}-named", f"{folder}/{i}-linked"),
        "read": len(attempt(os.pread, file, 8, 0)),
    })
    if found[-1]["rename"] is not None:
        os.unlink(f"{folder}/{i}")
print(json.dumps([found, time.time(), time.monotonic(), socket.gethostname()]))
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    built = compile_layer(tmp_path_factory.mktemp("layer"))
    assert built is not None
    return built


@pytest.fixture
def layer(tmp_path: Path) -> Layer:
    return Layer(tmp_path / "control")


def run(library: Path, layer: Layer, folder: Path, n: int = 1) -> list:
    """Call each function `n` times on files of a folder, under the layer."""
    folder.mkdir()
    environment = {**os.environ, "LD_PRELOAD": str(library), "CHAOS_CONTROL": str(layer.path)}
    command = [sys.executable, "-c", PROGRAM, str(folder), str(n)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    return json.loads(done.stdout)


SOUND = {
    "write": 8,
    "pwrite": 8,
    "writev": 8,
    "fsync": None,
    "rename": None,
    "link": None,
    "read": 8,
}
ORDERED = random.Random(0)


def test_without_orders_nothing_fails(library: Path, layer: Layer, tmp_path: Path) -> None:
    """And calls are counted, by their kind."""
    layer.count(tmp_path / "f")
    assert run(library, layer, tmp_path / "f")[0] == [SOUND]
    counted = layer.counted()
    assert (counted[WRITE], counted[SYNC], counted[NAME]) == (3, 1, 2)
    assert layer.block.fired == 0


@pytest.mark.parametrize(
    ("calls", "failing"),
    [(WRITE, {"write", "pwrite", "writev"}), (SYNC, {"fsync"}), (NAME, {"rename"})],
)
def test_the_ordered_calls_fail(
    library: Path, layer: Layer, tmp_path: Path, calls: int, failing: set[str]
) -> None:
    """With the ordered error; others succeed."""
    layer.arm(Fault(calls, errno.EIO, is_endless=True), tmp_path / "f", 0, ORDERED)
    [found] = run(library, layer, tmp_path / "f")[0]
    assert {name for name, result in found.items() if result == "EIO"} >= failing
    assert layer.block.fired >= len(failing)


def test_short_writes_write_half(library: Path, layer: Layer, tmp_path: Path) -> None:
    """And say so, as the system may."""
    layer.arm(Fault(SHORT, is_endless=True), tmp_path / "f", 0, ORDERED)
    [found] = run(library, layer, tmp_path / "f")[0]
    assert (found["write"], found["pwrite"], found["writev"]) == (4, 4, 2)  # half of a half


def test_calls_before_the_first_failure_succeed(
    library: Path, layer: Layer, tmp_path: Path
) -> None:
    """And those after the last one."""
    layer.arm(Fault(SYNC, errno.EIO), tmp_path / "f", 2, ORDERED)
    layer.block.left = 1
    found = run(library, layer, tmp_path / "f", 5)[0]
    assert [one["fsync"] for one in found] == [None, None, "EIO", None, None]
    assert layer.block.fired == 1


def test_other_folders_are_spared(library: Path, layer: Layer, tmp_path: Path) -> None:
    """Only files below the prefix are struck."""
    layer.arm(FAULTS["EIO on write"], tmp_path / "other", 0, ORDERED)
    assert run(library, layer, tmp_path / "f")[0] == [SOUND]


def test_the_clock_jumps_and_the_host_has_another_name(
    library: Path, layer: Layer, tmp_path: Path
) -> None:
    """The monotonic clock does not."""
    layer.block.clock_offset_s = 86_400
    layer.block.host = b"another"
    _, wall, monotonic, host = run(library, layer, tmp_path / "f")
    assert 86_000 < wall - time.time() <= 86_400
    assert abs(monotonic - time.monotonic()) < 100
    assert host == "another" != socket.gethostname()
