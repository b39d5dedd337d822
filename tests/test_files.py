"""A file exists completely, or not at all."""

from __future__ import annotations

import errno
import io
import json
import os
import stat
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from pipeline import files
from pipeline.errors import ConfigError, StoreError
from pipeline.files import (
    PartialFile,
    make_folder,
    publish,
    remove,
    write_atomic,
)
from tests.helpers.fake_store import KILL
from tests.helpers.forked import Forked, finish


def names(folder: Path) -> list[str]:
    """Return the sorted names in a folder."""
    return sorted(path.name for path in folder.iterdir())


def test_write_atomic_replaces_and_leaves_nothing_else(tmp_path: Path) -> None:
    """The parts one after the other; folders are created; no half-written file remains."""
    path = tmp_path / "a" / "b"
    write_atomic(path, [b"old and longer than new"])
    write_atomic(path, [b"ne", memoryview(b"w"), b""])
    assert path.read_bytes() == b"new"
    assert names(path.parent) == ["b"]


KILL_ANYWHERE = (
    KILL
    + """
import json
from pathlib import Path
from pipeline.files import write_atomic
root = Path(sys.argv[1])
seen = []
for n in range(1000):
    path = root / f"{n}" / "x"
    path.parent.mkdir()
    path.write_bytes(b"old")
    killed = killed_at(n, lambda: write_atomic(path, [b"a" * 70_000, b"b" * 70_000]))
    seen.append(path.read_bytes().decode())
    if not killed:
        break
print(json.dumps(seen))
"""
)


def test_a_killed_writer_leaves_the_old_file_or_the_new_one(tmp_path: Path) -> None:
    """SIGKILL before each system call in turn; `tests/test_exclusive.py` tries creation."""
    seen = json.loads(finish(Forked(KILL_ANYWHERE, tmp_path)))
    whole = "a" * 70_000 + "b" * 70_000
    assert seen[0] == "old"
    assert seen[-1] == whole
    assert set(seen) == {"old", whole}
    assert len(seen) > 8


@contextmanager
def unprivileged_read_only() -> Iterator[Path]:
    """Yield a folder that the child may read but not write."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "there").write_bytes(b"there")
        folder.chmod(stat.S_IRUSR | stat.S_IXUSR | stat.S_IRGRP | stat.S_IXGRP | 5)
        try:
            yield folder
        finally:
            folder.chmod(0o755)


def test_a_read_only_folder_is_one_clear_error() -> None:
    """The message has the file and the reason, and nothing changes."""
    code = """
import os, sys
from pathlib import Path
from pipeline import files
from pipeline.errors import ConfigError, StoreError
from pipeline.exclusive import create_exclusive
from pipeline.files import write_atomic
from pipeline.store.coordination.lease import Lease
root = Path(sys.argv[1])
if os.geteuid() == 0:
    os.setuid(65534)
def lease():
    with Lease(root, "run"):
        pass
for act in (lambda: write_atomic(root / "there", [b"x"]),
            lambda: create_exclusive(root / "new", [b"x"]), lease):
    try:
        act()
    except StoreError as error:
        print(type(error).__name__, error)
"""
    with unprivileged_read_only() as folder:
        lines = finish(Forked(code, folder)).splitlines()
        assert names(folder) == ["there"]
        assert (folder / "there").read_bytes() == b"there"
    assert lines == [
        f"StoreError {folder / name} cannot be written: Permission denied"
        for name in ("there", "new", "")
    ]


def test_a_file_in_place_of_a_folder_is_a_store_error(tmp_path: Path) -> None:
    """A store path that is a file is refused with one line."""
    (tmp_path / "store").write_bytes(b"")
    with pytest.raises(StoreError, match="cannot be written"):
        write_atomic(tmp_path / "store" / "x", [b""])


def test_a_write_that_takes_a_part_is_continued(tmp_path: Path) -> None:
    """As network file systems do; the rest would be lost."""

    class ShortFile(io.FileIO):
        def write(self, data: Any) -> int:
            return super().write(memoryview(data).cast("B")[:3])

    with ShortFile(tmp_path / "x", "w") as file:
        files.write_all(file, b"more than three bytes")
    assert (tmp_path / "x").read_bytes() == b"more than three bytes"


def test_make_folder_creates_parents(tmp_path: Path) -> None:
    """And accepts existing folders."""
    make_folder(tmp_path / "a" / "b" / "c")
    make_folder(tmp_path / "a" / "b" / "c")
    assert (tmp_path / "a" / "b" / "c").is_dir()


def test_a_failed_removal_is_a_store_error(tmp_path: Path) -> None:
    """It names the file; removing a missing file is no error."""
    remove(tmp_path / "nothing")
    (tmp_path / "folder").mkdir()
    with pytest.raises(StoreError, match="folder cannot be written"):
        remove(tmp_path / "folder")


def test_files_are_durable_before_they_have_their_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All bytes are synced, then the files are renamed, then each folder is synced once."""
    steps: list[tuple[str, str]] = []
    fsync, replace = os.fsync, Path.replace

    def record_fsync(descriptor: int) -> None:
        steps.append(("sync", str(Path(f"/proc/self/fd/{descriptor}").readlink())))
        fsync(descriptor)

    def record_replace(self: Path, target: Path) -> Path:
        steps.append(("rename", str(target)))
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", record_fsync)
    monkeypatch.setattr(Path, "replace", record_replace)
    root = tmp_path / "store"
    paths = [root / name / "0" for name in ("a/1", "a/2", "b/1")]
    partials = [PartialFile(path) for path in paths]
    for partial in partials:
        partial.write(b"bytes", 0)
    with ThreadPoolExecutor(3) as threads:
        publish(partials, root, threads.map)
    assert [path.read_bytes() for path in paths] == [b"bytes"] * 3
    assert [kind for kind, _ in steps] == ["sync"] * 3 + ["rename"] * 3 + ["sync"] * 6
    assert {name for _, name in steps[:3]}.isdisjoint(map(str, paths))
    folders = [root / name for name in ("a/1", "a/2", "b/1", "a", "b", "")]
    assert {name for _, name in steps[6:]} == {str(folder) for folder in folders}


@pytest.mark.parametrize("failing", ["file", "folder"])
def test_a_sync_that_fails_is_a_store_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    """Of a file: no file has its name. Of a folder: the error names the folder."""
    fsync = os.fsync

    def fails(descriptor: int) -> None:
        if Path(f"/proc/self/fd/{descriptor}").is_dir() == (failing == "folder"):
            raise OSError(errno.EIO, "Input/output error")
        fsync(descriptor)

    partials = [PartialFile(tmp_path / name) for name in "ab"]
    monkeypatch.setattr(os, "fsync", fails)
    with pytest.raises(StoreError, match="cannot be written: Input/output error"):
        publish(partials, tmp_path)
    for partial in partials:
        partial.discard()
    assert names(tmp_path) == ([] if failing == "file" else ["a", "b"])


def test_the_disk_starts_before_the_file_is_synced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every few megabytes of a file, whatever the size of the writes."""
    started = []
    real = files._start_writeback

    def record(descriptor: int) -> None:
        started.append(os.fstat(descriptor).st_size)
        real(descriptor)

    monkeypatch.setattr(files, "_start_writeback", record)
    content = os.urandom(5 << 20)
    large, small = PartialFile(tmp_path / "large"), PartialFile(tmp_path / "small")
    large.write(content + content, 0)
    assert started == [4 << 20, 8 << 20]
    for start in range(0, len(content), 1 << 18):
        small.write(content[start : start + (1 << 18)], start)
    assert started[2:] == [4 << 20]
    publish([large, small], tmp_path)
    assert (tmp_path / "large").read_bytes() == content + content
    assert (tmp_path / "small").read_bytes() == content


@pytest.mark.parametrize("text", ["s3://bucket/x", "s3:/bucket/x", Path("gs://b/x"), "file:///x"])
def test_a_uri_is_no_folder_to_write_reports_to(text: str | Path) -> None:
    """Else a folder named `s3:` would be made here."""
    with pytest.raises(ConfigError, match=r"out=.*: expected a folder of this machine"):
        files.local_folder("out", text)
    assert files.local_folder("out", "a:b/c") == Path("a:b/c")
