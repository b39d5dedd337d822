"""Rows of numbers and text, and their CSV form."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Rows:
    """Rows of a CSV file.

    Attributes:
        columns: Names of the columns.
        values: Cells of each row. A number is written in full precision; None and a number that is
            not finite are written as an empty cell.
    """

    columns: tuple[str, ...]
    values: Sequence[Sequence[object]]

    def to_csv(self) -> bytes:
        """Return the CSV file, UTF-8 with a line of column names."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(self.columns)
        writer.writerows([_cell(value) for value in row] for row in self.values)
        return text.getvalue().encode("utf-8", "replace")


def _cell(value: object) -> object:
    is_gap = value is None or (isinstance(value, float) and not math.isfinite(value))
    return "" if is_gap else value
