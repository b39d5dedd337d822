"""Quotation marks in tables of text: open ones, which swallow rows, and those that stay in values.

A mark that begins a value and is closed only lines later, at the end of another row's value, makes
one row of several. The table is well-formed, so only the lines show it.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Literal

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.delimited import delimited_records
from pipeline.errors import SourceError, counted
from pipeline.sources.columns import is_text
from pipeline.sources.lists.lines import place
from pipeline.sources.lists.places import Form, Places

_QUOTED = r'(?s)^"(?:[^"]|"")*""(?:[^"]|"")*"$'
_BREAK = re.compile(r"\r\n?|\n")
_REMEDY = (
    'write a mark of the text as two ("") within a value in quotation marks, or save the table as '
    "tsv, where marks are text"
)


def check_quotes(places: Places, table: pa.Table, audio_column: str) -> tuple[str, ...]:
    """Check that no value in quotation marks contains a row, and look for marks that are kept.

    A line is taken for a row if it has as many fields as the header and, in the column of paths, a
    name with the suffix of the row's own. The line with the row's own path does not count, unless
    the first line is a row, too. Tables without line breaks in values are not read again.

    Args:
        places: Tables of text with their forms.
        table: Their rows.
        audio_column: Column with the paths of the audio.

    Returns:
        A note with the first line that may be a row, if paths have no suffix that would show it;
        and one about values that were written in quotation marks where these are text.

    Raises:
        SourceError: There is such a line; the message names it and the line of its row.
    """
    texts = [name for name in table.column_names if is_text(table[name].type)]
    quoting = [(path, form) for path, _, form in places.files if form.quote]
    notes = () if len(quoting) == len(places.files) else _note_kept(places, table, texts)
    if not quoting or not any(_has_breaks(table[name]) for name in texts):
        return notes
    index = table.column_names.index(audio_column)
    doubtful: list[str] = []
    for path, form in quoting:
        for first, record, lines in _long_records(path, form):
            for number in _rows_within(record, lines, form.delimiter, index):
                where = f"{place(path, first + number)} {{}} a row, but is within quotation marks"
                if index < len(record) and _suffix(record[index]):
                    raise SourceError(f"{where.format('looks like')} of line {first}: {_REMEDY}")
                doubtful.append(f"{where.format('may be')} of line {first}")
    if not doubtful:
        return notes
    others = f" ({counted(len(doubtful), 'such line')})" if len(doubtful) > 1 else ""
    note = f"{doubtful[0]}{others}; if it is one, {_REMEDY}"
    return (*notes, note)


def _rows_within(
    record: Sequence[str], lines: Sequence[str], delimiter: str, index: int
) -> list[int]:
    """Return which lines of a record, from 0, look like rows of their own; never the first one.

    Args:
        record: The fields.
        lines: The lines.
        delimiter: Separator of the fields.
        index: Number of the field with the path; paths that are made of other fields are last.
    """
    last = len(record) - 1
    if not any(line.count(delimiter) >= last for line in lines[1:]):
        return []  # which is quick
    suffix = _suffix(record[index]) if index <= last else ""

    def is_row(line: str, quoting: Literal[0, 3] = csv.QUOTE_MINIMAL) -> bool:
        fields = next(csv.reader([line], delimiter=delimiter, quoting=quoting), [])
        return len(fields) == len(record) and (not suffix or _suffix(fields[index]) == suffix)

    before = record[: min(index, last)]
    own = sum(len(_BREAK.findall(value)) for value in before)  # the line with the path
    if own and is_row(lines[0], csv.QUOTE_NONE):
        own = 0
    return [n for n, line in enumerate(lines) if n not in (0, own) and is_row(line)]


def _note_kept(places: Places, table: pa.Table, names: list[str]) -> tuple[str, ...]:
    """Return a note if a value is in quotation marks and doubles those within it, as csv does."""
    for name in names:
        rows = pc.indices_nonzero(pc.match_substring_regex(table[name], _QUOTED))
        if len(rows):
            values = counted(len(rows), "value")
            return (
                f"{values} of column {name} in quotation marks that double those within, first in "
                f"{places.of(rows[0].as_py())}: except between commas and semicolons, marks are "
                "text and are kept; save the table as csv if they quote",
            )
    return ()


def _long_records(path: Path, form: Form) -> Iterator[tuple[int, list[str], list[str]]]:
    """Yield the records of more than one line: the first one's number, the fields, the lines."""
    lines: list[str] = []  # of the record that is being read
    with path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
        kept = _kept(file, lines)
        for first, record in delimited_records(
            kept, form.delimiter, form.quote, False, lambda line: place(path, line)
        ):
            blank = next(i for i, line in enumerate(lines) if line.strip("\r\n"))
            if len(lines) > blank + 1:
                yield first, record, lines[blank:]
            lines.clear()


def _kept(file: Iterable[str], lines: list[str]) -> Iterator[str]:
    """Yield lines, and append each to a list."""
    for line in file:
        lines.append(line)
        yield line


def _has_breaks(column: pa.ChunkedArray) -> bool:
    return bool(pc.any(pc.match_substring(column, "\n")).as_py())


def _suffix(path: str) -> str:
    return PurePosixPath(path.strip()).suffix.lower()
