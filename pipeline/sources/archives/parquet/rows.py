"""Rows of Parquet files with embedded audio, read in place: nothing is copied or converted.

Of the audio only the place of each row is read; the other columns are read as they are.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.errors import SourceError
from pipeline.files import require_regular
from pipeline.sources.archives.parquet.audio_column import children_of, leaves_of, stand_in
from pipeline.sources.archives.parquet.embedded import Audio, named
from pipeline.sources.archives.parquet.finding import find_places
from pipeline.sources.archives.parquet.pages import UnknownFormError
from pipeline.sources.archives.parquet.places import Places, joined, without_bytes
from pipeline.sources.columns import Rows, is_plain, require_column
from pipeline.sources.fingerprint import stamps_of
from pipeline.sources.location import audio_root
from pipeline.sources.remote.file import RemoteFile, RemoteFolder
from pipeline.sources.remote.uri import is_remote
from pipeline.sources.splits import with_split
from pipeline.sources.tabular import TabularSource

if TYPE_CHECKING:
    from pipeline.config import DatasetConfig

_N_THREADS = 8  # files at once; they wait for the file system
_BUFFER_BYTES = 1 << 20  # otherwise Arrow reads a whole column chunk at once

File = Path | RemoteFile
"""A local file, or one of the hub that is not downloaded."""
Typed = Callable[[pa.Table], tuple[pa.Table, dict[str, tuple[str, ...]]]]
"""Gives the types of a dataset to a table; also returns the names of its ClassLabel columns."""


class ParquetSource(TabularSource):
    """Rows of Parquet files, whose audio is read in place.

    Args:
        config: Configuration of the dataset.
        rows: The rows; the audio column has empty bytes in the place of embedded ones.
        places: Where the bytes of each row are.

    Raises:
        SourceError: As for `TabularSource`.
    """

    def __init__(self, config: DatasetConfig, rows: Rows, places: Places) -> None:
        super().__init__(config, rows)
        if is_remote(rows.root):  # embedded files need no request
            paths = self._paths.cast(pa.string()).combine_chunks()
            embedded = pa.array(places.has_bytes[: len(self)])
            self._paths = pa.chunked_array([pc.if_else(embedded, None, paths)])
        self._audio = Audio(places)
        self._has_packed = bool((places.chunk[: len(self)] >= 0).any())

    @property
    def is_shared(self) -> bool:
        """Whether no audio is in a compressed page or in the hub's cache of one machine."""
        return not self._has_packed and (self.config.kind != "hub" or self.config.stream)

    def _place(self, row: int) -> dict[str, Any]:
        """Return the range of a row's file, or the file that the row names.

        Raises:
            SourceError: It is in a compressed page that is damaged.
        """
        return self._audio.of(row) or super()._place(row)


@dataclass(frozen=True, slots=True)
class Part:
    """Rows of a split.

    Attributes:
        split: Name of the split; empty if there are no splits.
        files: Its files.
        start: First row.
        stop: Row after the last one; None = the end.
    """

    split: str
    files: tuple[File, ...]
    start: int = 0
    stop: int | None = None


@dataclass(frozen=True, slots=True)
class FileRows:
    """The rows of one file.

    Attributes:
        table: All columns. That with the audio has empty bytes in the place of embedded ones;
            others that cannot be carried are null.
        class_names: Names of each ClassLabel column.
        places: Where the bytes of each row are.
    """

    table: pa.Table
    class_names: dict[str, tuple[str, ...]]
    places: Places


def read_parts(
    config: DatasetConfig,
    parts: Sequence[Part],
    root: Path | RemoteFolder | None,
    typed: Typed | None = None,
) -> tuple[Rows, Places]:
    """Read the rows of splits, which are joined.

    Args:
        config: Configuration of the dataset.
        parts: The splits.
        root: Folder of the files; relative paths of audio start from the folder of their file. None
            leaves them as they are.
        typed: Gives the types of the dataset to the columns of a file; None keeps those of the
            file.

    Returns:
        The rows for `ParquetSource`, with a column `split` if there are several, and their places.

    Raises:
        SourceError: A file is damaged, or the files have different columns.
        UnknownFormError: The audio of a file has a form that is not read here.
    """
    files = list(dict.fromkeys(file for part in parts for file in part.files))
    with ThreadPoolExecutor(_N_THREADS) as pool:
        found = pool.map(lambda file: read_file(file, config, root, typed), files)
        by_file = dict(zip(files, found, strict=True))
    _check_alike(by_file)
    tables, places = [], []
    for part in parts:
        table = pa.concat_tables(
            [by_file[file].table for file in part.files], promote_options="default"
        )
        stop = len(table) if part.stop is None else part.stop
        tables.append(table.slice(part.start, stop - part.start))
        whole = joined([by_file[file].places for file in part.files])
        places.append(whole.slice(part.start, stop))
    table, splits = pa.concat_tables(tables, promote_options="default"), None
    if len({part.split for part in parts}) > 1:
        names, lengths = [part.split for part in parts], [len(one) for one in tables]
        splits = pa.array(np.repeat(names, lengths).tolist(), pa.string())
        table = with_split(table, splits)
    rows = Rows(
        table,
        by_file[files[0]].class_names,
        config.audio_column,
        None if root is None else audio_root(config, root),
        json.dumps(_stamps(files, root)),
        tables=() if root is None else tuple(str(file) for file in files),
        notes=_notes(by_file),
        splits=splits,
    )
    return rows, joined(places)


def _stamps(files: Sequence[File], root: Path | RemoteFolder | None) -> list[str]:
    """Return the stamp of each file; nothing for a repository, whose commit the caller states."""
    if root is None and any(isinstance(file, RemoteFile) for file in files):
        return []
    return stamps_of(map(str, files))


def read_file(
    path: File, config: DatasetConfig, root: Path | RemoteFolder | None, typed: Typed | None
) -> FileRows:
    """Read the rows of one file, and the places of their audio.

    Raises:
        SourceError: The file is damaged, or has no such column.
        UnknownFormError: The audio has a form that is not read here.
    """
    if isinstance(path, Path):
        require_regular(path)
    name = config.audio_column
    with (
        named(str(path)),
        opened_for_arrow(path) as content,
        pq.ParquetFile(content, buffer_size=_BUFFER_BYTES, pre_buffer=False) as file,
    ):
        schema = file.schema_arrow
        _check_columns(path, schema, name)
        kind = schema.field(name).type
        leaf, path_leaf = leaves_of(name, kind)
        wanted = [field.name for field in schema if is_plain(field.type)]
        wanted += [path_leaf] if path_leaf else []
        table = file.read(columns=wanted, use_threads=False)
        try:
            places = without_bytes(len(table)) if leaf is None else find_places(path, file, leaf)
        except UnknownFormError as error:
            raise UnknownFormError(f"{path}: {leaf} is not read in place: {error}") from error
    n_rows = len(places.file)
    if len(table) != n_rows:
        raise SourceError(f"{path} is damaged: it has {len(table)} rows, but audio for {n_rows}")
    read = {column: table[column] for column in table.column_names}
    columns = {f.name: read.get(f.name, pa.nulls(n_rows, f.type)) for f in schema}
    paths = read.get(name, pa.nulls(n_rows, kind))
    columns[name] = stand_in(kind, paths, places.has_bytes, _folder(config, path, root))
    stub = pa.table(columns, metadata=schema.metadata)
    if typed is not None:
        return FileRows(*typed(stub), places)
    return FileRows(stub.replace_schema_metadata(None), class_names_of(schema), places)


def class_names_of(schema: pa.Schema) -> dict[str, tuple[str, ...]]:
    """Return the names of each ClassLabel column, which `datasets` writes into the schema."""
    try:
        content = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
        features = content["info"]["features"]
        labels = {
            name: feature["names"]
            for name, feature in features.items()
            if isinstance(feature, dict) and feature.get("_type") == "ClassLabel"
        }
    except (ValueError, LookupError, TypeError, AttributeError):  # written by something else
        return {}
    return {
        name: tuple(map(str, names)) for name, names in labels.items() if isinstance(names, list)
    }


@contextmanager
def opened_for_arrow(path: File) -> Iterator[Any]:
    """Yield what Arrow reads a file from."""
    if isinstance(path, Path):
        yield path
        return
    with path.open() as content:
        yield content


def _check_columns(path: File, schema: pa.Schema, audio_column: str) -> None:
    """Check that column names are unique, and that there is one with audio."""
    repeated = {name for name in schema.names if schema.names.count(name) > 1}
    if repeated:
        raise SourceError(f"{path} has several columns {min(repeated)}; rename all but one")
    audio = [
        f.name for f in schema if pa.types.is_struct(f.type) and "bytes" in children_of(f.type)
    ]
    hint = f"its audio is in {', '.join(audio)}" if audio else ""
    require_column(audio_column, schema.names, "dataset.audio_column", hint)


def _folder(config: DatasetConfig, path: File, root: Path | RemoteFolder | None) -> str:
    """Return the folder of a file below `root`, unless paths start from `dataset.root`."""
    if root is None or config.root or path.parent == root:
        return ""
    return str(path.parent)[len(str(root)) :].strip("/")


def _check_alike(by_file: dict[File, FileRows]) -> None:
    """Check that all files have the same columns, with the same types and class names."""
    first, *others = by_file
    fields = by_file[first].table.schema
    for other in others:
        found = by_file[other].table.schema
        differing = {
            name for name in {*fields.names, *found.names} if _differs(name, fields, found)
        }
        names, other_names = by_file[first].class_names, by_file[other].class_names
        differing |= {n for n in names.keys() | other_names if names.get(n) != other_names.get(n)}
        if differing:
            raise SourceError(
                f"{other} and {first} differ in column {min(differing)} (its type, its class "
                "names, or only one has it); extract each into a store of its own"
            )


def _differs(name: str, one: pa.Schema, other: pa.Schema) -> bool:
    if (name in one.names) != (name in other.names):
        return True
    kinds = one.field(name).type, other.field(name).type
    return kinds[0] != kinds[1] and pa.null() not in kinds  # all values of a file may be null


def _notes(by_file: dict[File, FileRows]) -> tuple[str, ...]:
    n_packed = sum(bool(rows.places.chunks) for rows in by_file.values())
    if not n_packed:
        return ()
    return (
        f"the audio of {n_packed:,} of {len(by_file):,} Parquet files is compressed: it is read "
        "page by page, with its bytes in memory. Written again with compression=None and "
        "use_dictionary=False, it is read in place, which is faster",
    )
