"""Lists of remote files: those of a folder or a pattern, and the stamps of many."""

from __future__ import annotations

import fnmatch
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

from pipeline.errors import AudioError, SourceError
from pipeline.sources.remote.reading import (
    Info,
    as_info,
    client_of,
    explained,
    hub_listing,
    info_of,
)
from pipeline.sources.remote.uri import folder_of, is_hub, joined, name_of

_MAGIC = re.compile(r"[*?\[]")
_N_THREADS = 32  # they wait for the server
_MANY = 8
"""Files of a folder from which on it is listed, instead of asking for each."""
MISSING = "missing"
"""Stamp of a file that does not exist."""


def list_below(folder: str) -> dict[str, Info]:
    """List the files below a folder, at any depth, in the order of their names.

    Hidden files and folders (.name, __name) are left out.

    Returns:
        Size and stamp of each, by its path relative to the folder; empty if there is no folder.

    Raises:
        SourceError: The server does not answer, or does not allow it.
    """
    found = {
        name: info
        for name, info in _listed(folder).items()
        if not any(part.startswith((".", "__")) for part in name.split("/"))
    }
    return dict(sorted(found.items()))


def list_folder(folder: str) -> dict[str, Info]:
    """List the files directly in a folder: size and stamp of each, by its name.

    Raises:
        SourceError: The server does not answer, or does not allow it.
    """
    if is_hub(folder):
        return {name: info for name, info in hub_listing(folder).items() if "/" not in name}
    with _of_a_list(folder), explained(folder):
        client, key = client_of(folder)
        objects, _ = client.list_folder(key)
    return {name_of(found.key): as_info(found) for found in objects}


def is_file(uri: str) -> bool:
    """Return whether there is a file.

    Raises:
        SourceError: The server does not answer, or refuses it.
    """
    try:
        info_of(uri)
    except AudioError:
        return False
    return True


def has_files(folder: str) -> bool:
    """Return whether there is a file below a folder, at any depth.

    Raises:
        SourceError: The server does not answer, or does not allow it.
    """
    if is_hub(folder):
        return bool(hub_listing(folder))
    with _of_a_list(folder), explained(folder):
        client, key = client_of(folder)
        return client.has_any(key)


def find_all(pattern: str) -> list[str]:
    """Return the URIs that a pattern with `*`, `?` and `[…]` names; `**` is any depth.

    Raises:
        SourceError: The server does not answer, or does not allow it.
    """
    head = _MAGIC.split(pattern, maxsplit=1)[0]
    folder = folder_of(head) if "/" in head.partition("://")[2] else head
    rest = pattern[len(folder) :].lstrip("/")
    matches = re.compile(_translated(rest)).fullmatch
    return [joined(folder, name) for name in list_below(folder) if matches(name)]


def has_magic(text: str) -> bool:
    """Return whether a text is a pattern."""
    return _MAGIC.search(text) is not None


class Stamps:
    """Stamps of files; a folder of which many are wanted is listed, once."""

    def __init__(self) -> None:
        self._folders: dict[str, Mapping[str, Info]] = {}

    def of(self, uris: Iterable[str]) -> dict[str, str]:
        """Return size and stamp of each file, as one text; `MISSING` if there is none.

        Raises:
            SourceError: The server does not answer, or refuses it.
        """
        by_folder: dict[str, list[str]] = defaultdict(list)
        for uri in uris:
            by_folder[folder_of(uri)].append(uri)
        found: dict[str, str] = {}
        single: list[str] = []
        with ThreadPoolExecutor(_N_THREADS) as pool:
            wanted = [
                folder
                for folder, files in by_folder.items()
                if folder not in self._folders and (len(files) >= _MANY or is_hub(folder))
            ]
            self._folders |= zip(wanted, pool.map(list_folder, wanted), strict=True)
            for folder, files in by_folder.items():
                listed = self._folders.get(folder)
                if listed is None:
                    single += files
                else:
                    found |= {uri: _text(listed.get(name_of(uri))) for uri in files}
            found |= zip(single, pool.map(stamp_of, single), strict=True)
        return found


def stamp_of(uri: str) -> str:
    """Return size and stamp of a file as one text; `MISSING` if there is none.

    Raises:
        SourceError: The server does not answer, or refuses it.
    """
    if is_hub(uri):
        return Stamps().of([uri])[uri]
    try:
        return _text(info_of(uri))
    except AudioError:
        return MISSING


def _text(info: Info | None) -> str:
    return MISSING if info is None else f"{info.n_bytes} {info.stamp}"


def _listed(folder: str) -> Mapping[str, Info]:
    if is_hub(folder):
        return hub_listing(folder)
    with _of_a_list(folder), explained(folder):
        client, key = client_of(folder)
        start = len(key) + 1 if key else 0
        found = client.list(key)
    return {item.key[start:]: as_info(item) for item in found if not item.key.endswith("/")}


@contextmanager
def _of_a_list(folder: str) -> Iterator[None]:
    """Make an error that would concern one file one of the whole list."""
    try:
        yield
    except AudioError as error:
        raise SourceError(f"{folder} cannot be listed: {error}") from error


def _translated(pattern: str) -> str:
    """Return a pattern of paths as a regular expression."""
    parts: Sequence[str] = pattern.split("/")
    texts = []
    for i, part in enumerate(parts):
        is_last = i == len(parts) - 1
        if part == "**":
            texts.append(".*" if is_last else "(?:[^/]+/)*")
        else:
            text = re.sub(r"^\(\?s:(.*)\)\\(?:Z|z)$", r"\1", fnmatch.translate(part))
            texts.append(text.replace(".*", "[^/]*") + ("" if is_last else "/"))
    return "".join(texts)
