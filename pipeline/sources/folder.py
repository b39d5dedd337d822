"""The audio files of a directory tree: which there are, which split, which label.

Lists what `datasets`' audiofolder loader would pass over by name: files with an extension that it
does not know (.aac, .m4a), and, as soon as one path says train, dev or test, all that do not.
Nothing is opened here, so a file that nobody can decode is still found and can be reported.
"""

from __future__ import annotations

import os
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import SourceError

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
"""What counts as audio, decodable here or not."""

_METADATA_NAMES = frozenset(("metadata.csv", "metadata.jsonl", "metadata.parquet"))
_SPLIT_NAMES = frozenset(
    ("train", "training", "validation", "valid", "val", "dev", "test", "testing", "eval")
)
_NAMES_AT_ONCE = 1 << 14


def list_files(root: Path) -> list[str]:
    """Lists every file below a directory, in the order of their paths.

    Hidden files and directories (.name, __name) are left out; links are followed, except to a
    directory that the link lies in.

    Args:
        root: The directory.

    Returns:
        Paths relative to `root`, with forward slashes.

    Raises:
        SourceError: A directory cannot be read, or a name is not text.
    """
    found: list[str] = []
    pending = [""]
    try:
        while pending:
            prefix = pending.pop()
            with os.scandir(root / prefix) as entries:
                for entry in entries:
                    if entry.name.startswith((".", "__")) or _leads_back(entry):
                        continue
                    if entry.is_dir():
                        pending.append(f"{prefix}{entry.name}/")
                    else:
                        found.append(prefix + entry.name)
        for start in range(0, len(found), _NAMES_AT_ONCE):
            "".join(found[start : start + _NAMES_AT_ONCE]).encode()
    except OSError as error:
        raise SourceError(f"{error.filename} cannot be listed: {error.strerror}") from error
    except UnicodeEncodeError as error:
        name = next(name for name in found if not _is_utf8(name))
        raise SourceError(f"a file name under {root} is not UTF-8: {name!r}; rename it") from error
    return sorted(found)


def is_audio(file: str) -> bool:
    """Says whether the extension is one of audio."""
    return os.path.splitext(file)[1].lower() in AUDIO_EXTENSIONS  # noqa: PTH122 - Path() is slow


def is_metadata(file: str) -> bool:
    """Says whether this is a folder's table of files and labels."""
    return file.rpartition("/")[2] in _METADATA_NAMES


def split_prefix(split: str | None, files: list[str]) -> str:
    """Finds the top-level directory that a split names.

    Args:
        split: Name of the split; None for everything.
        files: Relative paths, as `list_files` gives them.

    Returns:
        What the paths of the split start with: `"test/"`, or `""` for all files. That is so for
        `train` as well where no directory has the name of a split, as `datasets` has it.

    Raises:
        SourceError: No directory has this name; the message lists those there are.
    """
    if split is None:
        return ""
    directories = sorted({file.split("/", 1)[0] for file in files if "/" in file})
    if split in directories:
        return split + "/"
    if split == "train" and _SPLIT_NAMES.isdisjoint(directories):
        return ""
    shown = ", ".join(directories[:10]) + (" …" if len(directories) > 10 else "")
    raise SourceError(
        f"dataset.split={split} is no directory at the top of the audio folder; "
        + (f"there are {shown}" if directories else "there is none")
    )


def table_without_metadata(files: list[str]) -> tuple[pa.Table, dict[str, tuple[str, ...]]]:
    """Makes the table of a folder that has no metadata file.

    Args:
        files: Relative paths of audio files.

    Returns:
        A table of `file_name` and, where all files lie equally deep in at least two directories,
        `label`: the index of the directory's name among the sorted names. Then the names of each
        label column.
    """
    names = pa.array(files, pa.string())
    table = pa.table({"file_name": names})
    parents = pc.replace_substring_regex(names, r"/?[^/]*$", "")
    parents = pc.replace_substring_regex(parents, r"(?s)^.*/", "").dictionary_encode()
    labels = tuple(sorted(parents.dictionary.to_pylist()))
    depths = pc.min_max(pc.count_substring(names, "/"))
    if len(labels) < 2 or depths["min"] != depths["max"]:
        return table, {}
    index = pc.index_in(parents.dictionary, pa.array(labels))  # of each distinct parent
    label = index.take(parents.indices).cast(pa.int64())
    return table.append_column("label", label), {"label": labels}


def _leads_back(entry: os.DirEntry[str]) -> bool:
    if not entry.is_symlink() or not entry.is_dir():
        return False
    path = Path(entry.path)
    return path.parent.resolve().is_relative_to(path.resolve())


def _is_utf8(name: str) -> bool:
    return not any("\ud800" <= character <= "\udfff" for character in name)
