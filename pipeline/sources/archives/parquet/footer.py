"""The footer of a Parquet file: the column chunks of a column.

Arrow reads footers, too, but ends the process at some that are damaged, when it is asked for a
column chunk. See https://parquet.apache.org/docs/file-format/metadata/.
"""

from __future__ import annotations

from pipeline.sources.archives.parquet.pages import Chunk, PageError, Read, UnknownFormError
from pipeline.sources.archives.parquet.thrift import (
    Struct,
    ThriftError,
    list_of,
    number_of,
    read_struct,
    struct_of,
)

_MAGIC = b"PAR1"
_TAIL_BYTES = 8
_BYTE_ARRAY = 6


def read_chunks(
    read: Read, n_file_bytes: int, column: int, max_level: int
) -> list[tuple[Chunk, int | None]]:
    """Read where a column is in each row group.

    Args:
        read: Reads the file.
        n_file_bytes: Size of the file.
        column: Number of the column, a leaf of the schema.
        max_level: Definition level of a value that is not null.

    Returns:
        The chunk of each row group, and its number of nulls; None if that is not stated.

    Raises:
        PageError: The footer contradicts itself.
        UnknownFormError: The column is not of bytes, or is in another file.
    """
    tail = read(max(0, n_file_bytes - _TAIL_BYTES), min(_TAIL_BYTES, n_file_bytes))
    n_bytes = int.from_bytes(tail[:4], "little")
    if tail[4:] != _MAGIC or n_bytes > n_file_bytes - _TAIL_BYTES:
        raise PageError("it has no footer")
    try:
        fields, _ = read_struct(read(n_file_bytes - _TAIL_BYTES - n_bytes, n_bytes))
        groups = list_of(fields, 4)
        return [_chunk(group, i, column, max_level) for i, group in enumerate(groups)]
    except ThriftError as error:
        raise PageError(f"its footer cannot be read: {error}") from error


def _chunk(group: Struct, number: int, column: int, max_level: int) -> tuple[Chunk, int | None]:
    columns = list_of(group, 1)
    n_rows = number_of(group, 3)
    if column >= len(columns):
        raise PageError(f"row group {number} lacks columns")
    if columns[column].get(1):
        raise UnknownFormError("it is in another file")
    stated = struct_of(columns[column], 3)
    if number_of(stated, 1) != _BYTE_ARRAY:
        raise UnknownFormError("it is not of bytes")
    n_values, n_uncompressed_bytes, n_bytes = (number_of(stated, i) for i in (5, 6, 7))
    if n_values != n_rows or min(n_values, n_uncompressed_bytes, n_bytes) < 0:
        raise PageError(f"row group {number} has {n_rows} rows, but {n_values} values")
    start, dictionary = number_of(stated, 9), stated.get(11)
    if isinstance(dictionary, int) and 0 < dictionary < start:
        start = dictionary
    sizes = n_bytes, n_uncompressed_bytes, n_values
    statistics = stated.get(12)
    n_nulls = statistics.get(3) if isinstance(statistics, dict) else None
    chunk = Chunk(start, *sizes, number_of(stated, 4), max_level)
    return chunk, n_nulls if isinstance(n_nulls, int) else None
