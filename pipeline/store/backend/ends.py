"""What is known of an object before it is read: how it should end, and how a copy is checked."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

CheckCopy = Callable[[str, memoryview], bool]
"""Compares the content of an object, given its key, with what was committed. Returns whether that
could be done; raises a DamagedError if it is something else."""


class End(NamedTuple):
    """Size of an object, and the bytes at its end.

    Attributes:
        size: Bytes of the whole object.
        tail: The last ones.
    """

    size: int
    tail: bytes = b""


class OtherEndError(OSError):
    """An object has not the end that was expected when it was opened."""
