"""Tables of text, csv and tsv: values are read as text; columns of plain numbers become numbers.

A column stays text if a number would lose something: a leading zero (0012), an exponent (1e1), a
plus sign, more digits than 64 bits hold. `dataset.types` states the type of a column.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv

from pipeline.errors import SourceError, first_few
from pipeline.sources.columns import require_column

SUFFIXES = (".csv", ".tsv")
TYPES = {"text": pa.string(), "int": pa.int64(), "float": pa.float64(), "bool": pa.bool_()}
"""Values of `dataset.types`."""
_INTEGER = r"^(0|-?[1-9][0-9]{0,17})$"
_NUMBER = r"^-?(0|[1-9][0-9]{0,14})(\.[0-9]+)?$"
_BOOLEAN = r"^(true|True|TRUE|false|False|FALSE)$"
_UNEQUAL = re.compile(r"Row #(\d+): Expected (\d+) columns, got (\d+)")
_BLOCK_BYTES = 1 << 24  # a row must fit into one


def read_delimited(path: Path) -> pa.Table:
    """Read a table with all its values as text; an empty one is null.

    Quotation marks are text in a tsv. A byte order mark, blank lines, and line breaks in quoted
    values of a csv are read as usual.

    Raises:
        SourceError: A row has more or fewer fields than the header, a name occurs twice, the text
            is not UTF-8, or there are no rows.
    """
    is_tsv = path.suffix.lower() == ".tsv"
    if path.stat().st_size == 0:
        raise SourceError(f"{path} has no rows: it is empty (0 bytes)")
    form = pa_csv.ParseOptions(
        delimiter="\t" if is_tsv else ",",
        quote_char=False if is_tsv else '"',
        newlines_in_values=not is_tsv,
    )
    read = pa_csv.ReadOptions(use_threads=False, block_size=_BLOCK_BYTES)  # errors name the row
    try:
        with pa_csv.open_csv(path, read, form) as file:
            names = file.schema.names
        kinds = pa_csv.ConvertOptions(
            column_types={name: pa.string() for name in names},
            null_values=[""],
            strings_can_be_null=True,
            quoted_strings_can_be_null=True,
        )
        table = pa_csv.read_csv(path, read, form, kinds)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise SourceError(f"{path} cannot be read: {_reason(str(error))}") from error
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise SourceError(f"{path} has several columns of one name: {first_few(repeated)}")
    if not len(table):
        raise SourceError(f"{path} has no rows")
    if is_tsv:
        _check_lines(path, len(table))
    return table.rename_columns([name or f"Unnamed: {i}" for i, name in enumerate(names)])


def _check_lines(path: Path, n_rows: int) -> None:
    """Check that each line of a tab-separated list, where no field can hold a break, is a row.

    Raises:
        SourceError: It is not.
    """
    with path.open("rb") as file:
        n_lines = sum(not line.isspace() for line in file)
    if n_lines != n_rows + 1:
        raise SourceError(
            f"{path} has {n_lines - 1} lines after its header, but was read as {n_rows} rows: a "
            "field holds a line break or a carriage return; remove it"
        )


def infer_types(table: pa.Table, as_text: Collection[str | None]) -> pa.Table:
    """Convert the columns of text that hold plain numbers, true or false.

    Args:
        table: Columns of text.
        as_text: Columns that are not converted.
    """
    for place, name in enumerate(table.column_names):
        if name not in as_text:
            table = table.set_column(place, name, _inferred(table.column(place)))
    return table


def state_types(table: pa.Table, types: Mapping[str, str]) -> pa.Table:
    """Convert the columns whose types `dataset.types` states.

    Raises:
        SourceError: A column does not exist, a type is unknown, or a value is not of its type.
    """
    for name, kind in types.items():
        if kind not in TYPES:
            raise SourceError(f"dataset.types: {name} is {kind}; types are {', '.join(TYPES)}")
        require_column(name, table.column_names, "dataset.types")
        place = table.column_names.index(name)
        try:
            column = _lower(table.column(place), TYPES[kind]).cast(TYPES[kind])
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            raise SourceError(f"dataset.types: column {name} is not {kind}: {error}") from error
        table = table.set_column(place, name, column)
    return table


def _inferred(column: pa.ChunkedArray) -> pa.ChunkedArray:
    if column.null_count == len(column):
        return column.cast(pa.float64())  # as pandas has it
    for pattern, kind in ((_INTEGER, pa.int64()), (_NUMBER, pa.float64()), (_BOOLEAN, pa.bool_())):
        if pc.all(pc.match_substring_regex(column, pattern)).as_py():
            return _lower(column, kind).cast(kind)
    return column


def _reason(error: str) -> str:
    """Return an error of Arrow's reader in one line, in our words if it is about a row."""
    found = _UNEQUAL.search(error)
    if found is None:
        return " ".join(error.split())[:300]
    row, n_names, n_fields = map(int, found.groups())
    return (
        f"row {row} (the header is row 1) has {'more' if n_fields > n_names else 'fewer'} fields "
        f"than its header: {n_fields}, not {n_names}"
    )


def _lower(column: pa.ChunkedArray, kind: pa.DataType) -> pa.ChunkedArray:
    is_text = pa.types.is_string(column.type)
    return pc.utf8_lower(column) if is_text and pa.types.is_boolean(kind) else column
