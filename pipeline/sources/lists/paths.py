"""Paths of audio files as lists have them, and the files on this disk that they mean.

A list may be made on another system: with the separator of Windows, or with names in another normal
form of Unicode (é as one character, or as e and an accent) than the disk has. Such a path is looked
for only if no file has it as it is written.
"""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import counted
from pipeline.sources.remote.reading import resolved
from pipeline.sources.remote.uri import is_hub

_SPECIAL = r"(?i)^(~|file:/|hf:/)"
_REMOTE = r"^[A-Za-z0-9]+://"
_SUSPECT = r"[^\x00-\x7f]|\\|\s(/|$)|(^|/)\s"
_SPACES = re.compile(r"\s*(/|$)\s*")
_SPACE = re.compile(r"\s(/|$)|/\s")
_N_THREADS = 32  # they wait for the file system, which may be remote


def expanded(path: str) -> str:
    """Return a path without `~` at its start; a `file://` URL becomes the path that it encodes.

    A URI of the hub gets the commit of its revision, which never changes.
    """
    if is_hub(path):
        return resolved(path)
    if path[:6].lower() == "file:/":
        return unquote(re.sub(r"^//(localhost(?=/))?", "", path[5:]))
    return os.path.expanduser(path)  # noqa: PTH111 - `Path` would normalise the rest


def expand_all(paths: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return `expanded` of every path."""
    special = pc.unique(paths.filter(pc.match_substring_regex(paths, _SPECIAL))).to_pylist()
    return _replaced(paths, {path: expanded(path) for path in special})


def find_files(paths: pa.ChunkedArray, root: str | None) -> tuple[pa.ChunkedArray, tuple[str, ...]]:
    """Find the files of paths that do not exist as they are written.

    Args:
        paths: Absolute paths, as text or, if they repeat, as one dictionary.
        root: Folder that relative paths started from.

    Returns:
        The paths, of the files found where there is one; and notes on what was found.
    """
    if pa.types.is_dictionary(paths.type):
        encoded = paths.chunk(0)
        files, notes = find_files(pa.chunked_array([encoded.dictionary]), root)
        files = pa.DictionaryArray.from_arrays(encoded.indices, files.combine_chunks())
        return pa.chunked_array([files]), notes
    is_suspect = pc.match_substring_regex(paths, _SUSPECT)
    suspects = paths.filter(pc.and_not(is_suspect, pc.match_substring_regex(paths, _REMOTE)))
    if root is not None:  # whose own characters are no reason
        listed = pc.replace_substring(suspects, root, "", max_replacements=1)
        suspects = suspects.filter(pc.match_substring_regex(listed, _SUSPECT))
    unique = pc.unique(suspects).to_pylist()
    with ThreadPoolExecutor(_N_THREADS) as pool:
        exists = pool.map(_exists, unique) if unique else ()
        missing = [path for path, found in zip(unique, exists, strict=True) if not found]
    folders = _Folders()
    found = {path: folders.find(_plain(path)) for path in missing}
    changes = {path: file for path, file in found.items() if file is not None}
    return _replaced(paths, changes), tuple(_notes(changes))


def match_names(names: pa.ChunkedArray, files: Iterable[str]) -> pa.ChunkedArray:
    """Replace relative names that are not among `files` by those of `files` that they mean.

    If there is none, backslashes become forward slashes.
    """
    exact = pa.array(files, pa.string())
    missing = pc.unique(names.filter(pc.invert(pc.is_in(names, value_set=exact)))).to_pylist()
    if not missing:
        return names
    by_form = {_normal(file): file for file in exact.to_pylist()}
    found = {name: by_form.get(_normal(_plain(name)), name.replace("\\", "/")) for name in missing}
    return _replaced(names, found)


def _exists(path: str) -> bool:
    return os.path.lexists(path)


def _normal(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def _plain(path: str) -> str:
    """Return a path with forward slashes, and without spaces at the ends of its parts."""
    return _SPACES.sub(r"\1", path.replace("\\", "/"))


class _Folders:
    """Finds files whatever the normal form of their names; lists each folder once."""

    def __init__(self) -> None:
        self._find_folder = cache(self.find)
        self._names = cache(self._list_names)

    def find(self, path: str) -> str | None:
        """Return the path of the file; None if there is none."""
        if _exists(path):
            return path
        folder, _, name = path.rpartition("/")
        if not folder or not name:
            return None
        found = self._find_folder(folder)
        if found is None or not name.isascii():
            return None if found is None else self._names(found).get(_normal(name))
        return f"{found}/{name}" if _exists(f"{found}/{name}") else None

    def _list_names(self, folder: str) -> dict[str, str]:
        try:
            names = os.listdir(folder)  # noqa: PTH208 - names, not paths
        except OSError:
            return {}
        return {_normal(name): f"{folder}/{name}" for name in names if not name.isascii()}


def _notes(changes: dict[str, str]) -> Iterable[str]:
    kinds = {
        "backslashes in {} were read as /": [path for path in changes if "\\" in path],
        "spaces at an end were left out in {}": [p for p in changes if _SPACE.search(p)],
        "{} found in another normal form of Unicode": [
            path for path, file in changes.items() if _plain(path) != file
        ],
    }
    for words, affected in kinds.items():
        if affected:
            yield f"{words.format(counted(len(affected), 'audio path'))}, first {affected[0]!r}"


def _replaced(values: pa.ChunkedArray, changes: dict[str, str]) -> pa.ChunkedArray:
    """Replace some values of a column of text."""
    if not changes:
        return values
    place = pc.index_in(values, value_set=pa.array(changes, pa.string()))
    return pc.if_else(
        pc.is_valid(place), pa.array(list(changes.values()), pa.string()).take(place), values
    )
