"""A file exists completely, or not at all."""

from __future__ import annotations

import json
import os
import resource
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pipeline.errors import StoreError
from pipeline.files import create_exclusive, make_folder, remove, write_atomic
from tests.helpers.fake_store import KILL, MEET, child, finish


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


def test_create_exclusive_never_overwrites(tmp_path: Path) -> None:
    """The second creation returns False, and the first file does not change."""
    path = tmp_path / "x"
    assert create_exclusive(path, [b"first"])
    assert not create_exclusive(path, [b"second"])
    assert path.read_bytes() == b"first"
    assert names(tmp_path) == ["x"]


def test_create_exclusive_without_hard_links(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is still exclusive on a file system without hard links."""

    def no_links(*args: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", no_links)
    path = tmp_path / "x"
    assert create_exclusive(path, [b"fir", b"st"])
    assert not create_exclusive(path, [b"second"])
    assert path.read_bytes() == b"first"
    assert names(tmp_path) == ["x"]


def test_creation_without_hard_links_that_fails_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A truncated file with the final name would be taken for a commit."""

    def no_links(*args: object) -> None:
        limit = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, limit))  # for the second copy only
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", no_links)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        with pytest.raises(StoreError, match="cannot be written"):
            create_exclusive(tmp_path / "x", [bytes(1000)])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert names(tmp_path) == []


def test_a_link_whose_reply_was_lost_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NFS may report that the link exists which it has just created: that is a success."""
    link = os.link

    def twice(source: Path, target: Path) -> None:
        link(source, target)
        link(source, target)

    monkeypatch.setattr(os, "link", twice)
    assert create_exclusive(tmp_path / "x", [b"mine"])
    assert (tmp_path / "x").read_bytes() == b"mine"


RACE = (
    MEET
    + """
import sys
from pathlib import Path
from pipeline.files import create_exclusive
root, me, rounds = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
for i in range(rounds):
    meet(root, i, me, 2)
    print(int(create_exclusive(root / f"x{i}", [f"{me}".encode() * 50])))
"""
)


def test_of_two_racing_processes_exactly_one_creates(tmp_path: Path) -> None:
    """200 rounds; the content is the winner's."""
    rounds = 200
    racers = [child(RACE, tmp_path, me, rounds) for me in (0, 1)]
    won = [finish(racer).split() for racer in racers]
    for i in range(rounds):
        winners = [me for me in (0, 1) if won[me][i] == "1"]
        assert len(winners) == 1
        assert (tmp_path / f"x{i}").read_bytes() == f"{winners[0]}".encode() * 50


KILL_ANYWHERE = (
    KILL
    + """
import json
from pathlib import Path
from pipeline import files
root, call = Path(sys.argv[1]), getattr(files, sys.argv[2])
seen = []
for n in range(1000):
    path = root / f"{n}" / "x"
    if sys.argv[2] == "write_atomic":
        path.parent.mkdir()
        path.write_bytes(b"old")
    killed = killed_at(n, lambda: call(path, [b"a" * 70_000, b"b" * 70_000]))
    seen.append(path.read_bytes().decode() if path.exists() else None)
    if not killed:
        break
print(json.dumps(seen))
"""
)


@pytest.mark.parametrize("call", ["write_atomic", "create_exclusive"])
def test_a_killed_writer_leaves_a_complete_file_or_none(tmp_path: Path, call: str) -> None:
    """SIGKILL before each system call in turn: the file is the old one, the new one, or absent."""
    seen = json.loads(finish(child(KILL_ANYWHERE, tmp_path, call)))
    whole = "a" * 70_000 + "b" * 70_000
    before = "old" if call == "write_atomic" else None
    assert seen[0] == before
    assert seen[-1] == whole
    assert set(seen) == {before, whole}
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
from pipeline.errors import StoreError
from pipeline.files import create_exclusive, write_atomic
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
        lines = finish(child(code, folder)).splitlines()
        assert names(folder) == ["there"]
        assert (folder / "there").read_bytes() == b"there"
    assert lines == [
        f"StoreError {folder / name} cannot be written: Permission denied"
        for name in ("there", "new", "lease.lock")
    ]


def test_a_file_in_place_of_a_folder_is_a_store_error(tmp_path: Path) -> None:
    """A store path that is a file is refused with one line."""
    (tmp_path / "store").write_bytes(b"")
    with pytest.raises(StoreError, match="cannot be written"):
        write_atomic(tmp_path / "store" / "x", [b""])


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
