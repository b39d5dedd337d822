"""Audio files that do not exist: a dataset without any is refused, some are named to the user.

A folder is listed before its files are read. If many of them are missing a moment later, it is
being emptied, moved or unmounted, and none of its files is quarantined.
"""

from __future__ import annotations

import contextlib
import glob
import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import SourceError, counted
from pipeline.sources.base import Source
from pipeline.sources.folder import is_audio
from pipeline.sources.location import check_reachable, describe_location
from pipeline.sources.remote.listing import MISSING, Stamps
from pipeline.sources.remote.uri import is_remote

if TYPE_CHECKING:
    from pipeline.config import DatasetConfig

_N_THREADS = 32  # they wait for the file system, which may be remote
_BLOCK_ROWS = 1 << 12
_TASK_ROWS = _BLOCK_ROWS // _N_THREADS
_N_NAMED = 3
_MAX_FOLDERS = 1000
_N_ABOVE = 3  # folders above that of the list
_MOST_VANISHED, _VANISHED_SHARE = 10, 0.01
"""Files of a folder that may be missing after it was listed: so many, or this share of them."""


def require_some_file(source: Source) -> None:
    """Refuse a dataset none of whose audio files exists, before a scan.

    It looks for one file, from the first row on, and opens none. Remote files are left to the scan.

    Args:
        source: The dataset. Rows with bytes in memory count as files that exist.

    Raises:
        SourceError: No file exists; the message has the first path, and what to set.
    """
    rows = range(len(source))
    if any(_exists(source, row) for row in rows[:_BLOCK_ROWS]):
        return
    for block, missing in _missing(source, rows[_BLOCK_ROWS:]):
        if len(missing) < len(block):
            return
    raise _without_files(source)


def check_missing(
    source: Source, rows: pa.Table, note: Callable[[str], None], is_here: bool = True
) -> None:
    """Tell the user how many files of the dataset do not exist, and how to go on.

    Args:
        source: The dataset.
        rows: Result of `scan`, one row per utterance.
        note: Receives the line; it is not called if all files exist.
        is_here: Whether the files are those of this machine. Those of other nodes may exist there.

    Raises:
        SourceError: None exists, or too many files of a folder have vanished since it was listed.
    """
    unread = pc.indices_nonzero(pc.equal(rows["n_bytes"], 0)).to_pylist()
    missing = [row for _, block in _missing(source, unread) for row in block]
    if not missing:
        return
    paths = list(dict.fromkeys(source.segment(row).path for row in missing[:_BLOCK_ROWS]))
    if is_here or is_remote(paths[0]):
        _refuse_lost(source, str(paths[0]), len(missing), len(rows))
    named = ", ".join(str(path) for path in paths[:_N_NAMED])
    note(
        f"WARNING: the audio files of {len(missing):,} of {counted(len(rows), 'utterance')} do not "
        f"exist, first {named}. These utterances are left out; when the files are there, extract "
        "with retry_quarantined=true takes them"
    )


def _refuse_lost(source: Source, path: str, n_missing: int, n: int) -> None:
    """Raise a SourceError if it is the dataset that is missing, and not some of its files."""
    check_reachable(source.config, path)
    is_listed = source.config.kind == "audiofolder"
    if is_listed and n_missing > max(_MOST_VANISHED, _VANISHED_SHARE * n):
        raise SourceError(
            f"{describe_location(source.config)}: {n_missing:,} of {counted(n, 'file')} have "
            f"vanished since it was listed a moment ago, first {path}, so none of them is "
            "quarantined. Bring them back, or let the removal finish, and run the same "
            "command again"
        )
    if n_missing == n:
        raise _without_files(source)


def _without_files(source: Source) -> SourceError:
    path = source.segment(0).path
    return SourceError(
        f"no audio file of {source.origin} exists ({counted(len(source), 'utterance')}); the "
        f"first one is {path}{_remedy(source, str(path))}"
    )


def _missing(source: Source, rows: Sequence[int]) -> Iterator[tuple[Sequence[int], list[int]]]:
    """Yield blocks of rows, and those of them whose files do not exist."""
    stamps = Stamps()

    def missing_of(block: Sequence[int]) -> list[int]:
        return [row for row in block if not _exists(source, row)]

    def missing_there(block: Sequence[int]) -> list[int]:
        segments = ((row, source.segment(row)) for row in block)
        remote = {row: str(s.path) for row, s in segments if s.data is None and is_remote(s.path)}
        found = stamps.of(dict.fromkeys(remote.values()))
        return [row for row, uri in remote.items() if found[uri] == MISSING]

    with ThreadPoolExecutor(_N_THREADS) as pool:
        for start in range(0, len(rows), _BLOCK_ROWS):
            block = rows[start : start + _BLOCK_ROWS]
            parts = [block[i : i + _TASK_ROWS] for i in range(0, len(block), _TASK_ROWS)]
            here = [row for found in pool.map(missing_of, parts) for row in found]
            yield block, sorted({*here, *missing_there(block)})


def _exists(source: Source, row: int) -> bool:
    """Return False if the local file of a row does not exist; True if a row has none."""
    segment = source.segment(row)
    if segment.data is not None or segment.path is None or is_remote(segment.path):
        return True
    try:
        os.stat(segment.path)  # noqa: PTH116 - no Path for each of a million files
    except (FileNotFoundError, NotADirectoryError, ValueError):  # ValueError: a null character
        return False
    except OSError:  # it may exist, and the scan gives the reason
        return True
    return True


def _remedy(source: Source, path: str) -> str:
    """Return what to set, if relative paths may start from elsewhere or lack their suffix."""
    config = source.config
    if config.kind not in ("manifest", "kaldi", "lhotse", "parquet"):
        return "; bring the files to where the dataset says they are"
    if not is_remote(path):
        if (
            config.root
            and not is_remote(config.root)
            and not Path(config.root).expanduser().is_dir()
        ):
            return f"; dataset.root={config.root} is no folder"
        found = next(_in_a_folder_above(config, path), None) or next(
            _in_a_folder_beside(path), None
        )
        if found is not None:
            return f"; it is in {found}: set dataset.root={found}"
        name = next(_with_a_suffix(path), None)
        if name is not None:
            suffix = name.removeprefix(Path(path).name)
            if config.kind == "manifest" and config.audio_path is None and suffix != name:
                setting = f"'dataset.audio_path={{{config.audio_column}}}{suffix}'"
                return f"; {name} is there: set {setting}"
            return f"; {name} is there: write this name into the list"
    return (
        "; relative paths start from "
        + ("dataset.root" if config.root else "the folder of the list: set dataset.root=DIR")
        + ", absolute ones must be those of this machine"
    )


def _in_a_folder_above(config: DatasetConfig, path: str) -> Iterator[Path]:
    """Yield the working directory and the folders above the list in which a path exists."""
    here = Path(str(config.path)).expanduser().absolute()
    folder = here if here.is_dir() else here.parent
    root = Path(config.root).expanduser().absolute() if config.root else folder
    if Path(path).is_relative_to(root):
        rest = Path(path).relative_to(root)
        for start in (Path.cwd(), folder, *itertools.islice(folder.parents, _N_ABOVE)):
            if start != root and (start / rest).exists():
                yield start


def _with_a_suffix(path: str) -> Iterator[str]:
    """Yield the names of audio files that differ in their suffix only."""
    folder, name = Path(path).parent, Path(path).name
    stem = name[: -len(Path(name).suffix)] if is_audio(name) else name
    with contextlib.suppress(OSError):
        for file in sorted(folder.glob(f"{glob.escape(stem)}.*")):
            if file.stem == stem and is_audio(file.name):
                yield file.name


def _in_a_folder_beside(path: str) -> Iterator[Path]:
    """Yield the folders, beside the part of a path that does not exist, that have that part."""
    nearest = next(parent for parent in Path(path).parents if parent.is_dir())
    rest = Path(path).relative_to(nearest)
    try:
        for folder in itertools.islice(sorted(nearest.iterdir()), _MAX_FOLDERS):
            if (folder / rest).exists():
                yield folder
    except (OSError, ValueError):
        return
