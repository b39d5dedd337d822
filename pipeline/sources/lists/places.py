"""Places of rows: the file and the line that each was read from, for messages.

A line is looked up when a message needs it, by reading the file again.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import pyarrow as pa

from pipeline.delimited import delimited_records
from pipeline.sources.lists.lines import place, read_lines


@dataclass(frozen=True, slots=True)
class Form:
    """How the rows of a file are written.

    Attributes:
        kind: "lines": each line that is not blank is a row. "csv": so is each record. "rows": the
            file has no lines.
        n_header: Lines or records before the rows.
        delimiter: Separator of the fields of a record.
        quote: Whether quotation marks quote in it.
    """

    kind: Literal["lines", "csv", "rows"] = "lines"
    n_header: int = 0
    delimiter: str = ","
    quote: bool = True


@dataclass(frozen=True, slots=True)
class Places:
    """Where the rows of a list are written.

    Attributes:
        files: Each file with the number of its rows and their form.
        rows: The numbers, among those of the files, of the rows that were taken: int64 `[n_rows]`;
            None for all.
        columns: Files of columns that are written apart, in lines of an id and its value.
    """

    files: tuple[tuple[Path, int, Form], ...]
    rows: pa.Array | None = None
    columns: Mapping[str, Path] = field(default_factory=dict)

    def take(self, rows: pa.Array) -> Places:
        """Return those of some rows, by their numbers."""
        return replace(self, rows=rows if self.rows is None else self.rows.take(rows))

    def of(self, row: int) -> str:
        """Return the file and the line of a row; without lines, its number from 1."""
        number = row if self.rows is None else self.rows[row].as_py()
        for path, n_rows, form in self.files:
            if number < n_rows:
                return _place(path, number, form)
            number -= n_rows
        raise IndexError(f"row {row} of {self.files}")

    def of_value(self, column: str, key: str) -> str:
        """Return the file and the line of the value of an id, in one of `columns`."""
        path = self.columns[column]
        numbers = (number for number, line in read_lines(path) if line.split(None, 1)[0] == key)
        return place(path, next(numbers))


def _place(path: Path, number: int, form: Form) -> str:
    if form.kind == "rows":
        return f"{path}, row {number + 1}"
    lines: Iterator[int]
    if form.kind == "csv":
        lines = (line for line, _ in read_records(path, form))
    else:
        lines = (line for line, _ in read_lines(path))
    return place(path, next(itertools.islice(lines, form.n_header + number, None)))


def read_records(
    path: Path, form: Form, is_strict: bool = False
) -> Iterator[tuple[int, list[str]]]:
    """Yield the records of a text table that are not blank, with the lines they begin on.

    Args:
        path: The table.
        form: How it is written.
        is_strict: Whether a quotation mark that is open at the end is refused.

    Raises:
        SourceError: It is no table; the message names the line.
    """
    with path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
        yield from delimited_records(
            file, form.delimiter, form.quote, is_strict, lambda line: place(path, line)
        )
