"""What mpg123, the mp3 decoder within libsndfile, prints while a thread uses it.

mpg123 prints to the C stream `stderr` where it finds damage, and libsndfile cannot be told to turn
that off. It leaves out or mutes the damaged frames and reports no error, so these messages are the
only sign of the loss. glibc lets a program replace `stderr` (its manual, "Standard Streams"). While
a file is read the stream is one whose writer gets the messages of each thread; those of threads
that read no file are passed on. On other systems nothing is replaced and nothing is known.
"""

from __future__ import annotations

import ctypes
import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

_UNBUFFERED = 2  # _IONBF
_DAMAGE = re.compile(rb"\] error: |^Note: Skipped \d+ bytes in input", re.M)
_WRITE = ctypes.CFUNCTYPE(ctypes.c_ssize_t, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)
_thread = threading.local()


class _Functions(ctypes.Structure):
    """cookie_io_functions_t of stdio.h."""

    _fields_ = (
        ("read", ctypes.c_void_p),
        ("write", _WRITE),
        ("seek", ctypes.c_void_p),
        ("close", ctypes.c_void_p),
    )


def _write(_cookie: int, start: int, n_bytes: int) -> int:
    """Receive text that C code prints to `stderr`, in the thread that prints it."""
    text = ctypes.string_at(start, n_bytes)
    messages: list[bytes] | None = getattr(_thread, "messages", None)
    if messages is not None:
        messages.append(text)
    else:
        with suppress(OSError):
            os.write(2, text)
    return n_bytes


class _Stream:
    """Puts the replacement in the place of `stderr` while any thread reads a file."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._n_readers = 0
        self._write = _WRITE(_write)  # the stream calls it as long as the process lives
        self._place: ctypes.c_void_p | None = None
        self._original: int | None = None
        self._replacement: int | None = None
        with suppress(AttributeError, ValueError, OSError):  # not glibc
            libc = ctypes.CDLL(None)
            libc.fopencookie.restype = ctypes.c_void_p
            libc.fopencookie.argtypes = (ctypes.c_void_p, ctypes.c_char_p, _Functions)
            libc.setvbuf.argtypes = (
                ctypes.c_void_p,
                ctypes.c_void_p,
                ctypes.c_int,
                ctypes.c_size_t,
            )
            functions = _Functions(None, self._write, None, None)
            self._replacement = libc.fopencookie(None, b"w", functions)
            libc.setvbuf(self._replacement, None, _UNBUFFERED, 0)
            self._place = ctypes.c_void_p.in_dll(libc, "stderr")

    def replace(self) -> None:
        with self._lock:
            if self._place is not None and self._n_readers == 0:
                self._original = self._place.value
                self._place.value = self._replacement
            self._n_readers += 1

    def restore(self) -> None:
        with self._lock:
            self._n_readers -= 1
            if self._place is not None and self._n_readers == 0:
                self._place.value = self._original


_stream = _Stream()


@contextmanager
def captured() -> Iterator[list[bytes]]:
    """Keep what this thread's decoder prints from the terminal; may be nested.

    Yields:
        The list that gets the printed texts, for nested blocks the same one.
    """
    outer: list[bytes] | None = getattr(_thread, "messages", None)
    messages: list[bytes] = [] if outer is None else outer
    _thread.messages = messages
    _stream.replace()
    try:
        yield messages
    finally:
        _stream.restore()
        _thread.messages = outer


def tell_of_damage(messages: list[bytes]) -> bool:
    """Whether messages tell of frames that were left out or muted."""
    return _DAMAGE.search(b"".join(messages)) is not None
