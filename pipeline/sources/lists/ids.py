"""Ids of a dataset's rows: from a column, from the paths of the files, or the numbers of the rows.

Loops over rows take a few thousand at a time, so that a million are never in memory as Python
objects.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import SourceError, counted
from pipeline.sources.columns import Rows, audio_of, first_values, is_text, require_column

if TYPE_CHECKING:
    from pipeline.config import DatasetConfig

_BLOCK_ROWS = 1 << 14


def make_ids(
    config: DatasetConfig, rows: Rows, paths: pa.ChunkedArray, data: pa.ChunkedArray | None
) -> tuple[str, pa.StringArray]:
    """Make the id of every row from `id_column`, the file's path, or the row number.

    A part of a recording gets its times after the path: `call.wav:1.5-3.25`. Row numbers are used
    for bytes whose names are missing or repeated. They are never used for files: a file that is
    listed twice is a mistake in the list.

    Returns:
        The rule, for the identity, and the ids.

    Raises:
        SourceError: An id is empty or not unique.
    """
    id_column = config.id_column or rows.id_column
    if id_column is not None:
        require_column(id_column, rows.table.column_names, "dataset.id_column")
        column = rows.table.column(id_column)
        if not (is_text(column.type) or pa.types.is_integer(column.type)):
            raise SourceError(
                f"dataset.id_column={id_column} is {column.type}: ids are text or integers"
            )
        rule, origin = f"column {id_column}", f"dataset.id_column={id_column}"
        ids = column.cast(pa.string())
    elif rows.spans is not None:
        rule, origin = "path and times", "the audio's path with the times of the segment"
        ids = pc.binary_join_element_wise(path_ids(paths, rows.root), rows.spans.labels(), ":")
    else:
        rule, origin, ids = "path", "the audio's path", path_ids(paths, rows.root)
    if rows.splits is not None:
        rule, ids = f"{rule} after split", pc.binary_join_element_wise(rows.splits, ids, "/")
    is_by_name = id_column is None and rows.spans is None and data is not None
    if is_by_name and (ids.null_count or has_duplicates(ids)):
        rule, ids = "row", pa.chunked_array([pa.array(range(len(ids))).cast(pa.string())])
    _require_ids(rows, ids, origin)
    if has_duplicates(ids):
        remedy = "dataset.id_column must name a column whose values are unique"
        if config.id_column is not None:
            remedy += "; without it the file's path is the id"
        elif id_column is None and rows.spans is None:
            remedy += (
                ". If rows are parts of files, set dataset.start_column with dataset.stop_column "
                "or dataset.duration_column"
            )
        raise SourceError(f"{origin} is not unique: {_repeated(rows, ids)}; {remedy}")
    return rule, pa.concat_arrays(ids.chunks)


def _require_ids(rows: Rows, ids: pa.ChunkedArray, origin: str) -> None:
    """Raise SourceError, with the first row, if an id is empty."""
    is_empty = pc.fill_null(pc.equal(ids, ""), True)
    first = pc.index(is_empty, True).as_py()
    if first >= 0:
        raise SourceError(
            f"{origin} is empty in {pc.sum(is_empty).as_py()} of {len(ids)} rows, first in "
            f"{rows.where(first)}: every row needs an id"
        )


def _repeated(rows: Rows, ids: pa.ChunkedArray) -> str:
    """Describe the ids that occur more than once, and where the first one does."""
    counts = pc.value_counts(ids)
    repeated = counts.filter(pc.greater(counts.field("counts"), 1)).field("values")
    first = pc.index(ids, repeated[0]).as_py()
    second = first + 1 + pc.index(ids.slice(first + 1), repeated[0]).as_py()
    occur = "id occurs" if len(repeated) == 1 else "ids occur"
    return (
        f"{len(repeated):,} {occur} more than once ({first_values(repeated)}), the first in "
        f"{rows.where(first)} and {rows.where(second)}"
    )


def note_spaces(ids: pa.StringArray) -> tuple[str, ...]:
    """Return a note if ids begin or end with spaces, which are easily overlooked."""
    spaced = ids.filter(pc.match_substring_regex(ids, r"^\s|\s$"))
    if not len(spaced):
        return ()
    words = f"{counted(len(spaced), 'id')} with a space at an end, first {spaced[0].as_py()!r}"
    return (f"{words}: ids are as the dataset has them",)


def with_split_rule(config: DatasetConfig, rows: Rows) -> Rows:
    """Drop `splits` if the ids of all rows, also of those beyond `limit`, are unique without."""
    name = config.id_column or rows.id_column
    if rows.splits is None or (name is not None and name not in rows.table.column_names):
        return rows
    ids = path_ids(audio_of(rows)[0], rows.root) if name is None else rows.table.column(name)
    return rows if has_duplicates(ids) else replace(rows, splits=None)


def path_ids(paths: pa.ChunkedArray, root: str | None) -> pa.ChunkedArray:
    """Return each path relative to `root`, or the file's name if it is not below `root`."""
    if root is None:
        return pc.replace_substring_regex(paths, r"^.*/", "")
    prefix = root.rstrip("/") + "/"
    inside = pc.starts_with(paths, prefix)
    relative = pc.utf8_slice_codeunits(paths, start=len(prefix))
    if pc.all(inside).as_py():
        return relative
    return pc.if_else(inside, relative, pc.replace_substring_regex(paths, r"^.*/", ""))


def has_duplicates(values: pa.ChunkedArray) -> bool:
    """Return whether a value occurs twice.

    Hashes are compared first: 8 bytes a value, where a table of the values takes 150. The values
    themselves are compared only if two hashes are equal.
    """
    hashes = np.empty(len(values), np.int64)
    for start in range(0, len(values), _BLOCK_ROWS):
        part = [hash(value) for value in values.slice(start, _BLOCK_ROWS).to_pylist()]
        hashes[start : start + len(part)] = part
    hashes.sort()
    if not (hashes[1:] == hashes[:-1]).any():
        return False
    return bool(pc.count_distinct(values).as_py() < len(values))
