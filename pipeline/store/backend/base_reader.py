"""The contract of what reads one object."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy.typing as npt

from pipeline.store.backend.ends import End
from pipeline.store.native.mapped import MappedFile


class ObjectReader(Protocol):
    """One object, open for many reads. Safe to use from several threads, and after a fork.

    An implementation must never return less than it was asked for: a read of at least one byte that
    goes beyond the end is an EOFError.

    Attributes:
        mapped: The object as a map, if it is a file that can be mapped. What its methods refuse
            must be read by the others.
    """

    mapped: MappedFile | None = None

    @property
    def size(self) -> int:
        """Bytes of the object; 0 if it is something without content, such as a folder."""

    def has_end(self, end: End) -> bool | None:
        """Return whether the object has a size, and ends in certain bytes.

        Returns:
            None if that is not known yet. Then the first read finds out, and raises an
            OtherEndError if it is not so.
        """
        if self.size != end.size:
            return False
        return self.read(end.size - len(end.tail), len(end.tail)) == end.tail

    def read(self, offset: int, length: int) -> bytes:
        """Read `length` bytes from `offset`.

        Raises:
            EOFError: The object ends before.
            OSError: It cannot be read.
        """

    def read_into(
        self, parts: Sequence[npt.NDArray[Any]], offset: int, streams: bool = False
    ) -> None:
        """Fill arrays, one after the other, with the bytes from `offset`.

        Args:
            parts: Contiguous arrays of any dtype and shape.
            offset: Where the first one begins, in bytes.
            streams: Whether they will leave the CPU's cache before they are used, as a large batch
                does: a copy may then bypass it.

        Raises:
            EOFError: The object ends before they are full.
            OSError: It cannot be read.
        """

    def read_cached(
        self, parts: Sequence[npt.NDArray[Any]], offset: int, streams: bool = False
    ) -> bool:
        """Read as `read_into` does if that takes no waiting; else start fetching the bytes.

        Returns:
            Whether `parts` are filled. If not, their content is undefined, and `read_into` must
            follow; it reports errors, too.
        """

    def prefetch(self, offset: int, length: int) -> None:
        """Start fetching bytes that will be read soon; may do nothing, and never waits."""

    def check_end(self) -> None:
        """Compare the end of the object now, if that was left to the first read.

        Raises:
            OtherEndError: It has another end than was expected.
            OSError: It cannot be read.
        """
        return

    def fetch_into(self, part: npt.NDArray[Any], offset: int) -> None:
        """Fill an array as `read_into` does, by one request, in the calling thread.

        For ranges of some megabytes, after `check_end`: the end of the object is not compared.
        """
        self.read_into([part], offset)
