"""Reads through a memory map: the same bytes, and an error where the map would end the process."""

from __future__ import annotations

import multiprocessing
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import ConcatDataset, DataLoader, Dataset

import pipeline
from pipeline.errors import DamagedError
from pipeline.store.backend.local_reader import LocalReader
from pipeline.store.format.codecs import INT8
from pipeline.store.native import mapped
from pipeline.store.native.mapped import BLOCKS, RANGE, READY, map_file
from pipeline.store.native.rows import RowPlaces, RowScatter
from tests.helpers.feature_stores import make_store

BLOCK = 2 << 20
needs_maps = pytest.mark.skipif(mapped.MappedFile is None, reason="not compiled")
pytestmark = needs_maps


@pytest.fixture(scope="module")
def content() -> np.ndarray:
    """Bytes of a file of eight blocks and a part of a page."""
    return np.random.default_rng(0).integers(0, 256, 8 * BLOCK + 77, np.uint8)


@pytest.fixture
def file(tmp_path: Path, content: np.ndarray) -> Path:
    """The file, on the disk and not in memory."""
    path = tmp_path / "file"
    path.write_bytes(content.tobytes())
    forget(path)
    return path


def forget(path: Path) -> None:
    """Remove a file from the page cache."""
    descriptor = os.open(path, os.O_RDONLY)
    os.fdatasync(descriptor)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(descriptor)


def is_mapped(path: Path) -> bool:
    with path.open("rb") as file:
        return map_file(file.fileno(), False) is not None


def reader_of(path: Path, whole: bool = False) -> LocalReader:
    reader = LocalReader(path, whole)
    if reader.mapped is None:
        pytest.skip("this file system is not mapped")
    return reader


@pytest.mark.parametrize("whole", [False, True])
def test_any_range_has_the_bytes_of_the_file(file: Path, content: np.ndarray, whole: bool) -> None:
    """From the disk and from memory, past the cache or not, across blocks and up to the end."""
    reader = reader_of(file, whole)
    random = np.random.default_rng(1)
    for _ in range(100):
        first, last = np.sort(random.integers(0, len(content) + 1, 2)).tolist()
        cut = int(random.integers(first, last + 1))
        shift = int(random.integers(0, 16))  # destinations at any place
        parts = [
            np.zeros(shift + cut - first, np.uint8)[shift:],
            np.zeros((1, last - cut), np.int8),
        ]
        assert reader.mapped is not None
        if not reader.mapped.read_into(parts, first, whole):
            reader.read_into(parts, first)
        found = np.concatenate([parts[0], parts[1].view(np.uint8)[0]])
        assert np.array_equal(found, content[first:last])


def test_it_refuses_what_is_not_in_the_file(file: Path, content: np.ndarray) -> None:
    """The reader's system call then says where it ends."""
    reader = reader_of(file)
    assert reader.mapped is not None
    for offset in (len(content) - 4, len(content), 1 << 60):
        assert not reader.mapped.read_into([np.zeros(5, np.uint8)], offset, False)
        assert not reader.mapped.read_ready([np.zeros(5, np.uint8)], offset, False)
        assert reader.mapped.needs(offset, 5) == READY
    with pytest.raises(EOFError, match=f"ends at byte {len(content)}"):
        reader.read_into([np.zeros(5, np.uint8)], len(content) - 4)
    with pytest.raises((OverflowError, ValueError)):
        reader.mapped.read_into([np.zeros(5, np.uint8)], -1, False)
    with pytest.raises((BufferError, ValueError)):
        reader.mapped.read_into([np.zeros((5, 2), np.uint8)[:, 0]], 0, False)
    with pytest.raises((BufferError, TypeError)):
        reader.mapped.read_into([b"immutable"], 0, False)


def test_few_reads_fetch_what_they_ask_for_and_many_fetch_blocks(file: Path) -> None:
    """A reader of the whole file fetches blocks at once; what is in memory is not fetched."""
    readers = reader_of(file), reader_of(file, whole=True)
    few, all_of_it = (reader.mapped for reader in readers)
    assert few is not None
    assert all_of_it is not None
    if few.needs(0, BLOCK) == READY:
        pytest.skip("this file system keeps files in memory")
    assert few.needs(0, 1000) == RANGE
    assert all_of_it.needs(0, 1000) == BLOCKS
    assert not few.read_into([np.zeros(1000, np.uint8)], BLOCK + 5, False)
    assert all_of_it.read_into([np.zeros(1000, np.uint8)], BLOCK + 5, False)
    assert all_of_it.needs(BLOCK, BLOCK) == READY
    assert few.read_ready([np.zeros(BLOCK, np.uint8)], BLOCK, False)  # the other one has fetched it
    assert few.needs(7 * BLOCK, 10) == RANGE  # not the next block, which the kernel reads ahead
    few.read_into(
        [np.zeros(2 * BLOCK + 50, np.uint8)], BLOCK, False
    )  # now a quarter has been asked for
    assert few.needs(7 * BLOCK, 10) == BLOCKS
    few.fetch(7 * BLOCK, 10)
    assert few.needs(7 * BLOCK, BLOCK) == READY


def test_other_threads_fetch_blocks_ahead(file: Path, content: np.ndarray) -> None:
    """`read_cached` and `prefetch` do not wait; the threads of a process do."""
    reader = reader_of(file, whole=True)
    part = np.zeros(1000, np.uint8)
    if reader.read_cached([part], 6 * BLOCK):
        pytest.skip("this file system keeps files in memory")
    assert reader.mapped is not None
    deadline = time.monotonic() + 60
    while reader.mapped.needs(6 * BLOCK, 1000) != READY and time.monotonic() < deadline:
        time.sleep(0.001)
    assert reader.read_cached([part], 6 * BLOCK)
    assert np.array_equal(part, content[6 * BLOCK :][:1000])


def test_a_file_that_is_no_local_file_with_content_is_not_mapped(tmp_path: Path) -> None:
    """Such as an empty one, a folder, or one of the kernel's; it is read by system calls."""
    (tmp_path / "empty").touch()
    for path in (tmp_path / "empty", tmp_path, Path("/proc/self/maps")):
        assert LocalReader(path).mapped is None


def test_a_limited_address_space_is_left_to_others(file: Path, content: np.ndarray) -> None:
    """Files are then read by system calls: maps of a large store would take all of it."""
    reader_of(file)  # or the test is skipped
    limits = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (1 << 46, limits[1]))
    try:
        reader = LocalReader(file)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)
    assert reader.mapped is None
    part = np.zeros(5000, np.uint8)
    reader.read_into([part], 77)
    assert np.array_equal(part, content[77:5077])


def test_reads_of_holes_take_no_memory() -> None:
    """On a file system in memory, where a read through a map would fill them."""
    folder = Path("/dev/shm")
    if not os.access(folder, os.W_OK) or os.statvfs(folder).f_bavail < 4096:
        pytest.skip("needs a file system in memory")
    with tempfile.NamedTemporaryFile(dir=folder) as file:
        file.write(b"x" * 5000)
        os.truncate(file.name, 2 * BLOCK)
        os.pwrite(file.fileno(), b"y" * 5000, 2 * BLOCK - 5000)
        before = os.fstat(file.fileno()).st_blocks
        part = np.ones(2 * BLOCK, np.uint8)
        LocalReader(Path(file.name), True).read_into([part], 0)
        assert bytes(part[:5000]) == b"x" * 5000
        assert bytes(part[-5000:]) == b"y" * 5000
        assert not part[5000:-5000].any()
        assert os.fstat(file.fileno()).st_blocks == before


def run(program: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run a program that a signal may end."""
    return subprocess.run(
        [sys.executable, "-c", program, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


CUT_WHILE_READING = """
import os, sys, threading
from pathlib import Path
import numpy as np
from pipeline.store.backend.local_reader import LocalReader

path, whole = Path(sys.argv[1]), Path(sys.argv[1]).read_bytes()
readers = [LocalReader(path, True) for _ in range(4)]
right = np.frombuffer(whole, np.uint8)
counts = {"read": 0, "end": 0, "wrong": 0}
stopped = threading.Event()

def read(number):
    random = np.random.default_rng(number)
    part = np.empty(200_000, np.uint8)
    while not stopped.is_set():
        at = int(random.integers(0, len(whole) - len(part)))
        try:
            readers[number % 4].read_into([part], at)
        except EOFError:
            counts["end"] += 1
        else:
            same = part == right[at : at + len(part)]
            counts["read"] += 1
            counts["wrong"] += not (same | (part == 0)).all()

threads = [threading.Thread(target=read, args=(i,)) for i in range(32)]
for thread in threads:
    thread.start()
for _ in range(25):
    os.truncate(path, 5000)
    with path.open("r+b") as file:
        file.write(whole)
stopped.set()
for thread in threads:
    thread.join()
print(counts)
"""


def test_a_file_that_is_cut_short_under_32_threads_is_an_error(file: Path) -> None:
    """It is cut and restored 25 times, also between the fetch of a block and its copy."""
    if not is_mapped(file):
        pytest.skip("this file system is not mapped")
    done = run(CUT_WHILE_READING, file)
    assert done.returncode == 0, done.stderr[-2000:]
    counts = eval(done.stdout)
    assert counts["wrong"] == 0
    assert counts["read"] > 100
    assert counts["end"] > 100


CODECS = {"float16": {}, "int8": {"codec": INT8}}


def read_store(root: Path, codec: str) -> pipeline.FeatureStore:
    """A store that has been read."""
    make_store(root, [300, 200, 100], frames_per_unit=1024, **CODECS[codec])
    store = pipeline.open_store(root)
    store.read(2)
    return store


@pytest.fixture(params=CODECS)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> pipeline.FeatureStore:
    """A store that has been read, of each codec."""
    return read_store(tmp_path / "store", request.param)


def shard_of(store: pipeline.FeatureStore) -> Path:
    return Path(store._shards.locate(0, 0))


def test_a_shard_that_is_cut_short_after_it_was_read_is_damaged(
    store: pipeline.FeatureStore,
) -> None:
    """The message names it, in every thread; what is left of it can be read."""
    shard = shard_of(store)
    os.truncate(shard, 4096)

    def read(_: int) -> str:
        with pytest.raises(DamagedError) as found:
            store.read(2, layers=[1])
        return str(found.value)

    with ThreadPoolExecutor(8) as pool:
        messages = set(pool.map(read, range(64)))
    assert all(str(shard) in message and "strata verify" in message for message in messages)


class Clips(Dataset[int]):
    """Reads whose workers have torch's handler of SIGBUS, which was set after ours."""

    def __init__(self, store: pipeline.FeatureStore) -> None:
        self.store = store

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> int:
        try:
            self.store.read(2, layers=[1])
        except DamagedError:
            return 1
        return 0


@pytest.mark.parametrize("method", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_workers_of_a_loader_report_it_too(tmp_path: Path, method: str) -> None:
    """With a map that was made before the fork, or in the worker; of each codec."""
    stores = [read_store(tmp_path / codec, codec) for codec in CODECS]
    for store in stores:
        os.truncate(shard_of(store), 4096)
    context = multiprocessing.get_context(method)
    clips = ConcatDataset([Clips(store) for store in stores])
    loader = DataLoader(clips, batch_size=2, num_workers=1, multiprocessing_context=context)
    assert torch.cat(list(loader)).tolist() == [1, 1, 1, 1] * 2


OTHER_SIGNALS = """
import faulthandler, mmap, os, sys
from pathlib import Path
import numpy as np
from pipeline.store.backend.local_reader import LocalReader

path, order = Path(sys.argv[1]), sys.argv[2]
if order == "before":
    faulthandler.enable()
reader = LocalReader(path, True)
part = np.empty(1000, np.uint8)
reader.read_into([part], 0)
if order == "after":
    faulthandler.enable()
reader.read_into([part], 0)
with path.open("rb") as file:
    other = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
os.truncate(path, 0)
try:
    reader.read_into([part], 0)
except EOFError:
    print("an error", flush=True)
other[0]
print("not reached")
"""


@pytest.mark.parametrize("order", ["before", "after", "never"])
def test_a_signal_of_other_code_ends_the_process_as_before(file: Path, order: str) -> None:
    """Its traceback is printed if faulthandler is on, whichever was set up first."""
    if not is_mapped(file):
        pytest.skip("this file system is not mapped")
    done = run(OTHER_SIGNALS, file, order)
    assert done.stdout == "an error\n"
    assert done.returncode == -signal.SIGBUS
    assert ("Fatal Python error: Bus error" in done.stderr) == (order != "never")


SIGNAL_IN_A_WORKER = """
import mmap, os, sys
from pathlib import Path
import numpy as np
from torch.utils.data import DataLoader
from pipeline.store.backend.local_reader import LocalReader

class Reads:
    def __len__(self):
        return 1

    def __getitem__(self, index):
        path, part = Path(sys.argv[1]), np.empty(1000, np.uint8)
        LocalReader(path, True).read_into([part], 0)
        with path.open("rb") as file:
            other = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
        os.truncate(path, 0)
        return other[0]

list(DataLoader(Reads(), num_workers=1, multiprocessing_context="fork"))
"""


def test_a_signal_of_other_code_in_a_worker_is_reported_as_before(file: Path) -> None:
    """By torch, whose handler takes more arguments than faulthandler's."""
    if not is_mapped(file):
        pytest.skip("this file system is not mapped")
    done = run(SIGNAL_IN_A_WORKER, file)
    assert done.returncode == 1
    assert "Unexpected bus error encountered in worker" in done.stderr


@pytest.fixture
def failing_disk(tmp_path: Path, content: np.ndarray) -> Iterator[Path]:
    """A file on a disk that has lost its later half."""
    if os.geteuid() or not shutil.which("mkfs.ext4"):
        pytest.skip("needs root and mkfs.ext4")
    image, mount = tmp_path / "disk", tmp_path / "mount"
    mount.mkdir()
    image.touch()
    os.truncate(image, 48 << 20)
    commands = [["mkfs.ext4", "-q", image], ["mount", "-o", "loop", image, mount]]
    for command in commands:
        if subprocess.run([str(part) for part in command], capture_output=True).returncode:
            pytest.skip("loop devices cannot be mounted here")
    try:
        (mount / "file").write_bytes(content.tobytes())
        subprocess.run(["umount", str(mount)], check=True)
        subprocess.run(["mount", "-o", "loop,ro", str(image), str(mount)], check=True)
        os.truncate(image, 4 << 20)
        yield mount / "file"
    finally:
        subprocess.run(["umount", str(mount)], check=True)


def read_all(reader: LocalReader) -> None:
    for offset in range(0, 8 * BLOCK, 1 << 18):
        reader.read_into([np.empty(1 << 18, np.uint8)], offset)


def test_a_disk_that_fails_is_an_error(failing_disk: Path) -> None:
    """Whether its blocks are fetched first or not."""
    for whole in (False, True):
        reader = reader_of(failing_disk, whole)
        with pytest.raises(OSError, match="Input/output error"):
            read_all(reader)


def test_without_the_extension_system_calls_read(
    file: Path, content: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same bytes."""
    monkeypatch.setattr(mapped, "MappedFile", None)
    reader = LocalReader(file, True)
    assert reader.mapped is None
    part = np.zeros(5000, np.uint8)
    reader.prefetch(0, 5000)
    if not reader.read_cached([part], 77):
        reader.read_into([part], 77)
    assert np.array_equal(part, content[77:5077])


def test_one_layer_of_one_piece_is_read_in_the_shortest_way(
    store: pipeline.FeatureStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ranges are those of a slice; what the shortest way cannot read, the other one does."""
    whole = store.read(0)[1:2]
    ranges = [
        (None, None),
        (5, 9),
        (0, None),
        (None, 300),
        (-3, None),
        (2, 999),
        (7, 3),
        (300, 400),
    ]
    for start, stop in ranges:
        assert torch.equal(store.read(0, [2], start, stop), whole[:, start:stop])
    with monkeypatch.context() as patch:
        patch.setattr(type(store), "_fill", lambda *_: pytest.fail("the longer way"))
        if store.codec != INT8:
            assert torch.equal(store.read(0, [2], 5, 9), whole[:, 5:9])
    os.truncate(shard_of(store), 1000)
    with pytest.raises(DamagedError, match="verify"):
        store.read(0, [1], 250, 300)


def test_frames_are_scattered_from_the_map_to_their_places(store: pipeline.FeatureStore) -> None:
    """As reading and copying them does; decoded and verified values are left to these."""
    random = np.random.default_rng(0)
    sources = np.sort(random.choice(300, 150, replace=False)).astype(np.int64)
    places = random.permutation(150).astype(np.int64)
    expected, out = (np.zeros((150, 2, 8), np.float16) for _ in range(2))
    frames = store.read(0, [2])[0].numpy()
    RowScatter(300, [RowPlaces(sources, places, expected)]).copy(frames, 0, 1)
    scatter = RowScatter(300, [RowPlaces(sources, places, out)])
    slot, start = (int(values[0]) for values in store.piece_places()[1:3])
    shards = store.shards_of(slot)
    done = shards.scatter(1, slot, start, 100, scatter, 0, 1)
    assert done == (store.codec != INT8)
    if not done:
        return
    assert shards.scatter(1, slot, start + 100, 200, scatter, 100, 1)
    assert expected.any()
    assert np.array_equal(out, expected)
    with pytest.raises(ValueError, match="no column 2"):
        shards.scatter(1, slot, start, 300, scatter, 0, 2)
    os.truncate(shard_of(store), 4096)
    assert not shards.scatter(0, slot, start + 250, 50, scatter, 250, 1)
    with pipeline.open_store(store.root, verify=True) as verified:
        assert verified.verifies  # then frames are read and compared


STALE = """
import sys, types
stale = types.ModuleType("pipeline.store.native._mapped")
stale.MappedFile = object
sys.modules[stale.__name__] = stale
import pipeline.store.native
pipeline.store.native._mapped = stale
from pipeline.store.native import mapped
print(mapped.MappedFile)
"""


def test_a_library_from_before_a_change_is_not_used() -> None:
    """A checkout that was updated and not compiled again reads by system calls."""
    assert mapped.INTERFACE == mapped._mapped.INTERFACE
    assert run(STALE).stdout == "None\n"
