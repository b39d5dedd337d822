"""Splits of a dataset: which are read, and the column that keeps the split of each row."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

ALL = "all"
COLUMN = "split"
"""Column with the split of each row, unless the dataset has a column of this name."""
NAMES = frozenset(
    ("train", "training", "validation", "valid", "val", "dev", "test", "testing", "eval")
)
"""Usual names of splits."""


def chosen(setting: str, names: Sequence[str]) -> list[str] | None:
    """Return the splits that `dataset.split` names.

    Args:
        setting: A name; several, as in `train+test`; or `all`, unless a split has that name.
        names: Splits that exist.

    Returns:
        Their names, in the order of `setting`; None if one does not exist.
    """
    if setting in names:
        return [setting]
    wanted = list(names) if setting == ALL else setting.split("+")
    return wanted if wanted and set(wanted) <= set(names) else None


def is_several(setting: str | None) -> bool:
    """Return whether `dataset.split` names several splits, none of them a slice of one."""
    return setting == ALL or (setting is not None and "+" in setting and "[" not in setting)


def with_split(table: pa.Table, splits: pa.Array) -> pa.Table:
    """Append the column `split`, unless the table has one.

    Args:
        table: The rows.
        splits: The split of each row: text `[n_rows]`.
    """
    return table if COLUMN in table.column_names else table.append_column(COLUMN, splits)
