"""What every storage backend must satisfy.

A new backend is one more line in `BACKENDS`.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import pickle
import shutil
import threading
import time
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import ConfigError, StoreError, StoreNotFoundError
from pipeline.store.backend.base import Backend, final_name
from pipeline.store.backend.local import LocalBackend
from pipeline.store.backend.memory import MemoryBackend
from pipeline.store.backend.opening import absolute_location, open_backend
from pipeline.store.backend.remote.backend import RemoteBackend
from pipeline.store.backend.zarr_arrays import ZarrArrays, open_array
from pipeline.store.format.layout import FRAMES
from tests.helpers.backends import contents, in_memory
from tests.helpers.fake_store import MEET, FakeStore
from tests.helpers.forked import Forked, finish
from tests.servers.localbucket import BUCKET

BACKENDS: dict[str, Callable[[Path], Backend]] = {
    "local": lambda folder: LocalBackend(folder / "store"),
    "memory": lambda folder: MemoryBackend(),
    "s3": lambda folder: RemoteBackend(f"s3://{BUCKET}/{uuid.uuid4().hex}"),
    "azure": lambda folder: RemoteBackend(f"az://bucket/{uuid.uuid4().hex}"),
}
FILE_LIKE = ("local", "memory")
"""Backends with locks, renames and times that can be set."""
PAYLOAD = bytes(range(256)) * 40


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest, tmp_path: Path) -> Backend:
    """An empty backend of each kind."""
    if request.param == "s3":
        request.getfixturevalue("s3")
    if request.param == "azure":
        patch = request.getfixturevalue("monkeypatch")
        request.getfixturevalue("azurite").use(patch)
    return BACKENDS[request.param](tmp_path)


@pytest.fixture(params=FILE_LIKE)
def file_like(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    """An empty backend of each kind on which leases are files."""
    return BACKENDS[request.param](tmp_path)


# Whole objects


def test_put_replaces_and_read_returns_the_bytes(backend: Backend) -> None:
    """The parts one after the other, of bytes and memoryviews; folders need no creation."""
    backend.put("a/b/c", [b"old and longer than new"])
    backend.put("a/b/c", [b"ne", memoryview(b"w"), b""])
    assert backend.read("a/b/c") == b"new"
    assert backend.size("a/b/c") == 3
    assert backend.exists("a/b/c")
    assert contents(backend) == {"a/b/c": b"new"}


def test_put_if_absent_never_replaces(backend: Backend) -> None:
    """The second creation returns False and leaves the first object as it is."""
    assert backend.put_if_absent("x", [b"fir", b"st"])
    assert not backend.put_if_absent("x", [b"second"])
    assert contents(backend) == {"x": b"first"}
    backend.delete("x")
    assert backend.put_if_absent("x", [b"third"])


def test_a_missing_object_is_a_file_not_found_error(backend: Backend) -> None:
    """Also below a name that is an object itself; `exists` returns False."""
    backend.put("object", [b"x"])
    for key in ("none", "folder/none"):
        assert not backend.exists(key)
        for act in (backend.read, backend.size, backend.modified_s, backend.open_reader):
            with pytest.raises(FileNotFoundError):
                act(key)
        with pytest.raises(FileNotFoundError):
            backend.read_range(key, 0, 1)
    with pytest.raises(FileNotFoundError):
        backend.read("object/below")


def test_a_folder_is_not_an_object(backend: Backend) -> None:
    """Only what was written exists."""
    backend.put("folder/x", [b"x"])
    assert not backend.exists("folder")


def test_delete_removes_and_accepts_a_missing_object(backend: Backend) -> None:
    """Deleting twice is no error."""
    backend.put("a/x", [b"x"])
    backend.put("a/y", [b"y"])
    backend.delete("a/x")
    backend.delete("a/x")
    backend.delete("never/there")
    backend.sync("a")
    assert contents(backend) == {"a/y": b"y"}


def test_modified_s_is_the_time_of_the_last_write(backend: Backend) -> None:
    """In seconds since the epoch."""
    before = time.time() - 1
    backend.put("x", [b"x"])
    first = backend.modified_s("x")
    assert before < first < time.time() + 1
    time.sleep(
        1.1 if isinstance(backend, RemoteBackend) else 0.02
    )  # a server's times are in seconds
    backend.put("x", [b"y"])
    assert backend.modified_s("x") > first


def test_stamps_change_with_every_write(backend: Backend) -> None:
    """Of the objects of one folder. The same object keeps its stamp; other content has another."""
    assert backend.stamps("a") == {}
    for key in ("a/x", "a/y", "a/below/z", "other"):
        backend.put(key, [b"first"])
    first = backend.stamps("a")
    assert {"x", "y"} <= first.keys()
    assert backend.read("a/x") == b"first"
    assert backend.stamps("a") == first
    backend.put("a/x", [b"other"])
    second = backend.stamps("a")
    assert second["x"] != first["x"]
    assert second["y"] == first["y"]
    backend.delete("a/x")
    assert "x" not in backend.stamps("a")
    assert backend.put_if_absent("a/x", [b"third"])
    assert backend.stamps("a")["x"] not in (first["x"], second["x"])


def test_stamps_do_not_depend_on_the_names_that_are_expected(backend: Backend) -> None:
    """Whether these are all there, too few, too many, or others."""
    names = [f"unit-{number}.parquet" for number in range(30)]
    for name in names:
        backend.put(f"a/{name}", [name.encode()])
    truth = backend.stamps("a")
    assert {name: truth[name] for name in names} == truth
    for expected in (names, names[:7], names[5:], [*names, "unit-99.parquet"], ["z"], ["a", "b"]):
        assert backend.stamps("a", expected) == truth


def test_a_copy_of_a_file_has_another_stamp(tmp_path: Path) -> None:
    """Even with the size and the times of the original, as `cp -a` and `rsync -t` set them."""
    backend = LocalBackend(tmp_path)
    backend.put("a/x", [b"content"])
    stamp = backend.stamps("a")["x"]
    shutil.copy2(tmp_path / "a/x", tmp_path / "a/new")
    (tmp_path / "a/new").replace(tmp_path / "a/x")
    assert (tmp_path / "a/x").stat().st_mtime_ns == int(stamp.split("-")[2])
    assert backend.stamps("a")["x"] != stamp


def test_a_reader_never_sees_a_part_of_a_put(backend: Backend) -> None:
    """While one thread replaces an object, others read one content or the other."""
    whole = [bytes([value]) * 50_000 for value in (1, 2)]
    backend.put("x", [whole[0]])
    end = time.monotonic() + 0.5
    seen = set()

    def write() -> None:
        for content in itertools.cycle(whole):
            backend.put("x", [content[:20_000], content[20_000:]])
            if time.monotonic() > end:
                return

    def read() -> None:
        while time.monotonic() < end:
            content = backend.read("x")
            assert content in whole
            seen.add(content[0])

    with ThreadPoolExecutor(3) as pool:
        for future in [pool.submit(write), pool.submit(read), pool.submit(read)]:
            future.result()
    assert seen == {1, 2}


def test_of_racing_threads_exactly_one_creates(backend: Backend) -> None:
    """Eight threads, many rounds: one True per round, and the content is the winner's."""
    n, rounds = 8, 10 if isinstance(backend, RemoteBackend) else 50
    barrier = threading.Barrier(n)

    def race(me: int) -> list[bool]:
        won = []
        for i in range(rounds):
            barrier.wait()
            won.append(backend.put_if_absent(f"x/{i}", [bytes([me]) * 1000]))
        return won

    with ThreadPoolExecutor(n) as pool:
        results = list(pool.map(race, range(n)))
    for i in range(rounds):
        winners = [me for me in range(n) if results[me][i]]
        assert len(winners) == 1
        assert backend.read(f"x/{i}") == bytes([winners[0]]) * 1000


RACE = (
    MEET
    + """
import sys
from pathlib import Path
from pipeline.store.backend.remote.backend import RemoteBackend
from pipeline.store.backend.opening import absolute_location, open_backend
root, me, rounds = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
backend = open_backend(root / "store")
for i in range(rounds):
    meet(root, i, me, 3)
    print(int(backend.put_if_absent(f"x/{i}", [f"{me}".encode() * 500])))
"""
)


def test_of_racing_processes_exactly_one_creates(tmp_path: Path) -> None:
    """Three processes, fifty rounds."""
    rounds = 50
    racers = [Forked(RACE, tmp_path, me, rounds) for me in range(3)]
    won = [finish(racer).split() for racer in racers]
    for i in range(rounds):
        winners = [me for me in range(3) if won[me][i] == "1"]
        assert len(winners) == 1
        assert (tmp_path / "store" / "x" / f"{i}").read_text() == f"{winners[0]}" * 500


# Listing


def test_list_walks_a_folder_and_children_do_not(backend: Backend) -> None:
    """`list` has full keys; `children` the names of objects and folders, one level deep."""
    keys = {"a", "b/1", "b/2", "b/c/3", "bb/4"}
    for key in keys:
        backend.put(key, [b""])
    assert set(backend.list()) == keys
    assert set(backend.list("b")) == {"b/1", "b/2", "b/c/3"}
    assert sorted(backend.list("b/c")) == ["b/c/3"]
    assert sorted(backend.children("")) == ["a", "b", "bb"]
    assert sorted(backend.children("b")) == ["1", "2", "c"]
    assert list(backend.list("none")) == []
    assert list(backend.children("none")) == []


# Ranged reads


@given(offset=st.integers(0, 10_300), length=st.integers(0, 10_300))
def test_a_range_is_a_slice_or_an_error(offset: int, length: int) -> None:
    """A read beyond the end is an error, never less than what was asked for."""
    backend = MemoryBackend()
    backend.put("x", [PAYLOAD])
    check_range(backend, offset, length)


@pytest.mark.parametrize("offset", [0, 1, 5000, len(PAYLOAD) - 1])
@pytest.mark.parametrize("length", [0, 1, 4096, len(PAYLOAD)])
def test_ranges_of_every_backend(backend: Backend, offset: int, length: int) -> None:
    """The same, for each backend, with `read_range` and with an open reader."""
    backend.put("x", [PAYLOAD])
    check_range(backend, offset, length)


def check_range(backend: Backend, offset: int, length: int) -> None:
    expected = PAYLOAD[offset : offset + length]
    reader = backend.open_reader("x")
    assert reader.size == len(PAYLOAD)
    if len(expected) == length:
        assert backend.read_range("x", offset, length) == expected
        assert reader.read(offset, length) == expected
    else:
        with pytest.raises(EOFError):
            backend.read_range("x", offset, length)
        with pytest.raises(EOFError):
            reader.read(offset, length)


def test_a_reader_fills_arrays_of_any_shape_and_dtype(backend: Backend) -> None:
    """One after the other, more of them than one system call takes, and into parts of arrays."""
    backend.put("x", [PAYLOAD])
    reader = backend.open_reader("x")
    parts = [np.zeros((3, 5), np.float16), np.zeros(2, np.int64), np.zeros((1, 7), np.uint8)]
    reader.read_into(parts, 100)
    assert b"".join(part.tobytes() for part in parts) == PAYLOAD[100 : 100 + 30 + 16 + 7]
    many = np.zeros((5000, 2), np.uint8)
    reader.read_into(list(many), 11)
    assert many.tobytes() == PAYLOAD[11:10_011]


def test_a_read_beyond_the_end_is_an_error(backend: Backend) -> None:
    """Also if the object ends between two parts, or within one."""
    backend.put("x", [PAYLOAD])
    reader = backend.open_reader("x")
    for sizes in ([10, 20], [1, 10_239], [30, 10_200]):
        parts = [np.zeros(size, np.uint8) for size in sizes]
        with pytest.raises(EOFError):
            reader.read_into(parts, len(PAYLOAD) - sum(sizes) + 1)
        assert not reader.read_cached(parts, len(PAYLOAD) - sum(sizes) + 1)


def test_read_cached_returns_whether_it_filled_the_arrays(backend: Backend) -> None:
    """The backend decides which; `prefetch` accepts any range."""
    backend.put("x", [PAYLOAD])
    reader = backend.open_reader("x")
    reader.prefetch(0, len(PAYLOAD))
    reader.prefetch(len(PAYLOAD), 10)
    part = np.zeros(500, np.uint8)
    if not reader.read_cached([part], 77):
        reader.read_into([part], 77)
    assert part.tobytes() == PAYLOAD[77:577]


def test_an_open_reader_outlives_deletion(file_like: Any) -> None:
    """An open object of a folder can be read to its end; `drop` removes what others read."""
    file_like.put("x", [PAYLOAD])
    reader = file_like.open_reader("x")
    file_like.delete("x")
    assert reader.read(0, len(PAYLOAD)) == PAYLOAD


def test_an_open_reader_never_returns_other_bytes(backend: Backend) -> None:
    """Those of when it was opened, or an error: also if the object is replaced or deleted."""
    old, new = PAYLOAD, PAYLOAD[::-1]
    backend.put("x", [old])
    reader = backend.open_reader("x")
    for change in (lambda: backend.put("x", [new]), lambda: backend.delete("x")):
        change()
        with contextlib.suppress(OSError):
            assert reader.read(100, 5000) == old[100:5100]
        part = np.zeros(3000, np.uint8)
        with contextlib.suppress(OSError):
            reader.read_into([part], 7)
            assert part.tobytes() == old[7:3007]


def test_threads_share_a_reader(backend: Backend) -> None:
    """Reads from several threads do not disturb each other."""
    backend.put("x", [PAYLOAD])
    reader = backend.open_reader("x")
    offsets = np.random.default_rng(0).integers(0, len(PAYLOAD) - 100, 400).tolist()
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda offset: reader.read(offset, 100), offsets))
    assert found == [PAYLOAD[offset : offset + 100] for offset in offsets]


# Half-written objects


def test_a_partial_object_is_invisible_until_it_is_published(backend: Backend) -> None:
    """Bytes come in any order; the buffer may be reused at once."""
    partial = backend.open_partial("a/x")
    buffer = bytearray(b"world")
    partial.write(memoryview(buffer), 6)
    buffer[:] = b"hello"
    partial.write(memoryview(buffer), 0)
    buffer[:] = b"-----"
    partial.write(b" ", 5)
    assert not backend.exists("a/x")
    assert all(final_name(key) for key in backend.list())
    backend.publish([partial])
    partial.discard()  # of a published object: nothing happens
    assert contents(backend) == {"a/x": b"hello world"}


def test_a_partial_object_that_is_published_replaces_an_older_one(backend: Backend) -> None:
    """As `put` does."""
    backend.put("x", [b"older and longer"])
    partial = backend.open_partial("x")
    partial.write(b"new", 0)
    backend.publish([partial])
    assert contents(backend) == {"x": b"new"}


def test_a_discarded_object_leaves_nothing(backend: Backend) -> None:
    """Discarding twice is no error."""
    partial = backend.open_partial("x")
    partial.write(b"bytes", 0)
    partial.discard()
    partial.discard()
    assert contents(backend) == {}


# Logs


def test_append_adds_lines_and_ends_one_that_was_cut_short(backend: Backend) -> None:
    """The next line starts after it."""
    backend.put("other", [b""])
    backend.append("log", b"one\n")
    backend.append("log", b"two\n")
    backend.append("log", b"thr")
    backend.append("log", b"four\n")
    assert backend.read("log") == b"one\ntwo\nthr\nfour\n"


def test_lines_of_several_threads_are_not_mixed(backend: Backend) -> None:
    """Each line is complete and appears once."""
    backend.put("other", [b""])
    lines = [f"{i:04d}".encode() * 50 + b"\n" for i in range(200)]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda line: backend.append("log", line), lines))
    assert sorted(backend.read("log").splitlines(keepends=True)) == lines


# Leases


def test_of_racing_threads_exactly_one_makes_a_lease(backend: Backend) -> None:
    """If none stands, if one was released, and if one has expired."""
    leases, n = backend.leases, 4
    barrier = threading.Barrier(n, timeout=20)

    def race(me: int) -> list[bytes]:
        made = []
        for i in range(6):
            content = f"{me}-{i}".encode()
            barrier.wait()
            if leases.create("lease", content):
                made.append(content)
            barrier.wait()
            if content in made:
                assert leases.find("lease").content == content  # type: ignore[union-attr]
            barrier.wait()
            if content in made and i % 2:
                leases.release("lease", content)
            if i % 2 == 0:
                leases.expire("lease", lambda found: False)  # all of them
        return made

    with ThreadPoolExecutor(n) as pool:
        made = list(itertools.chain.from_iterable(pool.map(race, range(n))))
    assert sorted(content[-1] for content in made) == sorted(b"012345")
    assert leases.find("lease") is None


def test_a_lease_stands_until_it_is_released(backend: Backend) -> None:
    """By the one who made it; its heartbeat is by the clock that `lock` yields."""
    leases = backend.leases
    assert leases.find("lease") is None
    assert leases.create("lease", b"first")
    assert not leases.create("lease", b"second")
    found = leases.find("lease")
    assert found is not None
    assert found.content == b"first"
    with leases.lock("lock", 1.0) as now_s:
        assert abs(now_s - found.heartbeat_s) < 5
    assert abs(leases.now_s() - now_s) < 5
    leases.release("lease", b"second")
    assert leases.find("lease") == found
    leases.release("lease", b"first")
    assert leases.find("lease") is None
    assert leases.create("lease", b"third")


def test_a_heartbeat_is_seen_if_its_lease_stands(backend: Backend) -> None:
    """One of a lease that was replaced changes nothing of the new one."""
    leases = backend.leases
    assert leases.create("lease", b"first")
    before = leases.find("lease")
    assert before is not None
    end_s = time.monotonic() + 5
    while (after := leases.find("lease")) == before and time.monotonic() < end_s:
        time.sleep(0.05)
        leases.beat("lease", b"first")
    assert after is not None
    assert after.content == b"first"
    assert after.heartbeat_s > before.heartbeat_s
    leases.expire("lease", lambda found: False)
    assert leases.create("lease", b"second")
    new = leases.find("lease")
    time.sleep(1.1 if isinstance(backend, RemoteBackend) else 0.02)  # whole seconds
    leases.beat("lease", b"first")
    leases.release("lease", b"first")
    assert leases.find("lease") == new


def test_only_an_expired_lease_is_removed(backend: Backend) -> None:
    """A lease is looked at once more before it is removed; a missing one is no error."""
    leases = backend.leases
    leases.expire("lease", lambda found: False)
    assert leases.create("lease", b"first")
    before = leases.find("lease")
    leases.expire("lease", lambda found: found == before)
    assert leases.find("lease") == before
    leases.expire("lease", lambda found: found != before)
    assert leases.find("lease") is None


def test_a_lock_excludes_and_times_out(file_like: Any) -> None:
    """One at a time; the time that it yields is the clock of `modified_s`."""
    with file_like.lock("lock", 1.0) as now_s:
        file_like.put("x", [b""])
        assert abs(file_like.modified_s("x") - now_s) < 5

        def wait() -> None:
            with file_like.lock("lock", 0.05):
                pass

        with ThreadPoolExecutor(1) as pool, pytest.raises(TimeoutError):
            pool.submit(wait).result()
    with file_like.lock("lock", 1.0):
        pass


def test_touch_changes_the_time_alone(file_like: Any) -> None:
    """Of an object that exists."""
    file_like.put("x", [b"content"])
    before = file_like.modified_s("x")
    time.sleep(0.02)
    file_like.touch("x")
    assert file_like.modified_s("x") > before
    assert file_like.read("x") == b"content"
    with pytest.raises(OSError):  # noqa: PT011 - of which kind is not part of the contract
        file_like.touch("none")


def test_of_racing_moves_exactly_one_succeeds(file_like: Any) -> None:
    """The others find nothing to move."""
    for i in range(20):
        file_like.put("x", [b"content"])
        barrier = threading.Barrier(4)

        def move(me: int, i: int = i, barrier: threading.Barrier = barrier) -> bool:
            barrier.wait()
            try:
                file_like.move("x", f"moved-{i}-{me}")
            except FileNotFoundError:
                return False
            return True

        with ThreadPoolExecutor(4) as pool:
            assert sum(pool.map(move, range(4))) == 1
        assert not file_like.exists("x")
    assert set(contents(file_like).values()) == {b"content"}
    assert len(contents(file_like)) == 20


def test_restore_keeps_the_time_and_never_replaces(file_like: Any) -> None:
    """An object that was moved by mistake keeps its time."""
    file_like.put("lease", [b"mine"])
    modified_s = file_like.modified_s("lease")
    file_like.move("lease", "removed")
    assert file_like.modified_s("removed") == modified_s
    file_like.restore("removed", "lease")
    assert file_like.modified_s("lease") == modified_s
    assert file_like.read("lease") == b"mine"
    file_like.put("lease", [b"other"])
    with pytest.raises(FileExistsError):
        file_like.restore("removed", "lease")
    assert file_like.read("lease") == b"other"


# The backend itself


def test_a_pickled_backend_is_the_same_store(backend: Backend) -> None:
    """In this process; the memory of another process is out of reach."""
    backend.put("x", [b"content"])
    copy = pickle.loads(pickle.dumps(backend))
    assert copy.uri == backend.uri == str(backend)
    copy.put("y", [b"more"])
    assert contents(copy) == contents(backend) == {"x": b"content", "y": b"more"}


def test_a_backend_opens_itself(backend: Backend) -> None:
    """`open_backend` returns a backend as it is."""
    assert open_backend(backend) is backend


def test_messages_can_name_an_object(backend: Backend) -> None:
    """`locate` begins with the store's name and ends with the key."""
    assert backend.locate("a/b").startswith(backend.uri)
    assert backend.locate("a/b").endswith("a/b")


def test_a_backend_with_leases_can_be_tried(backend: Backend) -> None:
    """A driver tries it before it takes the lease; nothing is left, and there is nothing to say."""
    assert backend.leases.check() == ""
    assert contents(backend) == {}


def test_an_empty_store_has_room(backend: Backend) -> None:
    """In an empty store, too."""
    assert backend.free_bytes() > 1000
    assert backend.max_readers >= 1
    assert backend.parallel_reads >= 1


def test_zarr_python_reads_arrays_of_any_backend(store: FakeStore) -> None:
    """In a folder and in memory; an array is opened once."""
    path = store.root / FRAMES
    expected = zarr.open_array(path, mode="r")[:]
    for backend in (LocalBackend(store.root), in_memory(store.root)):
        np.testing.assert_array_equal(open_array(backend, FRAMES)[:], expected)
        arrays = ZarrArrays(backend)
        assert arrays[FRAMES] is arrays[FRAMES]
        with pytest.raises(FileNotFoundError):
            open_array(backend, "none")


# A folder


def test_a_path_opens_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Text or Path; a relative one keeps its meaning when the process changes its folder."""
    monkeypatch.chdir(tmp_path)
    backend = open_backend("store")
    assert backend == LocalBackend(tmp_path / "store") == open_backend(tmp_path / "store")
    monkeypatch.chdir("/")
    backend.put("x", [b"content"])
    assert (tmp_path / "store" / "x").read_bytes() == b"content"
    assert backend.local_path("x") == tmp_path / "store" / "x"


def test_an_unknown_kind_of_uri_is_refused() -> None:
    """With the URI in the message, and those that are known; a URI that is not complete, too."""
    with pytest.raises(StoreNotFoundError, match=r"nope://host/store: no kind of store; .*s3://"):
        open_backend("nope://host/store")
    with pytest.raises(ConfigError, match="name of a bucket"):
        open_backend("s3:///store")
    assert open_backend("file:///data/my%20store") == LocalBackend("/data/my store")


@pytest.mark.parametrize(
    "location", ["s3:/bucket/store", Path("s3://bucket/store"), "gs:/b", "HF:/d/u"]
)
def test_a_uri_with_one_slash_is_refused(location: Any) -> None:
    """A Path keeps one slash of a URI; a folder of such a name here would take the features."""
    with pytest.raises(ConfigError, match=r"two slashes after its colon.*or \./"):
        open_backend(location)
    with pytest.raises(ConfigError, match=r"two slashes after its colon"):
        absolute_location(str(location))
    assert absolute_location("./s3:/x") == str(Path("s3:/x").absolute())
    assert open_backend("./s3:/x") == LocalBackend(Path("s3:/x").absolute())


def test_the_room_in_a_folder_is_that_of_its_disk(tmp_path: Path) -> None:
    """Also of a folder that does not exist yet."""
    free = LocalBackend(tmp_path / "not" / "yet").free_bytes()
    assert free == pytest.approx(LocalBackend(tmp_path).free_bytes(), rel=0.2)


def test_a_file_system_without_a_size_is_not_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """FUSE file systems that do not answer have no blocks, and none free."""
    nothing = SimpleNamespace(f_blocks=0, f_bavail=0, f_bfree=0, f_frsize=0)
    monkeypatch.setattr(os, "statvfs", lambda path: nothing)
    assert LocalBackend(tmp_path).free_bytes() == 1 << 62
    full = SimpleNamespace(f_blocks=10, f_bavail=0, f_bfree=0, f_frsize=4096)
    monkeypatch.setattr(os, "statvfs", lambda path: full)
    assert LocalBackend(tmp_path).free_bytes() == 0


def test_a_log_does_not_recreate_a_vanished_folder(tmp_path: Path) -> None:
    """That would hide that the store is gone."""
    with pytest.raises(StoreError, match=r"log\.jsonl"):
        LocalBackend(tmp_path / "gone").append("log.jsonl", b"line\n")
    assert not (tmp_path / "gone").exists()


def test_an_error_of_a_descriptor_names_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A failing disk opens a file and then does not read it."""
    backend = LocalBackend(tmp_path)
    backend.put("x", [b"content"])

    def fails(*args: Any) -> Any:
        raise OSError(errno.EIO, "Input/output error")

    for look in (backend.read, backend.modified_s):
        with monkeypatch.context() as patch:
            patch.setattr(os, "fstat", fails)
            patch.setattr(Path, "read_bytes", fails)
            with pytest.raises(OSError, match="output error") as found:
                look("x")
        assert found.value.filename == str(tmp_path / "x")


def test_a_reader_that_cannot_be_closed_is_silent(tmp_path: Path) -> None:
    """A network file system may report at close() that it is full; what was read is read."""
    backend = LocalBackend(tmp_path)
    backend.put("x", [b"content"])
    reader = backend.open_reader("x")
    closed = []

    def fails(descriptor: int) -> None:
        closed.append(descriptor)
        raise OSError(errno.ENOSPC, "No space left on device")

    reader.__del__(fails)
    assert closed == [reader.descriptor]


# Memory


def test_the_memory_of_a_store_that_was_dropped_is_gone() -> None:
    """Its pickle cannot be loaded any more."""
    backend = MemoryBackend()
    pickled = pickle.dumps(backend)
    del backend
    with pytest.raises(StoreNotFoundError, match="in this process: it was dropped"):
        pickle.loads(pickled)


# Opening


@pytest.mark.parametrize("location", [None, 5, b"/tmp"])
def test_what_is_no_location_is_a_type_error(location: Any) -> None:
    """`open_store(None)` must not fail with the name of an internal method."""
    with pytest.raises(TypeError, match=r"os\.PathLike|path as text"):
        open_backend(location)


def test_a_file_in_place_of_a_folder_is_a_missing_object(tmp_path: Path) -> None:
    """Every way to look for an object below it says so, as the contract asks."""
    backend = LocalBackend(tmp_path)
    (tmp_path / "ledger").write_text("a file")
    for look in (backend.read, backend.size, backend.modified_s, backend.open_reader):
        with pytest.raises(FileNotFoundError):
            look("ledger/slot-0.json")
    assert not backend.exists("ledger/slot-0.json")
    assert list(backend.children("ledger")) == []
    assert list(backend.list("ledger")) == []


def test_an_error_of_a_read_names_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The system's error of a read names none; its number and type stay."""

    def fail(path: Path) -> bytes:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(Path, "read_bytes", fail)
    with pytest.raises(OSError, match="Input/output error") as caught:
        LocalBackend(tmp_path).read("ledger/slot-3.json")
    assert caught.value.filename == str(tmp_path / "ledger/slot-3.json")
    assert caught.value.errno == errno.EIO
