"""Audio and carried columns of a dataset's table.

Arrow in, Arrow out: no files and no `datasets`.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import SourceError
from pipeline.sources.base import Column
from pipeline.sources.lists.mapped import mapped_if_large
from pipeline.sources.lists.paths import expand_all
from pipeline.store.format.records import RESERVED_NAMES

if TYPE_CHECKING:
    from pipeline.config import DatasetConfig
    from pipeline.sources.archives.ranges import Ranges
    from pipeline.sources.lists.places import Places
    from pipeline.sources.segments import Spans

_BLOCK_ROWS = 1 << 14


@dataclass(frozen=True, slots=True)
class Rows:
    """A loaded dataset, before its columns are chosen.

    Attributes:
        table: All rows and columns.
        class_names: Names of each ClassLabel column.
        audio_column: Column of `table` with paths, encoded bytes, or structs of both.
        root: Directory that relative paths start from; None if there is none.
        state: Fingerprint of the rows, or of the files that hold them.
        skipped: Files of the dataset that are not utterances.
        tables: Paths of the files that hold the rows; empty if there are none.
        spans: The part of its recording that each row takes; None if each takes all of it.
        ranges: The bytes of its file that each row takes; None if each takes whole files or bytes.
        id_column: Column with the ids, unless the configuration names one; None if there is none.
        notes: What the user should know about how the dataset was read.
        splits: The split of each row, text `[n_rows]`, which precedes ids that are not unique
            without it; None if there is one split.
        places: Where the rows are written; None if they are in no file of rows.
    """

    table: pa.Table
    class_names: dict[str, tuple[str, ...]]
    audio_column: str
    root: str | None
    state: str = ""
    skipped: tuple[str, ...] = ()
    tables: tuple[str, ...] = ()
    spans: Spans | None = None
    ranges: Ranges | None = None
    id_column: str | None = None
    notes: tuple[str, ...] = ()
    splits: pa.Array | None = None
    places: Places | None = None

    def where(self, row: int, column: str | None = None) -> str:
        """Name a row, or its value in a column, for messages: by file and line if it has these."""
        if self.places is None:
            return f"row {row} (from 0)"
        if column in self.places.columns and self.id_column is not None:
            key = self.table[self.id_column][row].as_py()
            return self.places.of_value(str(column), key)
        return self.places.of(row)

    def take(self, rows: pa.Array) -> Rows:
        """Return some rows, by their numbers."""
        return self._with(self.table.take(rows), rows)

    def first(self, n: int) -> Rows:
        """Return the first `n` rows."""
        n = min(n, len(self.table))
        return self._with(self.table.slice(0, n), pa.array(np.arange(n)))

    def _with(self, table: pa.Table, rows: pa.Array) -> Rows:
        """Return `rows` of everything, of which `table` is known."""
        spans = None if self.spans is None else self.spans.take(rows)
        ranges = None if self.ranges is None else self.ranges.take(rows)
        splits = None if self.splits is None else self.splits.take(rows)
        places = None if self.places is None else self.places.take(rows)
        return replace(self, table=table, spans=spans, ranges=ranges, splits=splits, places=places)


def choose_columns(config: DatasetConfig, rows: Rows) -> tuple[tuple[Column, ...], tuple[str, ...]]:
    """Choose the columns to carry into the store.

    Returns:
        The columns to carry, and, unless the configuration names columns, those that are left
        out: reserved, nested, binary or empty.

    Raises:
        SourceError: A named column does not exist, is not plain, or is reserved by the store's
            index.
    """
    schema = rows.table.schema
    kept: list[str] = []
    skipped: list[str] = []
    if config.columns is not None:
        for name in config.columns:
            _check_named(name, schema, config)
        kept = list(dict.fromkeys(config.columns))
    else:
        for name in schema.names:
            if name not in RESERVED_NAMES and is_plain(schema.field(name).type):
                kept.append(name)
            elif name != config.id_column:
                skipped.append(name)
        apart = (rows.audio_column, rows.id_column)
        kept, skipped = ([n for n in part if n not in apart] for part in (kept, skipped))
    columns = (
        Column(name, str(_canonical(schema.field(name).type)), rows.class_names.get(name))
        for name in kept
    )
    return tuple(columns), tuple(skipped)


def _check_named(name: str, schema: pa.Schema, config: DatasetConfig) -> None:
    if name in RESERVED_NAMES:
        raise SourceError(
            f"dataset.columns names {name}, which is a column of the store's own index: leave it "
            "out, or rename it in the dataset"
            + ("; it can be dataset.id_column" if config.id_column is None else "")
        )
    require_column(name, schema.names, "dataset.columns")
    kind = schema.field(name).type
    if not is_plain(kind):
        raise SourceError(
            f"dataset.columns names {name}, which is {kind}: only numbers, text, booleans, times "
            "and lists of these can be carried"
        )


def is_plain(kind: pa.DataType) -> bool:
    """Return whether columns of an Arrow type can be carried into a store."""
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return is_plain(kind.value_type)
    tests = (
        *(pa.types.is_integer, pa.types.is_floating, pa.types.is_decimal, pa.types.is_boolean),
        *(pa.types.is_temporal, is_text),
    )
    return any(test(kind) for test in tests)


def is_text(kind: pa.DataType) -> bool:
    """Return whether an Arrow type is text."""
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _canonical(kind: pa.DataType) -> pa.DataType:
    """Return string for large_string and list for large_list: readers differ by version."""
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return pa.list_(_canonical(kind.value_type))
    return pa.string() if pa.types.is_large_string(kind) else kind


def one_array(column: pa.ChunkedArray) -> pa.Array:
    """Return a column as one array; `combine_chunks` copies one that is."""
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()


def select_columns(table: pa.Table, columns: tuple[Column, ...]) -> pa.Table:
    """Return the chosen columns, with the types that `columns` states."""
    table = table.select([column.name for column in columns]).replace_schema_metadata(None)
    fields = (pa.field(field.name, _canonical(field.type)) for field in table.schema)
    return table.cast(pa.schema(fields))


def audio_of(rows: Rows) -> tuple[pa.ChunkedArray, pa.ChunkedArray | None]:
    """Find the audio of every row.

    Returns:
        Absolute paths, and encoded bytes (None if no row has any). Bytes take precedence
        over paths. Relative paths start from the root.

    Raises:
        SourceError: The audio column holds neither paths nor bytes.
    """
    column = rows.table.column(rows.audio_column)
    kind, data = column.type, None
    if pa.types.is_struct(kind) and {"bytes", "path"} <= {field.name for field in kind}:
        data, paths = pc.struct_field(column, "bytes"), pc.struct_field(column, "path")
    elif is_text(kind):
        paths = column
    elif pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        data, paths = column, pa.chunked_array([pa.nulls(len(column), pa.string())])
    else:
        raise SourceError(
            f"dataset.audio_column={rows.audio_column} is {kind}, neither audio nor paths"
        )
    if data is not None and data.null_count == len(data):
        data = None
    paths = expand_all(paths.cast(pa.string()))
    return paths if rows.root is None else below(rows.root, paths), data


def compact(paths: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return paths that take less memory: each once, if files repeat as recordings of segments do.

    Whether they do is seen in the first block. Others are mapped if they are large.
    """
    first = paths.slice(0, _BLOCK_ROWS)
    if pc.count_distinct(first, mode="all").as_py() <= len(first) // 2:
        return pa.chunked_array([paths.dictionary_encode().combine_chunks()])
    return mapped_if_large(pa.table({"path": paths}))["path"]


def below(folder: str, paths: pa.ChunkedArray) -> pa.ChunkedArray:
    """Put a folder before relative paths."""
    start, separator = (pa.scalar(text, paths.type) for text in (folder.rstrip("/"), "/"))
    joined = pc.binary_join_element_wise(start, paths, separator)
    is_absolute = pc.match_substring_regex(paths, "^/|://")
    return pc.if_else(is_absolute, paths, joined) if pc.any(is_absolute).as_py() else joined


def require_paths(rows: Rows) -> None:
    """Check that a column of paths has one in every row; structs with paths may lack some.

    Raises:
        SourceError: A path is empty; the message names the row.
    """
    column = rows.table.column(rows.audio_column)
    if not is_text(column.type):
        return
    is_empty = pc.fill_null(pc.equal(pc.utf8_trim_whitespace(column), ""), True)
    first = pc.index(is_empty, True).as_py()
    if first >= 0:
        raise SourceError(
            f"column {rows.audio_column} is empty in {pc.sum(is_empty).as_py()} of {len(column)} "
            f"rows, first in {rows.where(first)}: every row needs a path"
        )


def first_failure(column: pa.ChunkedArray | pa.Array, kind: pa.DataType) -> int:
    """Return the first row of a column that cannot be cast to a type; one of them cannot."""
    start, stop = 0, len(column)
    while stop - start > 1:
        middle = (start + stop) // 2
        try:
            column.slice(start, middle - start).cast(kind)
            start = middle
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
            stop = middle
    return start


def check_text(name: str, values: pa.ChunkedArray | pa.Array, origin: str) -> None:
    """Check that text is UTF-8, which Arrow's readers of json and parquet do not.

    Raises:
        SourceError: It is not.
    """
    try:
        values.validate(full=True)
    except pa.ArrowInvalid as error:
        raise SourceError(
            f"{name} of {origin} is damaged, or is not UTF-8 ({error}); save the table as UTF-8"
        ) from error


def require_column(name: str, names: Sequence[str], setting: str, hint: str = "") -> None:
    """Raise SourceError, with the nearest name and all names, if a column does not exist."""
    if name in names:
        return
    near = difflib.get_close_matches(name, names, 1)
    spaced = next((found for found in names if found.strip() == name), None)
    if spaced is not None:
        hint = f"it is written {spaced!r}, with spaces: remove them from the header"
    hint = hint or (f"did you mean {near[0]}?" if near else "")
    raise SourceError(
        f"{setting}: there is no column {name}{f'; {hint}' if hint else ''} "
        f"(columns: {', '.join(names)})"
    )


def first_values(values: pa.ChunkedArray) -> str:
    """Return the first three values and the number of the others, for messages."""
    texts = [str(value) for value in values.slice(0, 3).to_pylist()]
    texts = [text if text.isprintable() else repr(text) for text in texts]
    shown = ", ".join(text if len(text) <= 100 else text[:100] + "…" for text in texts)
    return shown + (f" and {len(values) - 3} more" if len(values) > 3 else "")
