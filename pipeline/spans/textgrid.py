"""TextGrids of Praat, in both forms of text: the long one with names, and the short one.

Praat itself reads only free-standing numbers, texts in double quotes and flags in angle brackets;
everything else in a file is comment (Praat's manual, "Text file formats"). This makes both forms
one. Parsers on PyPI were tried: none reports the line of an error, and some drop the rest of a file
without an error.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from pipeline.errors import SourceError, counted, did_you_mean
from pipeline.spans.table import SpanBuilder
from pipeline.spans.text import number, read_text

_TOKEN = re.compile(r'"([^"]*(?:""[^"]*)*)"|![^\n]*|<([^<>\s]*)>|([^\s"!<]+)|(")|<')
_NUMBER = re.compile(
    r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?|[-+]?(nan|inf|infinity)|--undefined--", re.I
)
_INTERVALS, _POINTS = "IntervalTier", "TextTier"


class _Token(NamedTuple):
    kind: str
    text: str
    line: int


class Interval(NamedTuple):
    """An interval of a tier: start and end in seconds, label, and the line it begins on."""

    start_s: float
    stop_s: float
    label: str
    line: int


class Tier(NamedTuple):
    """A tier: its name, whether it has intervals or points, and the intervals."""

    name: str
    is_intervals: bool
    intervals: list[Interval]


def add_textgrid(
    builder: SpanBuilder,
    path: Path,
    utterance: str,
    names: Sequence[str] | None,
    encoding: str | None = None,
) -> None:
    """Add the intervals of the chosen tiers of a TextGrid, empty labels as well.

    Args:
        builder: Where to.
        path: The file.
        utterance: Id of its utterance.
        names: Names of the tiers; None is the only interval tier.
        encoding: As for `read_text`.

    Raises:
        SourceError: It is no TextGrid, or has no such tier; the message names the line, or the
            tiers that there are.
    """
    tiers = read_textgrid(path, encoding)
    builder.open(str(path))
    for tier in _choose(tiers, names, path):
        for start_s, stop_s, label, line in tier.intervals:
            builder.add(utterance, start_s, stop_s, label, line)


def read_textgrid(path: Path, encoding: str | None = None) -> list[Tier]:
    """Read the tiers of a TextGrid.

    Raises:
        SourceError: It is no TextGrid in a form of text, or ends before its last interval, or goes
            on after it.
    """
    with path.open("rb") as file:
        if file.read(12) == b"ooBinaryFile":
            raise SourceError(f"{path} is a binary TextGrid; in Praat save it as text")
    text = read_text(path, encoding)
    if not text or text.isspace():
        raise SourceError(f"{path} is empty")
    if "chronological" in text.partition("\n")[0]:
        raise SourceError(f"{path} is a chronological TextGrid; in Praat save it as text")
    return _Parser(path, text).tiers()


class _Parser:
    """Reads the values of a TextGrid one after the other."""

    def __init__(self, path: Path, text: str) -> None:
        self._path = path
        self._tokens = self._found(text)
        self._line = 1

    def tiers(self) -> list[Tier]:
        """Return the tiers."""
        kind = self._take("text", "the type of the file, ooTextFile")
        if not kind.text.startswith("ooTextFile"):
            raise self._error(kind, "ooTextFile, the type of the file")
        kind = self._take("text", "the class, TextGrid")
        if kind.text != "TextGrid":
            raise self._error(kind, "a TextGrid")
        self._number("the start of the TextGrid")
        self._number("the end of the TextGrid")
        if self._take("flag", "<exists> or <absent>").text != "exists":
            return []
        tiers = [self._tier() for _ in range(self._count("the number of tiers"))]
        left = next(self._tokens, None)
        if left is not None:
            raise SourceError(
                f"{self._path}, line {left.line}: {left.text!r:.40} comes after the last interval "
                "that the sizes of the tiers announce; a size is too small"
            )
        return tiers

    def _tier(self) -> Tier:
        kind = self._take("text", f"the class of a tier, {_INTERVALS} or {_POINTS}")
        if kind.text not in (_INTERVALS, _POINTS):
            raise self._error(kind, f"{_INTERVALS} or {_POINTS}")
        name = self._take("text", "the name of a tier").text
        self._number("the start of a tier")
        self._number("the end of a tier")
        n = self._count("the size of a tier")
        if kind.text == _POINTS:
            for _ in range(n):
                self._number("the time of a point")
                self._take("text", "the mark of a point")
            return Tier(name, False, [])
        return Tier(name, True, [self._interval() for _ in range(n)])

    def _interval(self) -> Interval:
        start_s, line = self._number("the start of an interval"), self._line
        stop_s = self._number("the end of an interval")
        return Interval(start_s, stop_s, self._take("text", "the text of an interval").text, line)

    def _number(self, what: str) -> float:
        token = self._take("number", what)
        return number(token.text, what.removeprefix("the "), f"{self._path}, line {token.line}")

    def _count(self, what: str) -> int:
        token = self._take("number", what)
        if not token.text.isdecimal():
            raise self._error(token, what)
        return int(token.text)

    def _take(self, kind: str, what: str) -> _Token:
        token = next(self._tokens, None)
        if token is None:
            raise SourceError(
                f"{self._path} ends after line {self._line}; expected {what}: the file is cut, or "
                "a size in it is too large"
            )
        if token.kind != kind:
            raise self._error(token, what)
        self._line = token.line
        return token

    def _error(self, token: _Token, expected: str) -> SourceError:
        return SourceError(
            f"{self._path}, line {token.line}: found {token.text!r:.40}; expected {expected}"
        )

    def _found(self, text: str) -> Iterator[_Token]:
        line, counted_to = 1, 0
        for match in _TOKEN.finditer(text):
            line += text.count("\n", counted_to, match.start())
            counted_to = match.start()
            quoted, flag, word, unclosed = match.groups()
            if quoted is not None:
                yield _Token("text", quoted.replace('""', '"'), line)
            elif flag is not None:
                yield _Token("flag", flag, line)
            elif word is not None and _NUMBER.fullmatch(word):
                yield _Token("number", word, line)
            elif unclosed is not None:
                raise SourceError(
                    f"{self._path}, line {line}: a quotation mark is opened and not closed"
                )


def _choose(tiers: Sequence[Tier], names: Sequence[str] | None, path: Path) -> list[Tier]:
    """Return the interval tiers of some names, or the only one.

    Raises:
        SourceError: There is none of a name, or it has points; or several may be meant.
    """
    found = [tier.name for tier in tiers if tier.is_intervals]
    points = [tier.name for tier in tiers if not tier.is_intervals]
    listed = (
        f"its interval tiers are {', '.join(map(repr, found))}"
        if found
        else "it has no interval tier"
    )
    if names is None:
        if len(found) != 1:
            few = "give tier=NAME" if found else "points have no length, and are not read"
            raise SourceError(f"{path} has {counted(len(found), 'interval tier')}: {listed}; {few}")
        names = found
    for name in names:
        if name not in found:
            if name in points:
                raise SourceError(
                    f"{path}: tier {name!r} has points, which have no length; {listed}"
                )
            hint = did_you_mean(name, found) if found else ""
            raise SourceError(f"{path} has no tier {name!r}; {listed}{hint}")
        if found.count(name) > 1:
            raise SourceError(f"{path} has {found.count(name)} tiers {name!r}; rename them")
    return [tier for tier in tiers if tier.is_intervals and tier.name in names]
