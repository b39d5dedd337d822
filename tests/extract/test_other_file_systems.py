"""Runs on file systems that do less than a local disk, and on some that fail.

The faults are injected into the system calls of this process. `campaigns/file_systems` mounts
real file systems, and kills the drivers.
"""

from __future__ import annotations

import errno
import fcntl
import io
import os
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline import exclusive
from pipeline.errors import NoSpaceError, StoreError
from pipeline.extract import run
from pipeline.store.backend import local
from pipeline.store.coordination.run_history import read_history
from pipeline.store.maintain.verify import verify_store
from tests.helpers.corpus import mixed_lengths, write_folder
from tests.helpers.extraction import INLINE, configured, contents, extract

Patch = pytest.MonkeyPatch


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Clips for a store of some units."""
    return write_folder(tmp_path_factory.mktemp("audio") / "clips", mixed_lengths(16))


@pytest.fixture(scope="module")
def undisturbed(clips: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    """What a run on the local disk stores."""
    store = tmp_path_factory.mktemp("undisturbed") / "s"
    extract(clips, store, *INLINE)
    return contents(store)


@pytest.fixture(autouse=True)
def _unchecked(monkeypatch: Patch) -> None:
    monkeypatch.setattr(exclusive, "_checked_devices", set())


def error(number: int) -> OSError:
    """Return an error of the system."""
    return OSError(number, os.strerror(number))


def no_links(patch: Patch) -> None:
    """No hard links, as `rclone mount` reports it."""

    def link(*args: object) -> None:
        raise error(errno.EIO)

    patch.setattr(os, "link", link)


def short_calls(patch: Patch) -> None:
    """Every read and write does a part of what it is asked for."""
    pread, preadv, pwrite = os.pread, os.preadv, os.pwrite

    def some(n: int) -> int:
        return max(1, n * 2 // 3)

    def short_preadv(descriptor: int, parts: Any, offset: int, flags: int = 0) -> int:
        first = memoryview(parts[0]).cast("B")
        return preadv(descriptor, [first[: some(len(first))]], offset, flags)

    class ShortFile(io.FileIO):
        def write(self, data: Any) -> int:
            return super().write(memoryview(data).cast("B")[: some(len(data))])

    real_open = io.open

    def short_open(path: Any, mode: str = "r", buffering: int = -1, *rest: Any) -> Any:
        if buffering == 0:
            return ShortFile(path, mode.replace("b", ""))
        return real_open(path, mode, buffering, *rest)

    patch.setattr(io, "open", short_open)
    patch.setattr(os, "pread", lambda fd, n, offset: pread(fd, some(n), offset))
    patch.setattr(os, "preadv", short_preadv)
    patch.setattr(os, "pwrite", lambda fd, data, at: pwrite(fd, data[: some(len(data))], at))


def coarse_times(patch: Patch) -> None:
    """Times are even seconds, as on FAT."""
    real = os.utime

    def utime(path: Any, times: Any = None, **settings: Any) -> None:
        real(path, times, **settings)
        even = os.stat(path).st_mtime // 2 * 2  # noqa: PTH116 - a descriptor, too
        real(path, (even, even))

    patch.setattr(os, "utime", utime)


def no_locks(patch: Patch) -> None:
    """No advisory locks, and no hard links."""

    def flock(*args: object) -> None:
        raise error(errno.ENOLCK)

    names = {name: getattr(fcntl, name) for name in dir(fcntl) if name.startswith("LOCK_")}
    patch.setattr(local, "fcntl", SimpleNamespace(flock=flock, **names))
    no_links(patch)


def folders_are_not_synced(patch: Patch) -> None:
    """A folder cannot be synced, as on some network file systems."""
    real = os.fsync

    def fsync(descriptor: int) -> None:
        if Path(f"/proc/self/fd/{descriptor}").is_dir():
            raise error(errno.EINVAL)
        real(descriptor)

    patch.setattr(os, "fsync", fsync)


def rename_in_steps(patch: Patch) -> None:
    """A file that is replaced is gone for a moment."""
    real = Path.replace

    def replace(self: Path, target: Path) -> Path:
        self.stat()
        target.unlink(missing_ok=True)
        return real(self, target)

    patch.setattr(Path, "replace", replace)


LESS: list[Callable[[Patch], None]] = [
    no_links,
    no_locks,
    short_calls,
    coarse_times,
    folders_are_not_synced,
    rename_in_steps,
]


@pytest.mark.parametrize("fault", LESS, ids=lambda fault: fault.__name__)
def test_a_file_system_that_does_less_gets_the_same_store(
    clips: Path,
    undisturbed: dict[str, object],
    tmp_path: Path,
    monkeypatch: Patch,
    fault: Callable[[Patch], None],
) -> None:
    """Byte by byte; it reads and verifies there, too, and nothing else is left."""
    fault(monkeypatch)
    extract(clips, tmp_path / "s", *INLINE)
    assert contents(tmp_path / "s") == undisturbed
    found = verify_store(tmp_path / "s")
    assert found.ok
    assert not found.orphans
    history = read_history(tmp_path / "s")
    assert (len(history.runs), history.n_skipped) == (1, 0)


def failing(patch: Patch, name: str, number: int, is_due: Callable[..., bool]) -> None:
    """Let a call fail when it is due; a descriptor is closed all the same."""
    real = getattr(os, name)

    def call(*args: Any, **settings: Any) -> Any:
        due = is_due(*args)
        if due and name == "close":
            real(*args)
        if due:
            raise error(number)
        return real(*args, **settings)

    patch.setattr(os, name, call)


def every(n: int) -> Iterator[bool]:
    """Yield True once in `n` times."""
    return (i % n == 0 for i in count(1))


def is_shard(descriptor: int) -> bool:
    """Whether a descriptor is that of a shard that is being written."""
    try:
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
    except OSError:
        return False
    return "/frames/c/" in str(path) and path.suffix == ".partial"


FAULTS = {
    "EIO of a write": ("pwrite", errno.EIO, StoreError),
    "ENOSPC of a write": ("pwrite", errno.ENOSPC, NoSpaceError),
    "EDQUOT of a write": ("pwrite", errno.EDQUOT, NoSpaceError),
    "EIO of a sync": ("fsync", errno.EIO, StoreError),
    "ENOSPC at close": ("close", errno.ENOSPC, NoSpaceError),
    "EROFS of a sync": ("fsync", errno.EROFS, StoreError),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_call_that_fails_ends_the_run_and_nothing_is_lost(
    clips: Path,
    undisturbed: dict[str, object],
    tmp_path: Path,
    monkeypatch: Patch,
    name: str,
) -> None:
    """What was committed before is sound; the next run, without the fault, completes it."""
    call, number, kind = FAULTS[name]
    turns = every(120 if call == "pwrite" else 18)
    failing(monkeypatch, call, number, lambda fd, *rest: is_shard(fd) and next(turns))
    with pytest.raises(kind, match=str(tmp_path / "s")):
        run.extract(configured(clips, tmp_path / "s", *INLINE))
    monkeypatch.undo()
    found = verify_store(tmp_path / "s")
    assert not found.damages
    assert found.units_committed > 0
    extract(clips, tmp_path / "s", *INLINE)
    assert contents(tmp_path / "s") == undisturbed
    assert not verify_store(tmp_path / "s").orphans


def test_a_unit_that_was_only_reserved_is_extracted(
    clips: Path, undisturbed: dict[str, object], tmp_path: Path, monkeypatch: Patch
) -> None:
    """A worker was killed between the last two steps of a commit without hard links."""
    no_links(monkeypatch)
    monkeypatch.setattr(exclusive, "ABANDONED_S", 0.2)
    extract(clips, tmp_path / "s", *INLINE)
    index = tmp_path / "s" / "index" / "unit-1.parquet"
    index.rename(exclusive.reservation(index))
    index.touch()
    (tmp_path / "s" / "index.parquet").unlink()
    extract(clips, tmp_path / "s", *INLINE)
    assert contents(tmp_path / "s") == undisturbed
    assert not verify_store(tmp_path / "s").orphans
