"""Of any number of creators of a file exactly one succeeds, with hard links and without."""

from __future__ import annotations

import errno
import io
import json
import os
import resource
from pathlib import Path
from typing import Any

import pytest

from pipeline import exclusive
from pipeline.errors import StoreError
from pipeline.exclusive import create_exclusive, is_reserved, link_exclusive, reservation
from pipeline.store.backend.local import LocalBackend
from tests.helpers.fake_store import KILL, MEET
from tests.helpers.forked import Forked, finish

NO_LINKS = ["EIO", "ENOSYS", "EPERM", "EACCES", "EOPNOTSUPP", "EMLINK", "EINVAL", "EXDEV"]


def names(folder: Path) -> list[str]:
    """Return the sorted names in a folder."""
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture(autouse=True)
def _unchecked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let each test find out anew what the file system can do."""
    monkeypatch.setattr(exclusive, "_checked_devices", set())


def forbid_links(monkeypatch: pytest.MonkeyPatch, name: str = "EPERM") -> None:
    """Make every hard link fail with an error."""
    number = getattr(errno, name)

    def link(*args: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "link", link)


@pytest.fixture
def no_links(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system without hard links, on which nobody waits for long."""
    forbid_links(monkeypatch)
    monkeypatch.setattr(exclusive, "ABANDONED_S", 0.1)


def test_create_exclusive_never_overwrites(tmp_path: Path) -> None:
    """The second creation returns False, and the first file does not change."""
    path = tmp_path / "x"
    assert create_exclusive(path, [b"first"])
    assert not create_exclusive(path, [b"second"])
    assert path.read_bytes() == b"first"
    assert names(tmp_path) == ["x"]


@pytest.mark.parametrize("name", NO_LINKS)
def test_it_is_exclusive_without_hard_links(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Whatever error a file system uses to say that it has none; nothing else is left."""
    forbid_links(monkeypatch, name)
    path = tmp_path / "x"
    assert create_exclusive(path, [b"fir", b"st"])
    assert not create_exclusive(path, [b"second"])
    assert path.read_bytes() == b"first"
    assert names(tmp_path) == ["x"]


def test_an_error_of_one_link_is_an_error_where_links_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A failing disk is not taken for a file system without hard links."""
    link = os.link

    def fails(source: Path, target: Path) -> None:
        if target.name == "x":
            raise OSError(errno.EIO, "Input/output error")
        link(source, target)

    monkeypatch.setattr(os, "link", fails)
    with pytest.raises(StoreError, match="x cannot be written: Input/output error"):
        create_exclusive(tmp_path / "x", [b"content"])
    with pytest.raises(StoreError, match="x cannot be linked: Input/output error"):
        link_exclusive(tmp_path / "y", tmp_path / "x")
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


def test_a_file_system_that_is_not_exclusive_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without hard links and with O_EXCL ignored: the place, and what it lacks."""
    forbid_links(monkeypatch)
    real = os.open

    def ignores(path: Any, flags: int, *rest: Any) -> int:
        return real(path, flags & ~os.O_EXCL, *rest)

    monkeypatch.setattr(os, "open", ignores)
    with pytest.raises(StoreError, match=rf"{tmp_path}: .* creates a file that exists already"):
        create_exclusive(tmp_path / "x", [b"content"])
    assert names(tmp_path) == []


@pytest.mark.parametrize("fault", ["copies", "keeps the old file"])
def test_a_file_system_that_does_not_rename_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    """A rename that leaves its source, or its target as it was, decides nothing."""
    forbid_links(monkeypatch)

    def rename(self: Path, target: Path) -> None:
        if fault == "copies":
            target.write_bytes(self.read_bytes())
        else:
            self.unlink()

    monkeypatch.setattr(Path, "replace", rename)
    with pytest.raises(StoreError, match=f"{tmp_path}: .* rename"):
        create_exclusive(tmp_path / "x", [b"content"])
    assert names(tmp_path) == []


def test_creation_without_hard_links_that_fails_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A truncated file with the final name would be taken for a commit."""

    def link(*args: object) -> None:
        limit = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, limit))  # for the second copy only
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", link)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        with pytest.raises(StoreError, match="cannot be written"):
            create_exclusive(tmp_path / "x", [bytes(1000)])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert names(tmp_path) == []


def test_a_vanished_folder_ends_the_creation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_links: None
) -> None:
    """It is not waited for: the store was unmounted."""
    folder = tmp_path / "store"

    def vanish(path: Path) -> bool:
        folder.rename(tmp_path / "away")
        return True

    monkeypatch.setattr(exclusive, "_reserve_final", vanish)
    with pytest.raises(StoreError, match="No such file"):
        create_exclusive(folder / "x", [b"content"])
    assert not folder.exists()


def test_what_is_only_reserved_does_not_exist(tmp_path: Path, no_links: None) -> None:
    """A creator was killed before its last step: no reader sees the name; the next one creates."""
    backend, path = LocalBackend(tmp_path), tmp_path / "index" / "x"
    path.parent.mkdir()
    path.touch()
    assert backend.exists("index/x")
    reservation(path).write_bytes(b"content")
    assert is_reserved(path)
    assert not backend.exists("index/x")
    assert backend.children("index") == list(backend.stamps("index")) == [reservation(path).name]
    with pytest.raises(FileNotFoundError):
        backend.read("index/x")
    assert backend.put_if_absent("index/x", [b"next"])
    assert backend.children("index") == list(backend.stamps("index")) == ["x"]
    assert backend.read("index/x") == b"next"


def test_a_clean_up_removes_a_reservation_and_the_empty_file(tmp_path: Path) -> None:
    """The file without its reservation would be taken for damage; one with content is kept."""
    backend = LocalBackend(tmp_path)
    for name, content in (("x", b""), ("y", b"content")):
        (tmp_path / name).write_bytes(content)
        reservation(tmp_path / name).write_bytes(b"rest")
        backend.delete(reservation(tmp_path / name).name)
    assert names(tmp_path) == ["y"]


def test_an_empty_file_without_reservation_is_not_replaced_if_links_work(tmp_path: Path) -> None:
    """It is damage, which verify reports."""
    (tmp_path / "x").touch()
    assert not create_exclusive(tmp_path / "x", [b"content"])
    assert LocalBackend(tmp_path).read("x") == b""


def test_a_suspended_creator_does_not_overwrite(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_links: None
) -> None:
    """Another one has taken its reservation away, and created the file meanwhile."""
    real = exclusive._reserve_final
    results = []

    def suspended(path: Path) -> bool:
        monkeypatch.setattr(exclusive, "_reserve_final", real)
        reserved = real(path)
        results.append(create_exclusive(path, [b"second"]))
        return reserved

    monkeypatch.setattr(exclusive, "_reserve_final", suspended)
    results.append(create_exclusive(tmp_path / "x", [b"first"]))
    assert results == [True, False]
    assert (tmp_path / "x").read_bytes() == b"second"
    assert names(tmp_path) == ["x"]


def test_a_file_that_exists_and_cannot_be_seen_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_links: None
) -> None:
    """Another machine has created it, and this one's view is older than it should be."""
    (tmp_path / "x").write_bytes(b"theirs")
    monkeypatch.setattr(exclusive, "_state", lambda path: None)
    with pytest.raises(StoreError, match="x exists, but cannot be seen from here"):
        create_exclusive(tmp_path / "x", [b"mine"])
    assert (tmp_path / "x").read_bytes() == b"theirs"


def test_a_reservation_that_is_always_changed_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_links: None
) -> None:
    """The creation does not try for ever."""
    monkeypatch.setattr(exclusive, "_check_exclusive", lambda path: None)
    monkeypatch.setattr(exclusive, "_ATTEMPTS", 4)
    monkeypatch.setattr(Path, "read_bytes", lambda self: b"another content")
    with pytest.raises(StoreError, match=r"x\.0{32}\.partial is taken away or changed"):
        create_exclusive(tmp_path / "x", [b"content"])
    assert not LocalBackend(tmp_path).exists("x")


def test_a_file_that_cannot_be_opened_is_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_links: None
) -> None:
    """`rclone mount` opens no file that another process is just renaming."""
    (tmp_path / "x").write_bytes(b"theirs")
    real = io.open

    def fails(path: Any, mode: str = "r", *rest: Any, **settings: Any) -> Any:
        if Path(path).name == "x" and not looked:
            looked.append(mode)
            raise OSError(errno.EIO, "Input/output error")
        return real(path, mode, *rest, **settings)

    looked: list[str] = []
    monkeypatch.setattr(io, "open", fails)
    monkeypatch.setattr(exclusive, "is_reserved", lambda path: True)  # as if just being created
    assert not create_exclusive(tmp_path / "x", [b"mine"])
    assert looked == ["rb"]
    assert (tmp_path / "x").read_bytes() == b"theirs"


def test_a_second_name_without_hard_links(tmp_path: Path, no_links: None) -> None:
    """A copy with the same time, unless the name is taken."""
    path = tmp_path / "x"
    path.write_bytes(b"content")
    os.utime(path, (1e9, 1e9))
    link_exclusive(path, tmp_path / "y")
    assert (tmp_path / "y").read_bytes() == b"content"
    assert (tmp_path / "y").stat().st_mtime == 1e9
    path.write_bytes(b"other")
    with pytest.raises(FileExistsError):
        link_exclusive(path, tmp_path / "y")
    assert (tmp_path / "y").read_bytes() == b"content"


FORBID = """
import os
def link(*args):
    raise OSError(5, "Input/output error")
if sys.argv[1] == "without":
    os.link = link
"""
RACE = (
    MEET
    + "import sys"
    + FORBID
    + """
from pathlib import Path
from pipeline.exclusive import create_exclusive
root, me, rounds = Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
for i in range(rounds):
    meet(root, i, me, 2)
    print(int(create_exclusive(root / f"x{i}", [f"{me}".encode() * 50])))
"""
)


@pytest.mark.parametrize("links", ["with", "without"])
def test_of_two_racing_processes_exactly_one_creates(tmp_path: Path, links: str) -> None:
    """200 rounds; the content is the winner's."""
    rounds = 200
    racers = [Forked(RACE, links, tmp_path, me, rounds) for me in (0, 1)]
    won = [finish(racer).split() for racer in racers]
    for i in range(rounds):
        winners = [me for me in (0, 1) if won[me][i] == "1"]
        assert len(winners) == 1
        assert (tmp_path / f"x{i}").read_bytes() == f"{winners[0]}".encode() * 50


KILL_ANYWHERE = (
    KILL
    + FORBID
    + """
import json
from pathlib import Path
from pipeline import exclusive
from pipeline.store.backend.local import LocalBackend
exclusive.ABANDONED_S = 0.02
exclusive.create_exclusive(Path(sys.argv[2]) / "first", [b"checked"])
seen = []
for n in range(1000):
    backend = LocalBackend(Path(sys.argv[2]) / f"{n}")
    content = [b"a" * 70_000, b"b" * 70_000]
    killed = killed_at(n, lambda: backend.put_if_absent("x", content))
    exists, listed = backend.exists("x"), "x" in backend.children("")
    assert exists == listed
    first = backend.read("x") if exists else b""
    created = backend.put_if_absent("x", [b"second"])
    seen.append((first.decode(), created, backend.read("x").decode(), killed))
    if not killed:
        break
print(json.dumps(seen))
"""
)


@pytest.mark.parametrize("links", ["with", "without"])
def test_a_killed_creator_leaves_a_complete_file_or_none(tmp_path: Path, links: str) -> None:
    """SIGKILL before each system call in turn; without a file, the next one creates it."""
    seen = json.loads(finish(Forked(KILL_ANYWHERE, links, tmp_path)))
    whole = "a" * 70_000 + "b" * 70_000
    for first, created, last, _ in seen:
        assert first in ("", whole)
        assert created == (first == "")
        assert last == (first or "second")
    assert seen[0][0] == ""
    assert seen[-1][0] == whole
    assert len(seen) > (14 if links == "without" else 8)
