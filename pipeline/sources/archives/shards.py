"""Shards of a dataset: the files that `dataset.path` names, and the splits that they belong to."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from pipeline.errors import SourceError, first_few
from pipeline.sources.folder import list_files
from pipeline.sources.lists.lines import check_path
from pipeline.sources.lists.paths import expanded
from pipeline.sources.remote.file import RemoteFolder
from pipeline.sources.remote.listing import find_all, has_magic, is_file, list_below
from pipeline.sources.remote.uri import folder_of, is_remote
from pipeline.sources.splits import ALL, are_splits, chosen, word_of

_INNER_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(-?\d+)\.\.(-?\d+)(?:\.\.(-?\d+))?")
_MAX_SHARDS = 1_000_000
_N_THREADS = 32  # they wait for the server


@dataclass(frozen=True)
class Shards:
    """The shards of a dataset.

    Attributes:
        root: Their nearest common folder.
        names: Their paths relative to it, sorted; of a folder perhaps none.
        skipped: Other files of the folder, if `dataset.path` is one.
    """

    root: Path | RemoteFolder
    names: list[str]
    skipped: tuple[str, ...] = ()


def find_shards(setting: str, suffix: str) -> Shards:
    """List the shards that `dataset.path` names.

    Args:
        setting: A file; a folder, of whose files those with the suffix are shards, at any depth; or
            a pattern: `*`, `?` and `[…]` of file names, `{000..012}` and `{a,b}` as in a shell.
        suffix: Suffix of shards in a folder.

    Raises:
        SourceError: A file does not exist, or a pattern matches none.
    """
    text = expanded(check_path(setting, "dataset.path"))
    if is_remote(text):
        return _remote_shards(text.rstrip("/"), setting, suffix)
    path = Path(text).absolute()
    if path.is_dir():
        files = list_files(path)
        names = [file for file in files if file.lower().endswith(suffix)]
        is_shard = set(names)
        return Shards(path, names, tuple(file for file in files if file not in is_shard))
    matches = [path] if path.exists() else _matches(text, setting)
    found = {str(match.absolute()) for match in matches}
    root = os.path.commonpath([os.path.dirname(file) for file in found])  # noqa: PTH120
    return Shards(Path(root), sorted(os.path.relpath(file, root) for file in found))


def _remote_shards(uri: str, setting: str, suffix: str) -> Shards:
    """List the shards that a URI names, as for a path."""
    parts = expand_braces(uri)
    if len(parts) == 1 and not has_magic(uri) and not is_file(uri):
        files = list(list_below(uri))
        names = [file for file in files if file.lower().endswith(suffix)]
        is_shard = set(names)
        if not files:
            raise SourceError(f"dataset.path={setting} does not exist, or is an empty folder")
        return Shards(RemoteFolder(uri), names, tuple(f for f in files if f not in is_shard))
    with ThreadPoolExecutor(_N_THREADS) as pool:
        exists = pool.map(lambda part: has_magic(part) or is_file(part), parts)
        missing = [part for part, found in zip(parts, exists, strict=True) if not found]
    if missing:
        raise _missing(setting, missing, len(parts))
    found = {name for part in parts for name in (find_all(part) if has_magic(part) else [part])}
    if not found:
        raise SourceError(f"dataset.path={setting} matches no file")
    root = os.path.commonpath([folder_of(file).partition("://")[2] for file in found])
    root = f"{uri.partition('://')[0]}://{root}"
    return Shards(RemoteFolder(root), sorted(file[len(root) + 1 :] for file in found))


def _missing(setting: str, missing: Sequence[object], n_files: int) -> SourceError:
    return SourceError(
        f"dataset.path={setting}: {len(missing)} of {n_files} files do not exist: "
        f"{first_few(missing)}"
    )


def _matches(pattern: str, setting: str) -> list[Path]:
    """Return the files that a pattern names."""
    found: list[Path] = []
    missing: list[Path] = []
    for part in expand_braces(pattern):
        if glob.has_magic(part):
            # A folder that exists as it is written is no pattern, whatever its name is.
            folder = next(parent for parent in Path(part).parents if parent.is_dir())
            rest = Path(part).relative_to(folder)
            names = glob.glob(str(rest), root_dir=folder, recursive=True)  # noqa: PTH207
            found += [folder / name for name in names]
        else:
            (found if Path(part).exists() else missing).append(Path(part))
    if missing:
        raise _missing(setting, missing, len(missing) + len(found))
    if not found:
        raise SourceError(f"dataset.path={setting} matches no file")
    return found


def expand_braces(pattern: str) -> list[str]:
    """Expand `{000..012}` and `{a,b}`, also within each other, as a shell does.

    Numbers have the width of a first or last one that begins with 0. Other braces stay as they are.

    Raises:
        SourceError: There are more than a million results.

    Example:
        >>> expand_braces("{dev,train-{08..10}}.tar")
        ['dev.tar', 'train-08.tar', 'train-09.tar', 'train-10.tar']
    """
    results, pending = [], [pattern]
    while pending:
        part = pending.pop()
        found = next((m for m in _INNER_BRACES.finditer(part) if _choices(m[1])), None)
        if found is None:
            results.append(part)
        else:
            choices = _choices(found[1])
            pending += [part[: found.start()] + c + part[found.end() :] for c in reversed(choices)]
        if len(results) + len(pending) > _MAX_SHARDS:
            raise SourceError(f"{pattern} names more than a million files")
    return list(dict.fromkeys(results))


def _choices(inside: str) -> list[str]:
    """Return what a pair of braces stands for; nothing if it is no range and no list."""
    numbers = _RANGE.fullmatch(inside)
    if numbers is None:
        return inside.split(",") if "," in inside else []
    first, last = int(numbers[1]), int(numbers[2])
    step = abs(int(numbers[3] or 1)) or 1
    if abs(last - first) // step >= _MAX_SHARDS:
        raise SourceError(f"{{{inside}}} names more than a million files")
    padded = [n for n in numbers.group(1, 2) if n.lstrip("-").startswith("0") and n != "0"]
    width = max(map(len, numbers.group(1, 2))) if padded else 0
    stop, step = (last + 1, step) if first <= last else (last - 1, -step)
    return [f"{number:0{width}d}" for number in range(first, stop, step)]


def choose_shards(setting: str | None, shards: Shards) -> tuple[Shards, list[str] | None]:
    """Keep the shards of the splits that `dataset.split` names.

    Splits are directories at the top, or the words that the names of shards begin with, if all
    shards have one of the usual names there. Other directories are splits only if they are named.

    Returns:
        The shards, and the split of each; None if the dataset has no splits.

    Raises:
        SourceError: A split does not exist.
    """
    tops = [name.partition("/")[0] if "/" in name else "" for name in shards.names]
    words = [word_of(name.rpartition("/")[2]) for name in shards.names]
    wanted = None if setting == ALL else setting
    if are_splits(tops):
        labels = tops
    elif all(words) and (wanted is None or chosen(wanted, tops) is None):
        labels = words
    else:
        labels = [] if wanted is None else tops
    if not labels:
        return shards, None
    existing = sorted(set(filter(None, labels)))
    splits = existing if setting is None else chosen(setting, existing)
    if splits is None:
        raise SourceError(
            f"dataset.split={setting} is neither a directory at the top nor what the names of "
            f"shards begin with; there are {first_few(existing) or 'no splits'}"
        )
    kept = [n for n, label in enumerate(labels) if label in splits]
    names = [shards.names[n] for n in kept]
    return replace(shards, names=names), [labels[n] for n in kept]
