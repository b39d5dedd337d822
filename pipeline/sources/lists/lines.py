"""Lines of text files and of JSON lists, with their numbers for error messages."""

from __future__ import annotations

import contextlib
import gzip
import json
import re
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import SourceError
from pipeline.files import require_regular
from pipeline.sources.columns import Rows, is_text
from pipeline.sources.remote.tables import original
from pipeline.sources.remote.uri import check_uri, is_remote
from pipeline.sources.table_cache import table_state

_NO_FILE = r"^\s*(\||pipe:)|\|\s*$|://|\.ark:"
"""What `check_path` may refuse."""
_NO_SPACE = re.compile(r"\S")


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the lines of a UTF-8 text file that are not blank, without their ends, from line 1.

    A byte order mark is skipped; a name that ends with .gz is decompressed.

    Raises:
        SourceError: The file is missing, not a regular file, not UTF-8, or damaged.
    """
    require_regular(path)
    number = 0
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
            for number, raw in enumerate(file, start=1):
                line = raw.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
                if line and not line.isspace():
                    yield number, line
    except UnicodeDecodeError as error:
        raise SourceError(
            f"{place(path, number)} is not UTF-8: {error.reason}; save it as UTF-8"
        ) from error
    except (OSError, EOFError, zlib.error) as error:
        raise SourceError(f"{path} cannot be read after line {number}: {error}") from error


def read_objects(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the JSON object of each line, with the number of the line.

    Raises:
        SourceError: As for `read_lines`, or a line is no JSON object.
    """
    for number, line in read_lines(path):
        try:
            found = json.loads(line)
        except json.JSONDecodeError as error:
            raise SourceError(
                f"{place(path, number)} is not JSON: {error.msg} (column {error.colno})"
            ) from error
        except (ValueError, RecursionError) as error:
            raise SourceError(f"{place(path, number)} is not JSON: {error}") from error
        if not isinstance(found, dict):
            raise SourceError(f"{place(path, number)} is not a JSON object, but {line:.40}")
        yield number, found


def read_values(path: Path, names: Sequence[str], is_lines: bool) -> dict[str, pa.Array]:
    """Read columns of a list of JSON objects again, with texts as they are written.

    Args:
        path: The list.
        names: Names of columns.
        is_lines: Whether each line seems to be an object; then the text is not held as a whole.

    Returns:
        The columns; values of several plain types become text. Columns with objects, or with other
        lists than of one type, are left out.

    Raises:
        SourceError: The file is not JSON.
    """
    try:
        objects = (found for _, found in read_objects(path)) if is_lines else _objects_in(path)
        values = _columns(objects, names)
    except SourceError:
        if not is_lines:
            raise
        values = _columns(_objects_in(path), names)  # objects over several lines
    arrays = {}
    for name, column in values.items():
        if not any(isinstance(value, dict | list) for value in column):
            arrays[name] = _array(column)
        elif all(value is None or isinstance(value, list) for value in column):
            with contextlib.suppress(pa.ArrowException):
                arrays[name] = pa.array(column)
    return arrays


def _columns(objects: Iterable[dict[str, Any]], names: Sequence[str]) -> dict[str, list[Any]]:
    values: dict[str, list[Any]] = {name: [] for name in names}
    for found in objects:
        for name, column in values.items():
            column.append(found.get(name))
    return values


def _objects_in(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the JSON objects of a file, in an array or one after the other.

    Raises:
        SourceError: The file is not JSON.
    """
    text = path.read_text(encoding="utf-8-sig")
    decoder, at = json.JSONDecoder(), 0
    try:
        while start := _NO_SPACE.search(text, at):
            found, at = decoder.raw_decode(text, start.start())
            yield from found if isinstance(found, list) else [found]
    except (ValueError, RecursionError) as error:
        raise SourceError(f"{path} is not JSON: {error}") from error


def from_files(rows: Rows, paths: Sequence[Path]) -> Rows:
    """Return rows with the state and the names of the files that they were read from."""
    state = " ".join(table_state(path) for path in paths)
    return replace(rows, state=state, tables=tuple(original(str(path)) for path in paths))


def place(path: Path, number: int) -> str:
    """Name a line, for messages."""
    return f"{path}, line {number}"


def check_path(path: str, where: str) -> str:
    """Return the path of an audio file; refuse what is a program or part of an archive.

    Args:
        path: As it is in the list.
        where: Place of the entry, for the message.

    Raises:
        SourceError: It is a pipe, an archive of Kaldi, a URL of the web, or empty.
    """
    text = path.strip()
    reason = None
    if text.startswith(("|", "pipe:")) or text.endswith("|"):
        reason = "is a program, which is never run: write its output to files, and list these"
    elif ".ark:" in text and text.rpartition(":")[2].isdecimal():
        reason = "is a place in an archive of Kaldi, which is not read: copy the audio to files"
    elif is_remote(text):
        check_uri(text)
    elif "://" in text and not text.lower().startswith("file://"):
        reason = (
            "is a URL, which is not fetched: download the file, and list its path; or list it in a "
            "bucket, as s3://, gs:// or az://"
        )
    elif not text:
        reason = "is empty"
    if reason is not None:
        raise SourceError(f"{where}: the audio {text!r:.80} {reason}")
    return text


def check_files(rows: Rows) -> None:
    """Refuse rows whose audio is no file, as `check_path` does.

    Raises:
        SourceError: A row of a column of paths names a program, an archive of Kaldi or a URL; the
            message names its place.
    """
    column = rows.table.column(rows.audio_column)
    if not is_text(column.type):
        return
    suspects = pc.fill_null(pc.match_substring_regex(column, _NO_FILE), False)
    for row in pc.indices_nonzero(suspects).to_pylist():
        check_path(column[row].as_py(), rows.where(row))


class Columns:
    """Collects rows of named values; columns that are missing from a row are null.

    Values of a column that are not of one type become text, and so do booleans among numbers.
    """

    def __init__(self) -> None:
        self._values: dict[str, list[Any]] = {}
        self._n_rows = 0

    def __len__(self) -> int:
        return self._n_rows

    def add(self, row: dict[str, Any]) -> None:
        """Add a row. Nested values are kept as they are."""
        for name, value in row.items():
            column = self._values.get(name)
            if column is None:
                column = self._values[name] = []
            if len(column) < self._n_rows:
                column += [None] * (self._n_rows - len(column))
            column.append(value)
        self._n_rows += 1

    def table(self) -> pa.Table:
        """Return the rows as a table, columns in the order of their first values."""
        arrays = {}
        for name, values in self._values.items():
            values += [None] * (self._n_rows - len(values))
            arrays[name] = _array(values)
        return pa.table(arrays)


def _array(values: list[Any]) -> pa.Array:
    try:
        return pa.array(values)
    except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError):
        texts = (v if isinstance(v, str) or v is None else json.dumps(v) for v in values)
        return pa.array(list(texts), pa.string())
