"""Standard streams that may be closed, full, or a pipe whose reader has gone."""

from __future__ import annotations

import io
import os
import sys
from contextlib import suppress
from typing import IO, Any, cast


class Stderr:
    """The stderr of the moment. Text that cannot be written is dropped and does not end a run."""

    def write(self, text: str) -> int:
        stream = _unwrapped(sys.stderr)
        if stream is not None:
            try:
                stream.write(text)
                stream.flush()
            except (OSError, ValueError):
                discard(stream)
        return len(text)

    def flush(self) -> None:
        """Do nothing: every write is flushed."""

    def isatty(self) -> bool:
        return is_terminal(_unwrapped(sys.stderr))

    def fileno(self) -> int:
        stream = _unwrapped(sys.stderr)
        if stream is None:
            raise io.UnsupportedOperation("stderr is closed")
        return stream.fileno()

    @property
    def encoding(self) -> str:
        return getattr(_unwrapped(sys.stderr), "encoding", None) or "utf-8"


def write_all(text: str, stream: IO[str] | None) -> None:
    """Write and flush a text; characters that the stream cannot encode are escaped.

    Raises:
        OSError, ValueError: The stream is closed or full, or the reader of the pipe has gone.
    """
    if stream is None:
        raise OSError("it is closed")
    encoding = getattr(stream, "encoding", None) or "utf-8"
    try:
        stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
        stream.flush()
    except (OSError, ValueError):
        discard(stream)
        raise


def discard(stream: IO[str] | None) -> None:
    """Let a stream write to the null device from now on, with what is still in its buffer.

    The interpreter flushes the streams at its end, and would fail there once more.
    """
    with suppress(OSError, ValueError, AttributeError):
        null = os.open(os.devnull, os.O_WRONLY)
        try:
            os.dup2(null, cast("IO[str]", stream).fileno())
        finally:
            os.close(null)


def open_standard_streams() -> None:
    """Open the null device in place of a closed stdin, stdout or stderr.

    Otherwise the next file that is opened gets its number, and what is printed damages that file.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free number, which is this one


def is_terminal(stream: IO[str] | None) -> bool:
    """Whether a stream is an open terminal."""
    try:
        return stream is not None and stream.isatty()
    except ValueError:  # closed
        return False


def _unwrapped(stream: Any) -> IO[str] | None:
    """Return the stream behind the one that a progress display of rich puts in its place."""
    return cast("IO[str] | None", getattr(stream, "rich_proxied_file", stream))
