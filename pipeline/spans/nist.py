"""CTM (words or phones of utterances) and RTTM (turns of speakers), formats of NIST's evaluations.

A CTM has lines `utterance channel start duration token [confidence [type [speaker]]]`. Kaldi writes
five or six fields, and NeMo's forced aligner eight or nine. An RTTM has lines
`SPEAKER file channel start duration <NA> <NA> name <NA> [<NA>]`. Lines that begin with `;;` are
comments.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from pipeline.errors import SourceError, counted, first_few
from pipeline.spans.table import SpanBuilder
from pipeline.spans.text import number, read_lines

_SPEAKER = "SPEAKER"
_RTTM_TYPES = frozenset(
    (
        *(_SPEAKER, "SPKR-INFO", "SEGMENT", "NOSCORE", "NO_RT_METADATA", "LEXEME", "NON-LEX"),
        *("NON-SPEECH", "FILLER", "EDIT", "SU", "IP", "CB", "A/P"),
    )
)


class _Channels:
    """The channels of each utterance, of which only one may be read."""

    def __init__(self, chosen: str | None) -> None:
        self._chosen = chosen
        self._first: dict[str, tuple[str, str]] = {}
        self._n_others = 0
        self._n_read = 0

    def takes(self, utterance: str, channel: str, where: str) -> bool:
        """Return whether a line is read.

        Raises:
            SourceError: An utterance has several channels, and none is chosen.
        """
        if self._chosen is not None:
            is_read = channel == self._chosen
            self._n_others += not is_read
            self._n_read += is_read
            return is_read
        first, before = self._first.setdefault(utterance, (channel, where))
        if first != channel:
            raise SourceError(
                f"{where}: {utterance!r} has channel {channel!r}, and {first!r} in {before}; give "
                f"channel={first} or channel={channel}"
            )
        return True

    def note(self, builder: SpanBuilder, path: Path) -> None:
        """Note the lines of other channels.

        Raises:
            SourceError: All lines are of others.
        """
        if self._n_others and not self._n_read:
            raise SourceError(f"{path} has no line of channel {self._chosen!r}; leave channel out")
        if self._n_others:
            builder.notes.append(
                f"{path}: {counted(self._n_others, 'line')} of other channels than "
                f"{self._chosen} left out"
            )


def add_ctm(
    builder: SpanBuilder, path: Path, channel: str | None = None, encoding: str | None = None
) -> None:
    """Add the tokens of a CTM.

    Args:
        builder: Where to.
        path: The file.
        channel: The channel that is read; None: the only one of each utterance.
        encoding: As for `read_text`.

    Raises:
        SourceError: A line has too few or too many fields, or a time that is no number; or an
            utterance has several channels and none is chosen.
    """
    builder.open(str(path))
    channels = _Channels(channel)
    for line, text in read_lines(path, encoding):
        if text.startswith(";;"):
            continue
        where, fields = f"{path}, line {line}", text.split()
        if not 5 <= len(fields) <= 9:
            raise SourceError(
                f"{where} has {counted(len(fields), 'field')}; a CTM has utterance, channel, "
                "start, duration, token, and up to four more"
            )
        utterance, own_channel, start, duration, token = fields[:5]
        marks = [field for field in fields if field.startswith("<ALT")]
        if marks:
            raise SourceError(
                f"{where}: {marks[0]} begins or ends alternatives, of which none is chosen; remove "
                "all but one"
            )
        if channels.takes(utterance, own_channel, where):
            start_s = number(start, "start", where)
            length_s = _duration(duration, where)
            builder.add(utterance, start_s, start_s + length_s, token, line)
    channels.note(builder, path)


def add_rttm(
    builder: SpanBuilder, path: Path, channel: str | None = None, encoding: str | None = None
) -> None:
    """Add the turns of an RTTM; lines of other types than SPEAKER are counted in a note.

    Raises:
        SourceError: As for `add_ctm`, or a line is of an unknown type.
    """
    builder.open(str(path))
    channels, others = _Channels(channel), Counter[str]()
    for line, text in read_lines(path, encoding):
        if text.startswith(";"):
            continue
        where, fields = f"{path}, line {line}", text.split()
        if fields[0] not in _RTTM_TYPES:
            raise SourceError(
                f"{where} begins with {fields[0]!r:.40}; expected {_SPEAKER} or another "
                "type of RTTM"
            )
        if fields[0] != _SPEAKER:
            others[fields[0]] += 1
            continue
        if not 8 <= len(fields) <= 10:
            raise SourceError(
                f"{where} has {counted(len(fields), 'field')}; an RTTM has SPEAKER, file, channel, "
                "start, duration, <NA>, <NA>, name, <NA> and <NA>"
            )
        _, utterance, own_channel, start, duration, _, _, name = fields[:8]
        if channels.takes(utterance, own_channel, where):
            start_s = number(start, "start", where)
            length_s = _duration(duration, where)
            builder.add(utterance, start_s, start_s + length_s, name, line)
    channels.note(builder, path)
    if others:
        kinds = first_few(sorted(others))
        builder.notes.append(
            f"{path}: {counted(others.total(), 'line')} of other types than {_SPEAKER} left "
            f"out: {kinds}"
        )


def _duration(text: str, where: str) -> float:
    length_s = number(text, "duration", where)
    if length_s < 0:
        raise SourceError(f"{where}: the duration is {text}; expected at least 0")
    return length_s
