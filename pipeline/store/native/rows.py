"""Copies of rows to shuffled places, past the CPU's cache where the library is compiled."""

from __future__ import annotations

import ctypes
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.store.native.mapped import MappedFile

LIBRARY = Path(__file__).with_name("librows.native")

IntArray = npt.NDArray[np.int64]


class RowScatter:
    """Places for rows in an array that may be much larger than the CPU's cache.

    Row number `sources[i]` goes to `out[places[i]]`. Numbers are checked once, so that `copy` takes
    little time beside the copying.
    """

    def __init__(self, sources: IntArray, places: IntArray, out: npt.NDArray[Any]) -> None:
        """Check the places.

        Args:
            sources: Numbers of rows, from 0, ascending, [n].
            places: Different indices of `out`, [n].
            out: [n_places, n_columns, dim], contiguous.

        Raises:
            ValueError: A number is out of range, or an array has another type or form.
        """
        arrays = (sources, places)
        if (
            out.ndim != 3
            or not out.flags.c_contiguous
            or any(x.dtype != np.int64 or x.shape != (len(sources),) for x in arrays)
        ):
            raise ValueError(
                f"cannot place rows {sources.dtype} {sources.shape} at {places.dtype} "
                f"{places.shape} of an array {out.shape}"
            )
        if len(sources) and not (sources[0] >= 0 <= places.min() and places.max() < len(out)):
            raise ValueError(
                f"rows from {sources[0]} go to places {places.min()} to {places.max()} of "
                f"{len(out)}"
            )
        if (np.diff(sources) <= 0).any():
            raise ValueError("the numbers of the rows are not ascending")
        self._sources, self._places = map(np.ascontiguousarray, arrays)
        self._out = out
        self._row_bytes = out.shape[2] * out.itemsize
        self._pointers = (self._sources.ctypes.data, self._places.ctypes.data, out.ctypes.data)

    def copy(self, rows: npt.NDArray[Any], first: int, column: int = 0) -> None:
        """Copy those of consecutive rows that have a place. Other threads run meanwhile.

        Args:
            rows: Rows of the type of `out`, contiguous, [n_rows, dim].
            first: Number of the first one.
            column: Where to put them in `out`.

        Raises:
            ValueError: The rows have another type or form.
        """
        out = self._out
        if (
            rows.dtype != out.dtype
            or rows.shape[1:] != out.shape[2:]
            or not rows.flags.c_contiguous
            or not 0 <= column < out.shape[1]
        ):
            raise ValueError(
                f"cannot copy rows {rows.dtype} {rows.shape} to column {column} of {out.dtype} "
                f"{out.shape}"
            )
        low, high = self._sources.searchsorted((first, first + len(rows))).tolist()
        if low == high:
            return
        function = _load()
        if function is None:
            out[self._places[low:high], column] = rows[self._sources[low:high] - first]
            return
        sources, places, target = self._pointers
        size = self._row_bytes
        function(
            rows.ctypes.data,
            first,
            sources + 8 * low,
            places + 8 * low,
            high - low,
            size,
            target + column * size,
            out.shape[1] * size,
        )

    def copy_mapped(
        self, mapped: MappedFile, offset: int, n_rows: int, first: int, column: int = 0
    ) -> bool:
        """Copy those of consecutive rows of a file that have a place, as `copy` does.

        Args:
            mapped: The file; its rows have the type and length of those of `out`.
            offset: Where the first row begins, in bytes.
            n_rows: Number of consecutive rows.
            first: Number of the first one.
            column: Where to put them in `out`.

        Returns:
            Whether that was done; if not, the places have any content.
        """
        low, high = self._sources.searchsorted((first, first + n_rows)).tolist()
        sources, places, target = self._pointers
        size, n_columns = self._row_bytes, self._out.shape[1]
        if not 0 <= column < n_columns:
            raise ValueError(f"there is no column {column} in {self._out.shape}")
        return low == high or mapped.scatter_rows(
            offset,
            n_rows * size,
            first,
            sources + 8 * low,
            places + 8 * low,
            high - low,
            size,
            target + column * size,
            n_columns * size,
        )


def is_compiled() -> bool:
    """Return whether there is a library; without one NumPy copies, through the CPU's cache."""
    return _load() is not None


@cache
def _load() -> ctypes._FuncPointer | None:
    """Return the function, which releases the interpreter's lock."""
    try:
        library = ctypes.CDLL(str(LIBRARY))
    except OSError:
        return None
    function = library.strata_scatter_rows
    pointer, size = ctypes.c_void_p, ctypes.c_size_t
    function.argtypes = [pointer, ctypes.c_int64, pointer, pointer, size, size, pointer, size]
    function.restype = None
    return function
