"""Copies of rows to shuffled places, past the CPU's cache where the library is compiled."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from pipeline.native import load_library
from pipeline.store.native.mapped import MappedFile

LIBRARY = Path(__file__).with_name("librows.native")
INTERFACE = 1
"""Number of the interface that is used here, as in rows.c."""

IntArray = npt.NDArray[np.int64]


class RowPlaces(NamedTuple):
    """Where some rows go: row number `sources[i]` to `out[places[i]]`.

    Attributes:
        sources: Numbers of rows, from 0, ascending, int64 [n].
        places: Different indices of `out`, int64 [n].
        out: [n_places, n_columns, dim], contiguous.
    """

    sources: IntArray
    places: IntArray
    out: npt.NDArray[Any]

    def check(self, n_rows: int) -> None:
        """Check the numbers and the array.

        Raises:
            ValueError: A number is out of range, or an array has another type or form.
        """
        sources, places, out = self
        if (
            out.ndim != 3
            or not out.flags.c_contiguous
            or any(x.dtype != np.int64 or x.shape != (len(sources),) for x in (sources, places))
        ):
            raise ValueError(
                f"cannot place rows {sources.dtype} {sources.shape} at {places.dtype} "
                f"{places.shape} of an array {out.shape}"
            )
        if not len(sources):
            return
        if not (sources[0] >= 0 and sources[-1] < n_rows):
            raise ValueError(f"rows {sources[0]} to {sources[-1]} of {n_rows}")
        if not (places.min() >= 0 and places.max() < len(out)):
            raise ValueError(f"places {places.min()} to {places.max()} of {len(out)}")
        if (np.diff(sources) <= 0).any():
            raise ValueError("the numbers of the rows are not ascending")


class RowScatter:
    """Places for rows in arrays that may be much larger than the CPU's cache.

    Numbers are checked once, so that a copy takes little time beside the copying.
    """

    def __init__(self, n_rows: int, targets: Sequence[RowPlaces]) -> None:
        """Check the places.

        Args:
            n_rows: Number of rows; those that no target names are left out.
            targets: Where they go. All arrays have rows of one type and length, and as many
                columns; a row goes to one of them.

        Raises:
            ValueError: A number is out of range, or an array has another type or form.
        """
        for target in targets:
            target.check(n_rows)
        kinds = {(target.out.dtype, target.out.shape[1:]) for target in targets}
        if len(kinds) > 1:
            raise ValueError(f"rows cannot go to arrays of different kinds: {kinds}")
        self._targets, self._n_rows = tuple(targets), n_rows
        self._addresses = np.zeros(n_rows, np.uintp)  # 0: the row is left out
        self._dtype, (self._n_columns, dim) = kinds.pop() if kinds else (np.dtype("V1"), (0, 0))
        self._shape, self._row_bytes = (dim,), dim * self._dtype.itemsize
        self._alignment = self._row_bytes
        for sources, places, out in targets:
            start, step = out.ctypes.data, self._n_columns * self._row_bytes
            self._addresses[sources] = start + places.astype(np.uintp) * step
            self._alignment |= start
        self._pointer = self._addresses.ctypes.data

    def copy(self, rows: npt.NDArray[Any], first: int, column: int = 0) -> None:
        """Copy those of consecutive rows that have a place. Other threads run meanwhile.

        Args:
            rows: Rows of the type of the targets, contiguous, [n_rows, dim].
            first: Number of the first one.
            column: Where to put them.

        Raises:
            ValueError: The rows have another type or form, or there are no such rows.
        """
        self._check(first, len(rows), column)
        if (
            rows.dtype != self._dtype
            or rows.shape[1:] != self._shape
            or not rows.flags.c_contiguous
        ):
            raise ValueError(
                f"cannot copy rows {rows.dtype} {rows.shape} to rows of {self._dtype} {self._shape}"
            )
        function = _load()
        if function is not None:
            function(rows.ctypes.data, *self._arguments(first, len(rows), column))
            return
        for sources, places, out in self._targets:
            low, high = sources.searchsorted((first, first + len(rows))).tolist()
            out[places[low:high], column] = rows[sources[low:high] - first]

    def copy_mapped(
        self, mapped: MappedFile, offset: int, n_rows: int, first: int, column: int = 0
    ) -> bool:
        """Copy those of consecutive rows of a file that have a place, as `copy` does.

        Args:
            mapped: The file; its rows have the type and length of those of the targets.
            offset: Where the first row begins, in bytes.
            n_rows: Number of consecutive rows.
            first: Number of the first one.
            column: Where to put them.

        Returns:
            Whether that was done; if not, the places have any content.

        Raises:
            ValueError: There are no such rows.
        """
        self._check(first, n_rows, column)
        return mapped.place_rows(offset, *self._arguments(first, n_rows, column))

    def _check(self, first: int, n_rows: int, column: int) -> None:
        if not (0 <= column < self._n_columns and 0 <= first <= first + n_rows <= self._n_rows):
            raise ValueError(
                f"no rows {first} to {first + n_rows} of {self._n_rows}, or no column {column} of "
                f"{self._n_columns}"
            )

    def _arguments(self, first: int, n_rows: int, column: int) -> tuple[int, ...]:
        """Return what `strata_place_rows` takes after the rows."""
        size = self._row_bytes
        addresses = self._pointer + first * self._addresses.itemsize
        return addresses, n_rows, size, column * size, self._alignment


def is_compiled() -> bool:
    """Return whether there is a library; without one NumPy copies, through the CPU's cache."""
    return _load() is not None


@cache
def _load() -> ctypes._FuncPointer | None:
    """Return the function."""
    library = load_library(LIBRARY, "strata_rows", INTERFACE)
    if library is None:
        return None
    function = library.strata_place_rows
    pointer, size = ctypes.c_void_p, ctypes.c_size_t
    function.argtypes = [pointer, pointer, size, size, size, size]
    function.restype = None
    return function
