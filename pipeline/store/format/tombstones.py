"""Tombstones: what a store keeps of a dropped utterance, so that it is not extracted again.

In the plan and the index the id of a dropped utterance is replaced by a name with its hash. So the
id, which may be a path with the name of a speaker, is not in the store any more, and a row of the
dataset with that id is still recognised.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

_PREFIX = "dropped-"
_PATTERN = f"^{_PREFIX}[0-9a-f]{{64}}$"


def tombstone_of(name: str) -> str:
    """Return the name that replaces an id; that of a tombstone is the name itself."""
    if is_tombstone(name):
        return name
    return _PREFIX + hashlib.sha256(name.encode()).hexdigest()


def are_tombstones(ids: pa.Array | pa.ChunkedArray) -> npt.NDArray[np.bool_]:
    """Return which ids are those of dropped utterances: bool [n]."""
    found: npt.NDArray[np.bool_] = np.zeros(len(ids), bool)
    if len(ids) and pc.any(pc.starts_with(ids, pattern=_PREFIX)).as_py():
        found = pc.match_substring_regex(ids, _PATTERN).to_numpy(zero_copy_only=False)
    return np.asarray(found, bool)


def with_tombstones(ids: pa.Array, known: pa.Array | pa.ChunkedArray) -> pa.Array:
    """Return ids of a dataset, with tombstones for those whose utterance was dropped.

    An id under which the store has another utterance, too, stays: it was extracted again.

    Args:
        ids: Ids of the dataset.
        known: Ids of the plan, tombstones among them.
    """
    is_dropped = are_tombstones(known)
    if not is_dropped.any():
        return ids
    dropped = set(known.filter(pa.array(is_dropped)).to_pylist())
    names = ids.to_pylist()
    places = {i: name for i, name in _hashed(names) if name in dropped}
    if not places:
        return ids
    at = pa.array(sorted(places), pa.int64())
    is_there = pc.is_in(ids.take(at), value_set=_as_array(known)).to_pylist()
    for i, is_other in zip(at.to_pylist(), is_there, strict=True):
        names[i] = names[i] if is_other else places[i]
    return pa.array(names, ids.type)


def _hashed(names: Iterable[str]) -> Iterable[tuple[int, str]]:
    return ((i, tombstone_of(name)) for i, name in enumerate(names))


def is_tombstone(name: str) -> bool:
    """Return whether an id is that of a dropped utterance."""
    digits = name.removeprefix(_PREFIX)
    return digits != name and len(digits) == 64 and set(digits) <= set("0123456789abcdef")


def _as_array(column: pa.Array | pa.ChunkedArray) -> pa.Array:
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
