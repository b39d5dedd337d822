"""Tables of text, csv and tsv: values are read as text; columns of plain numbers become numbers.

A column stays text if a number would lose something: a leading zero (0012), an exponent (1e1), a
plus sign, more digits than 64 bits hold; or if two texts would be one number: 1.1 and 1.10.
`dataset.types` states the type of a column.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv

from pipeline.errors import SourceError, first_few
from pipeline.sources.columns import Rows, first_failure, one_array, require_column
from pipeline.sources.lists.lines import place, read_lines
from pipeline.sources.lists.mapped import HEAP_BYTES, mapped
from pipeline.sources.lists.places import Form, read_records

SUFFIXES = (".csv", ".tsv")
OTHER_SUFFIXES = (".json", ".jsonl", ".parquet")
"""Suffixes of tables that `datasets` reads: see `read_table` in `hub.py`."""
QUOTING = ",;"
"""Delimiters between which quotation marks quote: those of spreadsheets. Elsewhere, as in the lists
of speech corpora, they are text."""
TYPES = {"text": pa.string(), "int": pa.int64(), "float": pa.float64(), "bool": pa.bool_()}
"""Values of `dataset.types`."""
_INTEGER = r"^(0|-?[1-9][0-9]{0,17})$"
_NUMBER = r"^-?(0|[1-9][0-9]{0,14})(\.[0-9]+)?$"
_BOOLEAN = r"^(true|True|TRUE|false|False|FALSE)$"
_BLOCK_BYTES = 1 << 20  # several are read at a time
_LARGEST_ROW_BYTES = 1 << 24


def form_of(path: Path, delimiter: str | None = None, has_header: bool = True) -> Form:
    """Return how a table of text is written.

    Args:
        path: The table; a tsv is separated by tabs.
        delimiter: Separator, if it is another one; quotation marks quote between some (`QUOTING`).
        has_header: Whether the first record names the columns.

    Raises:
        SourceError: The delimiter is not one character.
    """
    if delimiter is None:
        delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
    delimiter = "\t" if delimiter == r"\t" else delimiter
    if len(delimiter.encode()) != 1 or delimiter in '"\r\n':
        raise SourceError(f"dataset.delimiter is {delimiter!r}, not one character such as | or \\t")
    return Form("csv", int(has_header), delimiter, quote=delimiter in QUOTING)


def delimiter_in(names: Sequence[str]) -> str:
    """Return another delimiter that a header of one name has, as a setting has it; "" if none."""
    found = next((mark for mark in ";|\t" if len(names) == 1 and mark in names[0]), "")
    return found.replace("\t", r"\t")


def read_delimited(path: Path, form: Form, names: Sequence[str] | None = None) -> pa.Table:
    """Read a table with all its values as text; an empty one is null.

    A byte order mark, blank lines, and line breaks in quoted values of a csv are read as usual.

    Args:
        path: The table.
        form: How it is written.
        names: Names of its columns, if it has no header.

    Raises:
        SourceError: A row has more or fewer fields than the header, a name occurs twice, the text
            is not UTF-8, or there are no rows.
    """
    if path.stat().st_size == 0:
        raise SourceError(f"{path} has no rows: it is empty (0 bytes)")
    try:
        try:
            table = _read_text(path, form, names, _BLOCK_BYTES)
        except pa.ArrowInvalid as error:
            if "straddling" not in str(error):
                raise
            table = _read_text(path, form, names, _LARGEST_ROW_BYTES)  # a row must fit into a block
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        _check_records(path, form, names)
        raise SourceError(f"{path} cannot be read: {' '.join(str(error).split())[:300]}") from error
    found = table.column_names
    repeated = sorted({name for name in found if found.count(name) > 1})
    if repeated:
        raise SourceError(f"{path} has several columns of one name: {first_few(repeated)}")
    if not len(table):
        raise SourceError(f"{path} has no rows")
    if form.quote:
        _check_end(path, form, table)
    else:
        _check_lines(path, len(table) + form.n_header)
    return table.rename_columns([name or f"Unnamed: {i}" for i, name in enumerate(found)])


def _read_text(path: Path, form: Form, names: Sequence[str] | None, block_bytes: int) -> pa.Table:
    """Read a table in blocks, without the checks that Arrow lacks."""
    parse = pa_csv.ParseOptions(
        delimiter=form.delimiter,
        quote_char='"' if form.quote else False,
        newlines_in_values=form.quote,
    )
    read = pa_csv.ReadOptions(block_size=block_bytes, column_names=names)
    with pa_csv.open_csv(path, read, parse) as file:
        found = file.schema.names
    kinds = pa_csv.ConvertOptions(
        column_types={name: pa.string() for name in found},
        null_values=[""],
        strings_can_be_null=True,
        quoted_strings_can_be_null=True,
    )
    with pa_csv.open_csv(path, read, parse, kinds) as blocks:
        if path.stat().st_size > HEAP_BYTES:
            return mapped(blocks.schema, blocks)
        return blocks.read_all()


def _check_records(path: Path, form: Form, names: Sequence[str] | None) -> None:
    """Look for the error of a table that cannot be read.

    Raises:
        SourceError: A line is not UTF-8, or has another number of fields than the header.
    """
    for _ in read_lines(path):
        pass
    n_names, named = (0, "header") if names is None else (len(names), "dataset.header")
    for line, record in read_records(path, form):
        n_names = n_names or len(record)
        if len(record) != n_names:
            word = "more" if len(record) > n_names else "fewer"
            raise SourceError(
                f"{place(path, line)} has {word} fields than the {named}: {len(record)}, not "
                f"{n_names}{_remedy(record, n_names, form)}"
            )


def _remedy(record: Sequence[str], n_names: int, form: Form) -> str:
    if "\n" in record[-1]:
        return "; is a quotation mark open?"
    if len(record) > n_names and not form.quote and any(v.startswith('"') for v in record):
        return "; quotation marks quote between commas and semicolons only: save the table as csv"
    if len(record) > n_names and form.quote:
        name = "comma" if form.delimiter == "," else "semicolon"
        return f"; put values that contain a {name} in quotation marks"
    return ""


def _check_end(path: Path, form: Form, table: pa.Table) -> None:
    """Check that no quotation mark is open at the end, which would take all lines after it.

    Raises:
        SourceError: One is.
    """
    last = table.slice(len(table) - 1).to_pylist()[0]
    if any("\n" in (value or "") for value in last.values()):
        for _ in read_records(path, form, is_strict=True):
            pass


def _check_lines(path: Path, n_rows: int) -> None:
    """Check that each line of a list without quotes, where no field can hold a break, is a row.

    Raises:
        SourceError: It is not.
    """
    with path.open("rb") as file:
        n_lines = sum(not line.isspace() for line in file)
    if n_lines != n_rows:
        raise SourceError(
            f"{path} has {n_lines} lines, but was read as {n_rows} rows: a field holds a line "
            "break or a carriage return; remove it"
        )


def infer_types(
    table: pa.Table, as_text: Collection[str | None], times: Collection[str | None] = ()
) -> pa.Table:
    """Convert the columns of text that hold plain numbers, true or false.

    Args:
        table: Columns of text.
        as_text: Columns that are not converted.
        times: Columns of times or channels: 0.5 and 0.50 are one number there.
    """
    for number, name in enumerate(table.column_names):
        if name not in as_text:
            table = table.set_column(number, name, _inferred(table.column(number), name in times))
    return table


def state_types(rows: Rows, types: Mapping[str, str]) -> pa.Table:
    """Convert the columns whose types `dataset.types` states.

    Args:
        rows: The rows.
        types: Types by the names of their columns.

    Returns:
        The table of the rows.

    Raises:
        SourceError: A column does not exist, a type is unknown, or a value is not of its type.
    """
    table = rows.table
    for name, kind in types.items():
        if kind not in TYPES:
            raise SourceError(f"dataset.types: {name} is {kind}; types are {', '.join(TYPES)}")
        require_column(name, table.column_names, "dataset.types")
        number = table.column_names.index(name)
        column = _lower(table.column(number), TYPES[kind])
        try:
            table = table.set_column(number, name, column.cast(TYPES[kind]))
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            row = first_failure(column, TYPES[kind])
            value = table.column(number)[row].as_py()
            raise SourceError(
                f"dataset.types: column {name} is not {kind}: the row of "
                f"{rows.where(row, name)} has {value!r:.40}"
            ) from error
    return table


def _inferred(column: pa.ChunkedArray, may_join: bool) -> pa.ChunkedArray:
    if column.null_count == len(column):
        return column.cast(pa.float64())  # as pandas has it
    for pattern, kind in ((_INTEGER, pa.int64()), (_NUMBER, pa.float64()), (_BOOLEAN, pa.bool_())):
        if pc.all(pc.match_substring_regex(column, pattern)).as_py():
            # One array, so that the parts of recordings and the carried column share it.
            values = one_array(_lower(column, kind).cast(kind))
            if pa.types.is_floating(kind) and not may_join and _are_joined(column, values):
                return column
            return pa.chunked_array([values])
    return column


def _are_joined(texts: pa.ChunkedArray, numbers: pa.Array) -> bool:
    """Return whether texts that differ only in trailing zeros, as 1.1 and 1.10, are one number."""
    n_numbers = pc.count_distinct(numbers).as_py()
    if pc.count_distinct(texts).as_py() == n_numbers:
        return False
    shortest = pc.replace_substring_regex(texts, r"^(-?[0-9]+\.[0-9]*[1-9])0+$|\.0+$", r"\1")
    return bool(pc.count_distinct(shortest).as_py() < pc.count_distinct(texts).as_py())


def _lower(column: pa.ChunkedArray, kind: pa.DataType) -> pa.ChunkedArray:
    is_text = pa.types.is_string(column.type)
    return pc.utf8_lower(column) if is_text and pa.types.is_boolean(kind) else column
