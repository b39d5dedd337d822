"""Splits of a dataset: which are read, and the column that keeps the split of each row."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import SourceError, first_few

ALL = "all"
COLUMN = "split"
"""Column with the split of each row, unless the dataset has a column of this name."""
_PARTS = (
    ("train", "training", "trn"),
    ("dev", "development", "devel", "validation", "valid", "val"),
    ("test", "testing", "tst", "eval", "evaluation"),
)
NAMES = frozenset(name for part in _PARTS for name in part)
"""Usual names of splits, in lower case."""
_WORD = re.compile(rf"({'|'.join(sorted(NAMES, key=len, reverse=True))})(?![a-z])")


def word_of(name: str) -> str:
    """Return the usual name of a split with which a name begins, in lower case, or "".

    It is `train` for `Train`, `train-clean-100` and `train_000.tar`.
    """
    found = _WORD.match(name.lower())
    return found[1] if found else ""


def are_splits(names: Iterable[str]) -> bool:
    """Return whether names are those of splits, in any case.

    All are usual names; or all begin with one, of at least two of train, dev and test: `test-1`
    and `test-2` may be other things.
    """
    words = {name.lower(): word_of(name) for name in names}
    parts = {number for number, part in enumerate(_PARTS) if set(part) & set(words.values())}
    return bool(words) and all(words.values()) and (len(parts) > 1 or words.keys() <= NAMES)


def chosen(setting: str, names: Sequence[str]) -> list[str] | None:
    """Return the splits that `dataset.split` names.

    Args:
        setting: A name; several, as in `train+test`; or `all`, unless a split has that name. The
            case of a name is ignored if no split has exactly this name and only one has it in
            another case.
        names: Splits that exist.

    Returns:
        Their names, each once, in the order of `setting`; None if one does not exist.
    """
    if setting in names:
        return [setting]
    if setting == ALL:
        return list(names) or None
    found: dict[str, None] = {}
    for wanted in setting.split("+"):
        similar = [name for name in names if name.casefold() == wanted.casefold()]
        if wanted not in names and len(similar) != 1:
            return None
        found[wanted if wanted in names else similar[0]] = None
    return list(found)


def is_several(setting: str | None) -> bool:
    """Return whether `dataset.split` names several splits, none of them a slice of one."""
    return setting == ALL or (setting is not None and "+" in setting and "[" not in setting)


def with_split(table: pa.Table, splits: pa.Array) -> pa.Table:
    """Append the column `split`, unless the table has one.

    Args:
        table: The rows.
        splits: The split of each row: text `[n_rows]`.
    """
    return table if COLUMN in table.column_names else table.append_column(COLUMN, splits)


@dataclass(frozen=True, slots=True)
class DirectorySplits:
    """The chosen splits of a folder: directories of one level.

    Attributes:
        names: Names of the directories. None: all files are taken, and there are no splits.
        level: Number of directories above them.
    """

    names: frozenset[str] | None = None
    level: int = 0

    def has(self, path: str) -> bool:
        """Return whether a file is in one of them, by its relative path."""
        if self.names is None:
            return True
        parts = path.split("/", self.level + 1)
        return len(parts) > self.level + 1 and parts[self.level] in self.names

    def is_above(self, path: str) -> bool:
        """Return whether a file lies above the directories, as a table of all splits may."""
        return path.count("/") <= self.level

    def of(self, paths: pa.ChunkedArray) -> pa.ChunkedArray:
        """Return the split of each path."""
        pattern = rf"(?s)^(?:[^/]*/){{{self.level}}}([^/]*)/.*$"
        return pc.replace_substring_regex(paths, pattern, r"\1")


def find_directories(
    setting: str | None, audio: Sequence[str]
) -> tuple[DirectorySplits, tuple[str, ...]]:
    """Find the directories that are the chosen splits of a folder.

    Without the setting, or with `all`, they are those of the first level at which all have names of
    splits. The setting names directories of that level, or at the top.

    Args:
        setting: The setting `dataset.split`.
        audio: Relative paths of the audio files.

    Returns:
        The splits; and a note if only some directories have names of splits. If none has and the
        setting is `train`, all files are taken, as in `datasets`.

    Raises:
        SourceError: A directory does not exist; the message lists the directories.
    """
    depth = min((file.count("/") for file in audio), default=0)
    tops = {file.partition("/")[0] for file in audio if "/" in file}
    level = None
    found: set[str] = tops
    for number in range(depth):
        found = {file.split("/", number + 1)[number] for file in audio}
        if are_splits(found):
            level = number
            break
    if setting is None or (setting == ALL and ALL not in tops):
        if level is None:
            return DirectorySplits(), _near_splits(tops, audio)
        return DirectorySplits(frozenset(found), level), ()
    names = chosen(setting, sorted(tops))
    if names is not None:
        return DirectorySplits(frozenset(names)), ()
    if level is None and setting == "train" and not any(map(word_of, tops)):
        return DirectorySplits(), ()
    existing = sorted(tops if level is None else found)
    names = chosen(setting, existing)
    if names is None:
        there = f"there are {first_few(existing)}" if existing else "it has no directories"
        raise SourceError(
            f"dataset.split={setting} is not a directory at the top of the audio folder, or one of "
            f"splits below; {there}"
        )
    return DirectorySplits(frozenset(names), level or 0), ()


def _near_splits(tops: set[str], audio: Sequence[str]) -> tuple[str, ...]:
    """Return a note if several directories at the top have names of splits, and others do not."""
    named = sorted(top for top in tops if word_of(top))
    if len(named) < 2 or not are_splits(named):
        return ()
    others = sorted(tops - set(named)) or [file for file in audio if "/" not in file]
    return (
        f"{first_few(named)} are named like splits, but there is no column split, because there is "
        f"other audio ({first_few(others)}): dataset.split={'+'.join(named)} takes these alone",
    )
