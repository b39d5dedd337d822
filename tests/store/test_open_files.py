"""The files that a reader opens: closed with it, and the same for all threads."""

from __future__ import annotations

import gc
import pickle
import re
import struct
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pytest
import torch
from crc32c import crc32c

from pipeline.errors import DamagedError, StoreError, UnreachableError
from pipeline.store.backend.zarr_arrays import reported
from pipeline.store.read.opening import open_store
from tests.helpers.feature_stores import make_store, spelled


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="needs /proc")
def test_a_dropped_store_closes_its_files(tmp_path: Path) -> None:
    """At once, without the garbage collector, also after a selection was used."""
    make_store(tmp_path / "store", [20, 30, 40], layers=(1, 2, 3))
    gc.collect()
    gc.disable()
    try:
        before = open_files()
        for _ in range(3):
            store = open_store(tmp_path / "store")
            view = store.select(pc.field("n_frames") > 25)
            view.read(0)
            store.read_many([0, 1, 2])
            assert open_files() > before
            del store, view
            assert open_files() == before
    finally:
        gc.enable()


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="needs /proc")
def test_a_store_that_failed_to_read_closes_its_files(tmp_path: Path) -> None:
    """At once, too: the errors of zarr-python, which reads damaged shards, keep nothing open."""
    make_store(tmp_path / "store", [20, 30, 40], layers=(1, 2, 3))
    shard = tmp_path / "store/features.zarr/frames/c/1/0/0"
    shard.write_bytes(shard.read_bytes()[:-7])
    counts = []
    gc.collect()
    gc.disable()
    try:
        for _ in range(4):
            store = open_store(tmp_path / "store")
            with pytest.raises(DamagedError, match="is damaged; run `strata verify`"):
                store.read(0)
            del store
            counts.append(open_files())
    finally:
        gc.enable()
    assert counts[1] == counts[-1]  # the first one starts the event loop of zarr-python


@pytest.mark.parametrize(
    ("raised", "expected"), [(UnreachableError, UnreachableError), (ValueError, DamagedError)]
)
def test_a_server_that_does_not_answer_is_no_damage(raised, expected) -> None:
    """Its error passes through zarr-python as it is; all others mean damage."""
    with pytest.raises(expected), reported("shard x"):
        raise raised("no answer")


def test_a_store_can_be_closed(tmp_path: Path) -> None:
    """By `close` or `with`; then reading says so, and other stores of the same folder go on."""
    make_store(tmp_path / "store", [20, 30], layers=(1, 2))
    other = open_store(tmp_path / "store")
    with open_store(tmp_path / "store") as store:
        expected = store.read(0)
        view = store.select(pc.field("n_frames") > 25)
    for closed in (store, view):
        with pytest.raises(StoreError, match="is closed; open it again"):
            closed.read(0)
    store.close()
    assert len(store) == 2
    assert torch.equal(other.read(0), expected)
    assert torch.equal(pickle.loads(pickle.dumps(store)).read(0), expected)


def test_threads_that_read_a_damaged_shard_all_get_the_same_error(tmp_path: Path) -> None:
    """Whichever opens it first, and for as long as the store is open."""
    make_store(tmp_path / "store", [200], layers=(1,))
    [shard] = (path for path in (tmp_path / "store").rglob("c/0/0/0") if "frames" in path.parts)
    shard.write_bytes(shard.read_bytes()[:-7])
    kinds = set()
    for _ in range(20):
        store = open_store(tmp_path / "store")
        barrier = threading.Barrier(16)

        def read(store=store, barrier=barrier) -> None:
            barrier.wait()
            for _ in range(4):
                try:
                    store.read(0)
                    kinds.add("read")
                except Exception as error:  # noqa: BLE001  the kind is the question
                    kinds.add(type(error).__name__)

        threads = [threading.Thread(target=read) for _ in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert kinds == {"DamagedError"}


def swap_chunks(shard: Path, n_bytes: int) -> None:
    """Swap the two chunks of a shard and list them so: a sound shard of Zarr, but not flat."""
    raw = shard.read_bytes()
    first, second = raw[:n_bytes], raw[n_bytes : 2 * n_bytes]
    index = struct.pack("<4Q", n_bytes, n_bytes, 0, n_bytes)
    content = second + first + index + struct.pack("<I", crc32c(index))
    assert len(content) == len(raw)
    shard.write_bytes(content)


def flip_index(shard: Path) -> None:
    """Flip a bit in the checksum of the shard's index."""
    raw = bytearray(shard.read_bytes())
    raw[-1] ^= 1
    shard.write_bytes(raw)


def cut(shard: Path) -> None:
    """Remove all but the first bytes of the shard."""
    with shard.open("r+b") as file:
        file.truncate(100)


@pytest.mark.parametrize("is_flat", [True, False])
@pytest.mark.parametrize("damage", [flip_index, cut])
def test_a_shard_that_is_damaged_after_it_was_checked_is_named(
    tmp_path: Path, damage, is_flat: bool
) -> None:
    """In one read and in merged ones. Nothing of the index of a flat shard is read again."""
    make_store(tmp_path / "store", [500], layers=(1, 2), frames_per_unit=512)
    shard = tmp_path / "store/features.zarr/frames/c/1/0/0"
    if not is_flat:
        swap_chunks(shard, 256 * 8 * 2)
    store = open_store(tmp_path / "store")
    expected = spelled(0, 2, 500, 8)
    assert np.array_equal(store.read(0, [2])[0].numpy(), expected)
    damage(shard)
    if is_flat and damage is flip_index:
        assert np.array_equal(store.read(0, [2])[0].numpy(), expected)
        return
    named = f"{re.escape(str(shard))} .*run `strata verify`"
    for read in (lambda: store.read(0, [2]), lambda: store.read_many([0]), lambda: store[0]):
        with pytest.raises(DamagedError, match=named):
            read()


def test_a_program_that_ends_with_an_open_store_prints_nothing(tmp_path: Path) -> None:
    """A variable of the script keeps it until the interpreter has cleared the modules."""
    make_store(tmp_path / "store", [20, 30], layers=(1, 2))
    script = "import sys, pipeline; store = pipeline.open_store(sys.argv[1]); store.read(0)"
    command = [sys.executable, "-c", script, str(tmp_path / "store")]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=100)
    assert (done.stdout, done.stderr) == ("", "")
