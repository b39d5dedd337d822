"""Labels that a store gets from a dataset, and how they differ from those that it has.

Columns that the dataset lacks stay as they are: they may come from `strata relabel` with another
table.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import SourceError
from pipeline.sources.base import Source
from pipeline.store.labels import KEYS, IntArray, Labels, places_of, places_of_ids

_BLOCK_ROWS = 1 << 14
Column = Mapping[str, Any]


def merge_labels(
    before: Labels, source: Source, ids: pa.StringArray, numbers: IntArray, rows: IntArray
) -> Labels:
    """Return labels with the columns of a dataset, and with those of a store that it lacks.

    Args:
        before: Labels of the store.
        source: The dataset.
        ids: Id of each utterance of the result, in order.
        numbers: Number of each of them: int64 [n].
        rows: Row of each of them in the dataset: int64 [n]; -1 if the dataset lacks it, whose
            labels stay.

    Raises:
        SourceError: A column has another type than the labels that stay.
    """
    current = {column["name"]: column for column in source.identity["columns"]}
    earlier = {column["name"]: column for column in before.columns}
    columns = [current.get(name, column) for name, column in earlier.items()]
    columns += [column for name, column in current.items() if name not in earlier]
    has_all = bool((rows >= 0).all())
    needs_before = not has_all or not earlier.keys() <= current.keys()
    place = None
    if needs_before:
        place = _optional(places_of_ids(ids, before.table["id"].combine_chunks()))
    read = source.metadata(rows[rows >= 0].tolist())
    taken = _optional(np.where(rows >= 0, np.cumsum(rows >= 0) - 1, -1))
    arrays: list[Any] = [ids, pa.array(numbers, pa.int64())]
    for column in columns:
        name = column["name"]
        new = None
        if name in current:
            new = read[name] if has_all else read[name].take(taken)
        if new is not None and (has_all or name not in earlier):
            arrays.append(new)
            continue
        old = before.table[name].take(place)
        arrays.append(old if new is None else _filled(new, old, rows >= 0, column, earlier[name]))
    fields = [pa.field(c["name"], a.type) for c, a in zip(columns, arrays[2:], strict=True)]
    table = pa.Table.from_arrays(arrays, schema=pa.schema([*KEYS, *fields]))
    return Labels(table, tuple(columns))


def other_columns(before: Sequence[Column], now: Sequence[Column]) -> list[str]:
    """Describe columns that are new, or of another type, or have other class names."""
    old, new = ({column["name"]: column for column in columns} for columns in (before, now))
    found = [f"column {name} is new" for name in new if name not in old]
    for name in old.keys() & new.keys():
        if old[name]["type"] != new[name]["type"]:
            found.append(f"column {name} is {new[name]['type']}, not {old[name]['type']}")
        elif old[name]["class_names"] != new[name]["class_names"]:
            found.append(f"the classes of column {name} are other ones")
    return sorted(found)


def other_values(before: Labels, now: Labels) -> tuple[npt.NDArray[np.bool_], list[str]]:
    """Find the utterances with another value in a column that both labels have.

    Returns:
        A mask over the utterances of `now`, and an example.
    """
    differs = np.zeros(len(now.table), bool)
    examples: list[str] = []
    names = [name for name in before.names if name in now.names]
    order = np.argsort(before.numbers, kind="stable")
    place = places_of(now.numbers, before.numbers[order])
    common = np.flatnonzero(place >= 0)
    for start in range(0, len(common), _BLOCK_ROWS) if names else ():
        rows = common[start : start + _BLOCK_ROWS]
        old = before.table.select(names).take(pa.array(order[place[rows]])).combine_chunks()
        new = now.table.select(names).take(pa.array(rows)).combine_chunks()
        if new.equals(old):
            continue
        for i, name in _different_rows(old, new):
            differs[rows[i]] = True
            if not examples:
                was, value = (repr(part[name][i].as_py()) for part in (old, new))
                utterance = now.table["id"][int(rows[i])].as_py()
                examples = [f"column {name} of {utterance!r} is {value}, not {was}"]
    return differs, examples


def _optional(indices: IntArray) -> pa.Array:
    """Return indices for `take`, with null for -1."""
    return pa.array(indices, mask=indices < 0)


def _filled(
    new: pa.ChunkedArray,
    old: pa.ChunkedArray,
    is_new: npt.NDArray[np.bool_],
    column: Column,
    before: Column,
) -> pa.ChunkedArray:
    """Return the new values, and the old ones of the utterances that the dataset lacks."""
    try:
        if column["class_names"] != before["class_names"]:
            raise pa.ArrowInvalid("other class names")
        kept = pc.if_else(pa.array(is_new), pa.scalar(None, old.type), old.combine_chunks())
        taken = kept.cast(new.type)
        if not taken.cast(old.type).equals(kept):
            raise pa.ArrowInvalid("their values would change")
        return pc.if_else(pa.array(is_new), new.combine_chunks(), taken)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise SourceError(
            f"column {column['name']} is {column['type']} in the dataset and {before['type']} in "
            f"the store, whose labels of {int((~is_new).sum()):,} utterances stay, because the "
            f"dataset lacks them ({error}); give a dataset with all utterances, or rename it"
        ) from error


def _different_rows(stored: pa.Table, current: pa.Table) -> list[tuple[int, str]]:
    """Return the rows that differ, and the first column that does; NaN equals NaN."""
    found: dict[int, str] = {}
    for name in reversed(current.column_names):
        pairs = zip(stored[name].to_pylist(), current[name].to_pylist(), strict=True)
        found |= {i: name for i, (old, new) in enumerate(pairs) if repr(old) != repr(new)}
    return sorted(found.items())
