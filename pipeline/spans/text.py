"""Text of files of spans: its encoding, its lines, and the numbers in it."""

from __future__ import annotations

import codecs
import gzip
import io
import math
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TextIO

from pipeline.delimited import delimited_records
from pipeline.errors import ConfigError, SourceError

_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_SAMPLE_BYTES = 256


def read_text(path: Path, encoding: str | None = None) -> str:
    r"""Return a text with `\n` between its lines, however they end in the file.

    Args:
        path: The file; a name that ends with .gz is decompressed.
        encoding: Its encoding; None: UTF-16 if the first bytes show it, else UTF-8.

    Raises:
        SourceError: It cannot be read or decoded.
        ConfigError: There is no such encoding.
    """
    with open_text(path, encoding) as file:
        return file.read()


def read_lines(path: Path, encoding: str | None = None) -> Iterator[tuple[int, str]]:
    """Yield the lines that are not blank, with their numbers from 1; see `read_text`."""
    with open_text(path, encoding) as file:
        for number, line in enumerate(file, start=1):
            if line and not line.isspace():
                yield number, line.rstrip("\n")


def read_records(
    path: Path, delimiter: str, quote: bool, encoding: str | None = None
) -> Iterator[tuple[int, list[str]]]:
    """Yield the records of a text table that are not blank, with the lines they begin on.

    Args:
        path: The table.
        delimiter: Separator of the fields.
        quote: Whether quotation marks quote.
        encoding: As for `read_text`.

    Raises:
        SourceError: It is no table; the message names the line.
    """
    with open_text(path, encoding, newline="") as file:
        yield from delimited_records(file, delimiter, quote, True, lambda n: f"{path}, line {n}")


@contextmanager
def open_text(
    path: Path, encoding: str | None = None, newline: str | None = None
) -> Iterator[TextIO]:
    """Open a text for reading; errors of reading and decoding name the file and the line."""
    try:
        with _open_bytes(path) as file:
            sample = file.read(_SAMPLE_BYTES)
        kind = encoding or encoding_of(sample)
        try:
            codecs.lookup(kind)
        except LookupError as error:
            raise ConfigError(
                f"encoding is {kind!r}; expected one such as latin-1 or cp1252"
            ) from error
        with _open_bytes(path) as file, io.TextIOWrapper(file, kind, newline=newline) as text:
            yield text
    except UnicodeError as error:
        raise SourceError(_undecodable(path, kind, error)) from error
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or error
        raise SourceError(f"{path} cannot be read: {reason}") from error


def encoding_of(start: bytes) -> str:
    """Return the encoding of a text that begins with some bytes: UTF-16 or UTF-8."""
    for mark, name in _MARKS:
        if start.startswith(mark):
            return name
    even, odd = start[::2].count(0), start[1::2].count(0)
    if max(even, odd) > len(start) // 4:  # Latin letters of UTF-16 without a mark
        return "utf-16-le" if odd > even else "utf-16-be"
    return "utf-8"


def number(text: str, what: str, where: str) -> float:
    """Return a time that is written as text.

    Args:
        text: The text.
        what: What it is, for the message.
        where: File and line, for the message.

    Raises:
        SourceError: It is no number, or not a finite one.
    """
    try:
        value = float(text)
    except (TypeError, ValueError):
        value = math.nan
    if not math.isfinite(value):
        comma = "; write a point, not a comma" if "," in text else ""
        raise SourceError(f"{where}: the {what} is {text!r:.40}; expected a number{comma}")
    return value


def _open_bytes(path: Path) -> IO[bytes]:
    return gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb")  # type: ignore[return-value]


def _undecodable(path: Path, encoding: str, error: UnicodeError) -> str:
    """Return the message of a text that cannot be decoded, with its line if that can be found."""
    where = str(path)
    if not encoding.startswith("utf-16"):
        with _open_bytes(path) as file:
            for line, raw in enumerate(file, start=1):
                try:
                    raw.decode(encoding)
                except UnicodeError:
                    where = f"{path}, line {line}"
                    break
    reason = getattr(error, "reason", error)
    return f"{where} is not {encoding}: {reason}; save it as UTF-8, or give encoding=latin-1 or so"
