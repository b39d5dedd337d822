"""An audio folder: its files, splits and labels, or the rows of its metadata.

Columns and labels are those that the audiofolder loader of `datasets` makes. The files are listed
here, because that loader ignores two kinds of files: those with an extension that it does not know
(.aac, .m4a); and, if the path of any file contains train, dev or test, every file whose path does
not. No audio file is opened here, so a file that cannot be decoded is listed, and reported later.
"""

from __future__ import annotations

import fnmatch
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import SourceError, counted, first_few
from pipeline.sources.columns import Rows
from pipeline.sources.lists.metadata import read_metadata, require_files
from pipeline.sources.lists.paths import match_names
from pipeline.sources.location import describe_location, existing_path
from pipeline.sources.remote.file import RemoteFolder
from pipeline.sources.remote.listing import list_below
from pipeline.sources.remote.tables import copy_files
from pipeline.sources.remote.uri import is_remote
from pipeline.sources.splits import ALL, find_directories, with_split
from pipeline.sources.tabular import TabularSource

if TYPE_CHECKING:
    from pipeline.config import DatasetConfig

AUDIO_EXTENSIONS = frozenset(
    (
        *(".3g2", ".3gp", ".aac", ".ac3", ".aif", ".aifc", ".aiff", ".amr", ".ape", ".asf", ".au"),
        *(".avi", ".avr", ".caf", ".dts", ".f4v", ".flac", ".flv", ".htk", ".ircam", ".m4a"),
        *(".m4b", ".m4v", ".mat4", ".mat5", ".mka", ".mkv", ".mov", ".mp2", ".mp3", ".mp4", ".mpc"),
        *(".mpc2k", ".mpg", ".mxf", ".nist", ".nut", ".oga", ".ogg", ".ogm", ".ogv", ".opus"),
        *(".paf", ".pvf", ".ra", ".raw", ".rf64", ".sd2", ".sds", ".snd", ".sph", ".spx", ".svx"),
        *(".tta", ".voc", ".w64", ".wav", ".wave", ".wavex", ".weba", ".webm", ".wma", ".wmv"),
        *(".wv", ".wve", ".xi"),
    )
)
"""Extensions of audio files, including formats that cannot be decoded here."""

_METADATA_NAMES = frozenset(("metadata.csv", "metadata.jsonl", "metadata.parquet"))
_OTHER_METADATA = re.compile(r"metadata\.(csv|tsv|txt|json|jsonl|parquet|xlsx?)", re.IGNORECASE)
_BLOCK_NAMES = 1 << 14


def open_folder(config: DatasetConfig) -> TabularSource:
    """Open every audio file under `dataset.path`, or the rows of the folder's metadata.

    Raises:
        SourceError: The folder is missing or holds no audio, the split does not exist, or the
            metadata is wrong; see also `TabularSource`.
    """
    return TabularSource(config, _folder_rows(config))


def _folder_rows(config: DatasetConfig) -> Rows:
    """List the files of a folder and make their rows; the list is large, and is freed after it."""
    root, files = _listed(config)
    is_wanted = _matcher(config.files)
    audio = [file for file in files if is_audio(file) and is_wanted(file)]
    # Rows of metadata may name files with other extensions, or without.
    named = audio or [file for file in files if not is_metadata(file)]
    splits, notes = find_directories(config.split, named)
    metadata_files = [f for f in files if is_metadata(f) and (splits.has(f) or splits.is_above(f))]
    files = [f for f in files if splits.has(f) and f not in metadata_files]
    if metadata_files:
        here = root if isinstance(root, Path) else copy_files(str(root), metadata_files)
        table, class_names, state, places = read_metadata(config, here, metadata_files)
        names = match_names(table["file_name"], files)
        is_chosen = pa.array(
            [splits.has(name) and is_wanted(name) for name in names.to_pylist()],
            pa.bool_(),
        )
        table, names = table.filter(is_chosen), names.filter(is_chosen)
        places = places.take(pc.indices_nonzero(is_chosen))
        require_files(names, files, str(root), places)
        used = set(names.to_pylist())
        skipped = [file for file in files if file not in used]
    else:
        state, places = "files", None
        audio = [file for file in audio if splits.has(file)]
        used = set(audio)
        skipped = [file for file in files if file not in used]
        level = None if splits.names is None else splits.level
        table, class_names = table_without_metadata(audio, level, not config.levels)
        if not config.levels and "label" not in table.column_names:
            notes += _note_depths(audio)
        names = table["file_name"]
        notes += _note_other_metadata(skipped)
    if config.levels:
        table = with_levels(table, names, config.levels)
    if splits.names is not None and (config.split in (None, ALL) or len(splits.names) > 1):
        table = with_split(table, splits.of(names))
    if not len(table):
        hint = "; it has a wav.scp: use dataset=kaldi" if "wav.scp" in files else ""
        pattern = f" that matches dataset.files={config.files}" if config.files else ""
        raise SourceError(
            f"{describe_location(config)} holds no audio file{pattern} ({len(skipped)} other "
            f"files){hint}"
        )
    tables = tuple(f"{root}/{file}" for file in metadata_files)
    rows = Rows(table, class_names, "file_name", str(root), state, tuple(skipped), tables)
    return replace(rows, places=places, notes=notes)


def _note_depths(audio: list[str]) -> tuple[str, ...]:
    """Return a note if directories are no labels only because files do not lie equally deep."""
    if len({file.count("/") for file in audio}) == 1 or not any("/" in file for file in audio):
        return ()
    shallow, deep = min(audio, key=_depth), max(audio, key=_depth)
    return (
        "there is no column label, because files do not lie equally deep in directories "
        f"({shallow}, {deep}); dataset.levels names columns of the directories",
    )


def _note_other_metadata(skipped: list[str]) -> tuple[str, ...]:
    """Return a note if there is metadata that is not read, because of its name."""
    found = [file for file in skipped if _OTHER_METADATA.fullmatch(file.rpartition("/")[2])]
    if not found:
        return ()
    return (
        f"{first_few(found)} {'is' if len(found) == 1 else 'are'} not read: columns are those of "
        "metadata.csv, .jsonl or .parquet; other tables are read with dataset=manifest",
    )


def _depth(file: str) -> int:
    return file.count("/")


def _listed(config: DatasetConfig) -> tuple[Path | RemoteFolder, list[str]]:
    """Return the folder of `dataset.path`, and its files."""
    if not is_remote(config.path):
        root = existing_path(config, directory=True)
        return root, list_files(root)
    uri = str(config.path).rstrip("/")
    files = list(list_below(uri))
    if not files:
        raise SourceError(f"{describe_location(config)} does not exist, or is an empty folder")
    return RemoteFolder(uri), files


def list_files(root: Path) -> list[str]:
    """List every file below a directory, in the order of their paths.

    Hidden files and directories (.name, __name) are left out. Links are followed, except to a
    directory that contains the link. A directory that is named like an audio file but holds none
    is listed, too, so that it is reported.

    Args:
        root: The directory.

    Returns:
        Paths relative to `root`, with forward slashes.

    Raises:
        SourceError: A directory cannot be read, or a name is not UTF-8.
    """
    files: list[str] = []
    audio_named: list[str] = []  # directories
    pending = [""]
    try:
        while pending:
            prefix = pending.pop()
            with os.scandir(root / prefix) as entries:
                for entry in entries:
                    if entry.name.startswith((".", "__")) or _is_loop(entry):
                        continue
                    if _is_directory(entry):
                        pending.append(f"{prefix}{entry.name}/")
                        if is_audio(entry.name):
                            audio_named.append(prefix + entry.name)
                    else:
                        files.append(prefix + entry.name)
        for start in range(0, len(files), _BLOCK_NAMES):
            "".join(files[start : start + _BLOCK_NAMES]).encode()
    except OSError as error:
        raise SourceError(f"{error.filename} cannot be listed: {error.strerror}") from error
    except UnicodeEncodeError as error:
        name = next(name for name in files if not _is_utf8(name))
        raise SourceError(f"a file name under {root} is not UTF-8: {name!r}; rename it") from error
    return sorted(files + _without_audio(audio_named, files))


def is_audio(file: str) -> bool:
    """Return whether the extension is that of an audio file."""
    return os.path.splitext(file)[1].lower() in AUDIO_EXTENSIONS  # noqa: PTH122 - Path() is slow


def is_metadata(file: str) -> bool:
    """Return whether the file is a folder's table of files and labels."""
    return file.rpartition("/")[2] in _METADATA_NAMES


def _matcher(pattern: str | None) -> Callable[[str], bool]:
    """Return the test of relative paths against `dataset.files`; of names, if it has no slash."""
    if pattern is None:
        return lambda file: True
    matches = re.compile(fnmatch.translate(pattern)).match
    if "/" in pattern:
        return lambda file: matches(file) is not None
    return lambda file: matches(file.rpartition("/")[2]) is not None


def with_levels(table: pa.Table, names: pa.ChunkedArray, levels: Sequence[str]) -> pa.Table:
    """Append the names of the directories that each file lies in, as columns of text.

    Args:
        table: One row for each file.
        names: Relative paths of the files.
        levels: Names of the columns, from the top directory on; `_` for one to leave out.

    Raises:
        SourceError: A file does not lie as deep, or the table has such a column.
    """
    depths = pc.count_substring(names, "/")
    is_flat = pc.less(depths, len(levels))
    first = pc.index(is_flat, True).as_py()
    if first >= 0:
        raise SourceError(
            f"dataset.levels has {counted(len(levels), 'directory name')}, but {names[first]} lies "
            f"in {depths[first]} directories; name fewer, or choose files with dataset.files"
        )
    parts = pc.split_pattern(names, "/")
    for number, level in enumerate(levels):
        if level in table.column_names:
            raise SourceError(f"dataset.levels: there is a column {level}; name another one")
        if level != "_":
            table = table.append_column(level, pc.list_element(parts, number))
    return table


def table_without_metadata(
    files: list[str], split_level: int | None = None, has_label: bool = True
) -> tuple[pa.Table, dict[str, tuple[str, ...]]]:
    """Make the table of a folder that has no metadata file.

    Args:
        files: Relative paths of audio files.
        split_level: Number of directories above those that are splits, not labels; None if none
            are.
        has_label: Whether the names of directories may be labels.

    Returns:
        A table of `file_name`, with `label` if all files lie equally deep in at least two
        directories: the index of the directory's name among the sorted names. Then the names of
        each label column.
    """
    names = pa.array(files, pa.string())
    table = pa.table({"file_name": names})
    below = names
    if split_level is not None:
        below = pc.replace_substring_regex(names, rf"^((?:[^/]*/){{{split_level}}})[^/]*/", r"\1")
    parents = pc.replace_substring_regex(below, r"/?[^/]*$", "")
    parents = pc.replace_substring_regex(parents, r"(?s)^.*/", "").dictionary_encode()
    labels = tuple(sorted(parents.dictionary.to_pylist()))
    depths = pc.min_max(pc.count_substring(names, "/"))
    if not has_label or len(labels) < 2 or depths["min"] != depths["max"]:
        return table, {}
    index = pc.index_in(parents.dictionary, pa.array(labels))  # of each distinct parent
    label = index.take(parents.indices).cast(pa.int64())
    return table.append_column("label", label), {"label": labels}


def _without_audio(directories: list[str], files: list[str]) -> list[str]:
    """Return the directories that hold no audio file, at any depth."""
    if not directories:
        return []
    holding: set[str] = set()
    for file in files:
        if is_audio(file):
            parts = file.split("/")
            holding.update("/".join(parts[:n]) for n in range(1, len(parts)))
    return [directory for directory in directories if directory not in holding]


def _is_directory(entry: os.DirEntry[str]) -> bool:
    """Return whether an entry is a directory, or a link to one that exists."""
    try:
        return entry.is_dir()
    except OSError:  # a link to itself, or into a directory that may not be read
        if entry.is_symlink():
            return False
        raise


def _is_loop(entry: os.DirEntry[str]) -> bool:
    """Return whether an entry is a link to a directory that contains it."""
    if not entry.is_symlink() or not _is_directory(entry):
        return False
    path = Path(entry.path)
    return path.parent.resolve().is_relative_to(path.resolve())


def _is_utf8(name: str) -> bool:
    return not any("\ud800" <= character <= "\udfff" for character in name)
