"""Quotation marks of tables of text: rows that one has swallowed, and values that keep theirs.

A mark that begins a value and is closed only lines later, at the end of another row's value, makes
one row of several. The table is well-formed, so only the lines show it.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.delimited import delimited_records
from pipeline.errors import SourceError, counted
from pipeline.sources.columns import is_text
from pipeline.sources.lists.lines import place
from pipeline.sources.lists.places import Form, Places

_QUOTED = r'(?s)^"(?:[^"]|"")*""(?:[^"]|"")*"$'
_REMEDY = (
    'write a mark of the text as two ("") within a value in quotation marks, or save the table as '
    "tsv, where marks are text"
)


def check_quotes(places: Places, table: pa.Table, audio_column: str) -> tuple[str, ...]:
    """Check that no line within a value in quotation marks is a row, and look at other marks.

    It is taken for one if it has as many fields as the header and, in the column of paths, a name
    with the suffix of the row's own. Tables without line breaks in values are not read again.

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
    if not all(form.quote for _, _, form in places.files):
        return _note_kept(places, table, texts)
    if not any(pc.any(pc.match_substring(table[name], "\n")).as_py() for name in texts):
        return ()
    index = table.column_names.index(audio_column)
    doubtful: list[str] = []
    for path, _, form in places.files:
        for first, record, lines in _long_records(path, form):
            suffix = _suffix(record[index]) if index < len(record) else ""
            for number, line in enumerate(lines, first + 1):
                fields = next(csv.reader([line], delimiter=form.delimiter), [])
                if len(fields) != len(record) or (suffix and suffix != _suffix(fields[index])):
                    continue
                where = f"{place(path, number)} {{}} a row, but is within quotation marks"
                if suffix:
                    raise SourceError(f"{where.format('looks like')} of line {first}: {_REMEDY}")
                doubtful.append(f"{where.format('may be')} of line {first}")
    if not doubtful:
        return ()
    others = f" ({counted(len(doubtful), 'such line')})" if len(doubtful) > 1 else ""
    return (f"{doubtful[0]}{others}; if it is one, {_REMEDY}",)


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
    """Yield the records of more than one line: the first one's number, the fields, other lines."""
    lines: list[str] = []  # of the record that is being read
    with path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
        kept = _kept(file, lines)
        for first, record in delimited_records(
            kept, form.delimiter, form.quote, False, lambda line: place(path, line)
        ):
            blank = next(i for i, line in enumerate(lines) if line.strip("\r\n"))
            if len(lines) > blank + 1:
                yield first, record, lines[blank + 1 :]
            lines.clear()


def _kept(file: Iterable[str], lines: list[str]) -> Iterator[str]:
    """Yield lines, and append each to a list."""
    for line in file:
        lines.append(line)
        yield line


def _suffix(path: str) -> str:
    return PurePosixPath(path.strip()).suffix.lower()
