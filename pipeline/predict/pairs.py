"""Pairs of recordings to verify: two files, or a list of trials."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from pipeline.errors import ConfigError, counted, first_few

Pair = tuple[str, str]

_KINDS = {"0", "1", "target", "nontarget", "non-target", "impostor"}


def choose_pairs(trials: str | None, names: Sequence[str]) -> list[Pair]:
    """Return the pairs to score.

    Args:
        trials: File with a pair per line: `ID ID`, VoxCeleb's `1 ID ID`, or Kaldi's `ID ID target`;
            whether it is of one speaker is not needed. None if there are exactly two names.
        names: Paths of files, or ids of utterances. A trial names one, or the end of one after a
            slash, with or without its extension.

    Raises:
        ConfigError: The file cannot be read, a line is no trial, a name is not found or not unique,
            or there are neither trials nor two names.
    """
    if trials is None:
        if len(names) != 2:
            raise ConfigError(
                f"a verification head scores pairs, and there are {counted(len(names), 'name')}: "
                "give two recordings, or a list of pairs as trials=FILE"
            )
        return [(names[0], names[1])]
    path, ends = Path(trials), name_ends(names)
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"trials={trials} cannot be read: {error}") from error
    pairs = [
        _pair(line, f"{trials}:{number}", ends)
        for number, line in enumerate(lines, 1)
        if line.strip()
    ]
    if not pairs:
        raise ConfigError(f"trials={trials} has no trials; expected lines such as `1 ID ID`")
    return pairs


def _pair(line: str, where: str, ends: dict[str, list[str]]) -> Pair:
    words = line.split()
    if len(words) == 3 and words[0] in _KINDS:
        words = words[1:]
    elif len(words) == 3 and words[2].lower() in _KINDS:
        words = words[:2]
    if len(words) != 2:
        raise ConfigError(f"{where} is {line!r:.80}; expected `ID ID`, `1 ID ID` or `ID ID target`")
    found = []
    for word in words:
        names = named(word, ends)
        if len(names) != 1:
            problem = f"may be any of {first_few(names)}" if names else "is none of the recordings"
            raise ConfigError(f"{where}: {word} {problem}; give it as a longer path")
        found.append(names[0])
    return found[0], found[1]


def named(word: str, ends: dict[str, list[str]]) -> list[str]:
    """Return the names that a word may mean, with or without its extension."""
    return ends.get(word) or ends.get(_stem(word)) or []


def name_ends(names: Sequence[str]) -> dict[str, list[str]]:
    """Return the names by each of their ends after a slash, with and without extension.

    A name in full is not ambiguous, whatever others end with it.
    """
    ends: dict[str, list[str]] = {}
    for name in names:
        parts = PurePosixPath(name).parts
        whole = ["/".join(parts[i:]) for i in range(len(parts))]
        for end in dict.fromkeys([*whole, *map(_stem, whole)]):
            ends.setdefault(end, []).append(name)
    return ends | {name: [name] for name in names}


def _stem(name: str) -> str:
    path = PurePosixPath(name)
    return str(path.with_suffix("")) if path.suffix else name
