"""Records of text tables, with the lines they begin on."""

from __future__ import annotations

import csv
import sys
from collections.abc import Callable, Iterable, Iterator

from pipeline.errors import SourceError


def delimited_records(
    file: Iterable[str], delimiter: str, quote: bool, strict: bool, name_of: Callable[[int], str]
) -> Iterator[tuple[int, list[str]]]:
    """Yield the records of a table that are not empty, each with the number of its first line.

    Args:
        file: Lines of the table, opened with `newline=""`.
        delimiter: Separator of the fields.
        quote: Whether quotation marks quote.
        strict: Whether an open quotation mark is an error.
        name_of: Names a line of the table, for the message of an error.

    Raises:
        SourceError: It is no table.
    """
    csv.field_size_limit(sys.maxsize)
    if quote:
        reader = csv.reader(file, delimiter=delimiter, strict=strict)
    else:
        reader = csv.reader(file, delimiter=delimiter, quoting=csv.QUOTE_NONE)
    n_lines = 0
    try:
        for record in reader:
            if record:
                yield n_lines + 1, record
            n_lines = reader.line_num
    except csv.Error as error:
        raise SourceError(
            f"{name_of(n_lines + 1)} cannot be read: {error}; is a quotation mark open?"
        ) from error
