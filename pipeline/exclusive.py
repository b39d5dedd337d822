"""Exclusive creation of a file: of any number of callers exactly one succeeds.

Where the file system has hard links, the file is written under a temporary name and linked to its
final name. Elsewhere (FAT, exFAT, most FUSE file systems of clouds) four steps replace the link:

1. create the *reservation* exclusively, a partial file with a fixed name beside the final one, and
   write the content into it;
2. create the final name exclusively, empty;
3. make sure that the reservation still has one's own content;
4. rename the reservation to the final name.

An empty file with a reservation beside it does not exist yet (`is_reserved`). A reservation that
does not change for `ABANDONED_S` belongs to a process that was killed. Another creator replaces it
by its own, atomically, so that step 3 or 4 of the first one, should it only have been suspended,
fails. The content of the final file says in the end who has created it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from pipeline.errors import StoreError
from pipeline.files import (
    PARTIAL_SUFFIX,
    Buffer,
    final_name,
    partial_file,
    partial_name,
    store_errors,
    sync_folder,
    write_synced,
)

ABANDONED_S = 10.0
"""Seconds without a change after which a reservation, or an empty file, is taken over; longer than
network file systems usually hide a change of another machine."""
_LOOK_S = 0.05
_ATTEMPTS = 400
_RESERVED_SUFFIX = f".{'0' * 32}{PARTIAL_SUFFIX}"
_RACERS, _ROUNDS = 4, 8
_checked_devices: set[int] = set()
"""Devices of file systems without hard links on which exclusive creation holds."""


def create_exclusive(path: Path, parts: Sequence[Buffer]) -> bool:
    """Create `path` with all its content, unless it exists.

    Returns:
        False if it existed; it is not changed.

    Raises:
        NoSpaceError: The disk is full.
        StoreError: The file cannot be written, or its file system has neither hard links nor
            exclusive creation.
    """
    with partial_file(path) as partial:
        write_synced(partial, parts)
        try:
            os.link(partial, path)
        except FileExistsError:
            if not is_reserved(path):
                return _same_file(partial, path)
        except OSError:
            if _links_work(path):
                raise
        else:
            sync_folder(path.parent)
            return True
        _check_exclusive(path)
        return _create_without_links(path, parts, partial)


def link_exclusive(path: Path, new: Path) -> None:
    """Make a file appear under a second name, too, with its modification time.

    Raises:
        FileExistsError: The second name is taken.
        StoreError: It cannot be written.
    """
    try:
        os.link(path, new)
    except FileExistsError:
        raise
    except OSError as error:
        if _links_work(new):
            raise StoreError(f"{new} cannot be linked: {error.strerror or error}") from error
        with store_errors(path):
            content, modified_ns = path.read_bytes(), path.stat().st_mtime_ns
        if not create_exclusive(new, [content]):
            raise FileExistsError(f"{new} exists") from None
        with store_errors(new):
            os.utime(new, ns=(modified_ns, modified_ns))


def reservation(path: Path) -> Path:
    """Return the name of the reservation of a file that is being created without hard links."""
    return path.with_name(path.name + _RESERVED_SUFFIX)


def reserved_name(name: str) -> str | None:
    """Return the final name of a reservation from its name; None if it is not named like one."""
    return final_name(name) if name.endswith(_RESERVED_SUFFIX) else None


def is_reserved(path: Path) -> bool:
    """Return whether a name is only reserved: an empty file whose content is not there yet."""
    try:
        return path.stat().st_size == 0 and reservation(path).exists()
    except OSError:
        return False


def without_reserved(folder: Path, names: list[str]) -> list[str]:
    """Leave out the names of a folder that are only reserved; costs nothing without reservations.

    Args:
        folder: The folder.
        names: All names in it.
    """
    finals = {reserved_name(name) for name in names} - {None}
    if not finals:
        return names
    return [name for name in names if name not in finals or not is_reserved(folder / name)]


def drop_reservation(reserved: Path) -> None:
    """Remove the reservation of a killed process, and the empty file that it has left."""
    if not reserved.exists():
        return
    final = _final_path(reserved)
    nobody = partial_name(final)
    nobody.touch()
    nobody.replace(reserved)  # its owner, should it live, stops here
    with suppress(FileNotFoundError):
        if final.stat().st_size == 0:
            final.unlink()
    reserved.unlink(missing_ok=True)


def _create_without_links(path: Path, parts: Sequence[Buffer], partial: Path) -> bool:
    """Create a file by a reservation; `partial` is a temporary name that is free to use."""
    content, reserved = b"".join(parts), reservation(path)
    for _ in range(_ATTEMPTS):
        try:
            if not _reserve(reserved, content, partial):
                continue  # another creator has finished, or has taken over
            if not _reserve_final(path):
                reserved.unlink(missing_ok=True)
            elif reserved.read_bytes() == content:
                reserved.replace(path)
                sync_folder(path.parent)
                return _is_content(path, content)
        except FileNotFoundError:  # it was taken over: this process was suspended for long
            if not path.parent.is_dir():
                raise
        except BaseException:
            with suppress(OSError):
                drop_reservation(reserved)
            raise
        state = _state(path)
        if state is not None and state[0]:
            return path.read_bytes() == content
    drop_reservation(reserved)
    raise StoreError(f"{reserved} is taken away or changed again and again; remove what does it")


def _reserve(reserved: Path, content: bytes, partial: Path) -> bool:
    """Create the reservation, or take over one that seems dead.

    Returns:
        False if another creator holds it, or has just finished.
    """
    try:
        write_synced(reserved, [content], "xb")
    except FileExistsError:
        end_s, first = time.monotonic() + ABANDONED_S, _state(reserved)
        while time.monotonic() < end_s:
            time.sleep(_LOOK_S)
            if first is None or _state(reserved) != first:
                return False
        write_synced(partial, [content])
        partial.replace(reserved)
    return True


def _reserve_final(path: Path) -> bool:
    """Reserve the final name for the holder of the reservation.

    Returns:
        False if there is a file with content. An empty one was left by a killed process.

    Raises:
        StoreError: There is a file that this machine cannot see.
    """
    end_s = time.monotonic() + ABANDONED_S
    while True:
        try:
            os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
            return True
        except FileExistsError:
            state = _state(path)
        if state is not None and state[0]:
            return False
        if time.monotonic() > end_s:
            break
        time.sleep(_LOOK_S)
    if state is None:
        raise StoreError(
            f"{path} exists, but cannot be seen from here after {ABANDONED_S:.0f} s: the file "
            "system hides what another machine has written; put the store on another one"
        )
    return True


def _state(path: Path) -> tuple[int, int] | None:
    """Return size and time of a file, None without one.

    It is opened, because network file systems ask the server then. A FUSE file system may not know
    an open file any more, if that is renamed; and `rclone mount` cannot open a file that is just
    being renamed ("Input/output error"), but knows it.
    """
    with suppress(FileNotFoundError):
        try:
            with path.open("rb") as file:
                status = os.fstat(file.fileno())
        except FileNotFoundError:
            return None
        except OSError:
            status = path.stat()
        return status.st_size, status.st_mtime_ns
    return None


def _is_content(path: Path, content: bytes) -> bool:
    """Return whether a file that was just renamed has this content, not that of another creator."""
    try:
        return path.read_bytes() in (content, b"")  # empty in the view of a moment ago
    except OSError:
        return True


def _final_path(reserved: Path) -> Path:
    return reserved.with_name(reserved_name(reserved.name) or "")


def _same_file(partial: Path, path: Path) -> bool:
    """Return whether an existing link is the one that was just created.

    A network file system repeats a request whose reply was lost, and then finds its own link.
    """
    try:
        return partial.samefile(path)
    except FileNotFoundError:
        return False


def _links_work(path: Path) -> bool:
    """Return whether the folder of `path` has hard links; what an error says differs."""
    first, second = partial_name(path), partial_name(path)
    try:
        write_synced(first, [b"x"])
        os.link(first, second)
    except OSError:
        return False
    finally:
        for name in (first, second):
            with suppress(OSError):
                name.unlink()
    return True


def _check_exclusive(path: Path) -> None:
    """Check once per file system that two creations of one name do not both succeed.

    Raises:
        StoreError: They do, or files cannot be renamed.
    """
    device = path.parent.stat().st_dev
    if device in _checked_devices:
        return
    lacks = _find_missing(path)
    if lacks:
        raise StoreError(
            f"{path.parent}: this file system has no hard links, and {lacks}; so two attempts "
            "could commit the same unit: put the store on another file system"
        )
    _checked_devices.add(device)


def _find_missing(path: Path) -> str:
    """Try what the creation without links needs; return what is missing, in words."""
    names = [partial_name(path) for _ in range(_ROUNDS)]
    moved = partial_name(path)
    try:
        with ThreadPoolExecutor(_RACERS) as threads:
            for name in names:
                n_won = sum(threads.map(_try_to_create, [name] * _RACERS))
                if n_won != 1 or _try_to_create(name):
                    return "creates a file that exists already"
        first, second = names[:2]
        write_synced(first, [b"content"])
        first.replace(second)
        if second.read_bytes() != b"content":
            return "does not replace a file by a rename"
        with suppress(FileNotFoundError):
            first.replace(moved)
            return "renames a file twice"
    finally:
        for name in (*names, moved):
            with suppress(OSError):
                name.unlink()
    return ""


def _try_to_create(path: Path) -> bool:
    try:
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
    except FileExistsError:
        return False
    return True
