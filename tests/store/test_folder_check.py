"""What a driver finds out about the file system of a store before it begins."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import NoSpaceError, StoreError
from pipeline.events import Observer
from pipeline.extract import run
from pipeline.store.backend import local
from pipeline.store.backend.folder_check import check_folder, warn_of_caches
from pipeline.store.coordination.lease import Lease
from tests.helpers.corpus import write_folder
from tests.helpers.extraction import INLINE, configured

Patch = pytest.MonkeyPatch


def in_order(patch: Patch) -> None:
    """Write a file from its start to its end only."""
    real = os.pwrite

    def pwrite(descriptor: int, data: bytes, offset: int) -> int:
        if offset != os.fstat(descriptor).st_size:
            raise OSError(errno.EPERM, "Operation not permitted")
        return real(descriptor, data, offset)

    patch.setattr(os, "pwrite", pwrite)


def lossy(patch: Patch) -> None:
    """Report bytes as written that are not."""
    patch.setattr(os, "pwrite", lambda descriptor, data, offset: len(data))


def no_sync(patch: Patch) -> None:
    """Refuse to sync."""

    def fsync(descriptor: int) -> None:
        raise OSError(errno.EINVAL, "Invalid argument")

    patch.setattr(os, "fsync", fsync)


def no_replace(patch: Patch) -> None:
    """Rename only to a name that is free."""

    def replace(self: Path, target: Path) -> None:
        raise OSError(errno.EEXIST, "File exists")

    patch.setattr(Path, "replace", replace)


def copying(patch: Patch) -> None:
    """Leave the old name after a rename."""
    patch.setattr(Path, "replace", lambda self, target: target.write_bytes(self.read_bytes()))


def no_times(patch: Patch) -> None:
    """Accept a time and forget it."""
    patch.setattr(os, "utime", lambda *args, **settings: None)


LACKS: dict[str, Callable[[Patch], None]] = {
    "write a file in any order": in_order,
    "read back what was written: 0 bytes came back": lossy,
    "sync a file": no_sync,
    "replace a file by a rename: File exists": no_replace,
    "replace a file by a rename: the old file is still there": copying,
    "set the time of a file": no_times,
}


@pytest.mark.parametrize("words", LACKS)
def test_what_a_file_system_lacks_is_named_before_the_run(
    tmp_path: Path, monkeypatch: Patch, words: str
) -> None:
    """With the folder; no lease is taken and nothing is left."""
    LACKS[words](monkeypatch)
    pattern = f"^{tmp_path}: this file system cannot {words}.* Put the store on another one$"
    with pytest.raises(StoreError, match=pattern), Lease(tmp_path, "mine"):
        pass
    monkeypatch.undo()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("times", [1, 3])
def test_another_driver_may_clean_up_the_trial(
    tmp_path: Path, monkeypatch: Patch, times: int
) -> None:
    """It is made again; a file system that loses every file is still named."""
    real, left = os.fsync, [None] * times

    def fsync(descriptor: int) -> None:
        real(descriptor)
        if left:
            left.pop()
            for path in tmp_path.iterdir():
                path.unlink()

    monkeypatch.setattr(os, "fsync", fsync)
    if times == 1:
        check_folder(tmp_path)
    else:
        with pytest.raises(StoreError, match="cannot read back what was written: No such file"):
            check_folder(tmp_path)
    assert not left
    assert list(tmp_path.iterdir()) == []


def test_a_fault_that_is_seen_once_is_enough(tmp_path: Path, monkeypatch: Patch) -> None:
    """The trial is made again only if its files are gone, and not until it succeeds."""
    real, left = os.fsync, [OSError(errno.EINVAL, "Invalid argument")]

    def fsync(descriptor: int) -> None:
        if left:
            raise left.pop()
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(StoreError, match="cannot sync a file: Invalid argument"):
        check_folder(tmp_path)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_told_as_such(tmp_path: Path, monkeypatch: Patch, number: int) -> None:
    """It is not taken for something that the file system lacks."""

    def fails(*args: Any) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "pwrite", fails)
    with pytest.raises(NoSpaceError, match=f"no space left in {tmp_path}"):
        check_folder(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_sound_file_system_passes_and_nothing_is_left(tmp_path: Path, monkeypatch: Patch) -> None:
    """Also if a write is cut short, which is no fault, and times are those of FAT."""
    real_write, real_time = os.pwrite, os.utime

    def coarse(path: Path, times: tuple[float, float] | None = None) -> None:
        real_time(path, times)
        even = path.stat().st_mtime // 2 * 2 - 7200
        real_time(path, (even, even))

    monkeypatch.setattr(os, "pwrite", lambda fd, data, at: real_write(fd, data[:2], at))
    monkeypatch.setattr(os, "utime", coarse)
    check_folder(tmp_path / "new" / "store")
    assert [path.name for path in tmp_path.rglob("*")] == ["new", "store"]


MOUNTS = r"""
22 1 254:0 / / rw,relatime - ext4 /dev/vda rw
70 22 0:45 / /mnt/my\040bucket rw,nosuid - fuse.rclone remote:bucket rw,user_id=0
71 70 0:46 / /mnt/my\040bucket/disk rw - xfs /dev/vdb rw
"""


@pytest.mark.parametrize(
    ("folder", "warns"),
    [
        ("/mnt/my bucket", True),
        ("/mnt/my bucket/a/store", True),
        ("/mnt/my bucket/disk/store", False),
        ("/mnt/my", False),
        ("/store", False),
    ],
)
def test_a_mount_that_hides_other_machines_is_warned_of(
    tmp_path: Path, folder: str, warns: bool
) -> None:
    """The innermost mount of the folder counts."""
    (tmp_path / "mountinfo").write_text(MOUNTS.strip())
    text = warn_of_caches(Path(folder), tmp_path / "mountinfo")
    assert text.startswith(f"WARNING: {folder} is on rclone") if warns else text == ""
    assert warn_of_caches(Path(folder), tmp_path / "none") == ""


def test_a_run_prints_the_warning(tmp_path: Path, monkeypatch: Patch) -> None:
    """Once, as a note of the run."""
    monkeypatch.setattr(local, "warn_of_caches", lambda root: "WARNING: one machine only")
    clips = write_folder(tmp_path / "clips", [0.5])
    notes: list[str] = []

    class Notes(Observer):
        def note(self, text: str) -> None:
            notes.append(text)

    run.extract(configured(clips, tmp_path / "s", *INLINE), Notes())
    assert notes.count("WARNING: one machine only") == 1
