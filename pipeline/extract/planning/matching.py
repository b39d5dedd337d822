"""Matching of the rows of a dataset with the utterances of a plan.

An utterance has a number, the `row` of the plan. Rows of the dataset are matched by id and content,
so they may move. Other audio under a known id is a new utterance, with a new number.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import SourceError
from pipeline.extract.planning.replanning import CONTENT, Unstored
from pipeline.sources.base import Source
from pipeline.store.format.plan import Plan
from pipeline.store.format.tombstones import are_tombstones
from pipeline.store.labels import IntArray, Labels, places_of_ids


@dataclass(frozen=True)
class Match:
    """The numbers of the rows of a dataset.

    Attributes:
        numbers: Number of each row: int64 [n_rows]; new ones follow those of the plan.
        n_planned: Number of utterances that the plan had.
        replaced: Rows whose audio is not the planned one: int64.
        refreshed: Rows among them that keep their number, because nothing of them is extracted.
    """

    numbers: IntArray
    n_planned: int
    replaced: IntArray
    refreshed: IntArray

    @cached_property
    def new(self) -> IntArray:
        """Rows with a new number, ascending."""
        return np.flatnonzero(self.numbers >= self.n_planned)

    @cached_property
    def rows(self) -> IntArray:
        """Row of each number: int64 [n_numbers]; -1 for an utterance that the dataset lacks."""
        return rows_of(self.numbers, self.n_planned)


def rows_of(numbers: IntArray, n_numbers: int) -> IntArray:
    """Return the row of each number, -1 if it has none: int64, at least `n_numbers` long."""
    size = max(n_numbers, int(numbers.max(initial=-1)) + 1)
    rows = np.full(size, -1, np.int64)
    rows[numbers] = np.arange(len(numbers))
    return rows


def current_numbers(stored: Plan, labels: Labels | None, ids: pa.StringArray) -> IntArray | None:
    """Return the numbers of the rows of a dataset that has not changed since it was planned.

    Args:
        stored: The plan, made or extended for this state of the dataset.
        labels: The newest labels of the store.
        ids: Ids of the dataset; those of dropped utterances are tombstones.

    Returns:
        int64 [n_rows]; None if the ids are not those of the plan or the labels.
    """
    planned = stored.first_records
    if labels is None:
        same = len(planned) == len(ids) and _chunk(planned["id"], len(ids)).equals(ids)
        return np.arange(len(ids)) if same else None
    is_shown = ~are_tombstones(ids)
    n_shown = int(is_shown.sum())
    shown = ids.filter(pa.array(is_shown))
    if len(labels.table) < n_shown or not _chunk(labels.table["id"], n_shown).equals(shown):
        return None
    numbers = np.empty(len(ids), np.int64)
    numbers[is_shown] = labels.numbers[:n_shown]
    dropped = _tombstones(planned)
    numbers[~is_shown] = _numbers_of(ids.filter(pa.array(~is_shown)), planned, dropped)
    return numbers


def match_rows(
    stored: Plan, rows: pa.Table, source: Source, unstored: Unstored, labels: Labels | None
) -> Match:
    """Match the rows of a dataset with the utterances of a plan.

    A row is an utterance of the plan if the id and `CONTENT` are equal. Among several with one id
    that of the newest labels is preferred. An utterance that could not be read when it was planned
    stays that one. So does one whose audio has changed before any of it was extracted, if it fits
    into its unit: it is refreshed. A dropped utterance is known by its id alone.

    Args:
        stored: The plan.
        rows: Result of `scan`, one row per utterance; ids of dropped utterances are tombstones.
        source: The dataset, which messages name.
        unstored: Utterances that readers do not show.
        labels: The newest labels of the store.

    Raises:
        SourceError: The audio of an extracted utterance cannot be read any more.
    """
    known = stored.first_records
    n_known = len(known)
    current = np.arange(n_known) if labels is None else labels.numbers[labels.numbers < n_known]
    current = np.concatenate([current, np.setdiff1d(_tombstones(known), current)])
    number = _numbers_of(rows["id"].combine_chunks(), known, current)
    differs = _differs(known, rows, number)
    is_complete = _mask(unstored.complete, n_known)
    others = np.flatnonzero(is_complete & ~_mask(current, n_known))
    if len(others):
        is_stored = (number >= 0) & is_complete[number]
        _use_earlier(number, differs, known, rows, others, ~is_stored | differs)
    is_known = number >= 0
    hidden, pending = (
        is_known & _mask(part, n_known)[number] for part in (unstored.hidden, unstored.pending)
    )
    is_readable = rows["n_bytes"].to_numpy() != 0
    lost = np.flatnonzero(differs & ~hidden & ~is_readable)
    if len(lost):
        name = rows["id"][int(lost[0])].as_py()
        raise SourceError(
            f"{len(lost)} extracted utterances of {source.origin} cannot be read any more, first "
            f"{name!r}. Restore the files to continue, remove their rows from the dataset, or "
            "choose another store="
        )
    fits = rows["n_frames"].to_numpy() <= stored.frames_per_unit
    refreshed = differs & pending & fits
    is_new = ~is_known | (differs & ~refreshed & (pending | ~hidden))
    numbers = np.where(is_new, n_known - 1 + np.cumsum(is_new), number)
    replaced = np.flatnonzero(refreshed | (differs & is_new))
    return Match(numbers, n_known, replaced, np.flatnonzero(refreshed))


def _tombstones(known: pa.Table) -> IntArray:
    """Return the numbers of the dropped utterances; of those with the same id, the last one.

    Args:
        known: First record of each utterance, by number.
    """
    places = np.flatnonzero(are_tombstones(known["id"]))
    names = known["id"].take(pa.array(places)).to_pylist()
    last = dict(zip(names, places.tolist(), strict=True))
    return np.array(sorted(last.values()), np.int64)


def _numbers_of(ids: pa.StringArray, known: pa.Table, numbers: IntArray) -> IntArray:
    """Return which of `numbers`, whose ids are unique, has each id: int64 [n]; -1 if none."""
    names = known["id"].combine_chunks().take(pa.array(numbers))
    matched: IntArray = np.append(numbers, -1)[places_of_ids(ids, names)]
    return matched


def _differs(known: pa.Table, rows: pa.Table, number: IntArray) -> npt.NDArray[np.bool_]:
    """Return for each row whether its audio is not that of the planned utterance `number`."""
    differs = np.zeros(len(rows), bool)
    for name in CONTENT:
        differs |= known[name].to_numpy()[number] != rows[name].to_numpy()
    was_readable: npt.NDArray[np.bool_] = known["n_bytes"].to_numpy()[number] != 0
    return differs & (number >= 0) & was_readable


def _use_earlier(
    number: IntArray,
    differs: npt.NDArray[np.bool_],
    known: pa.Table,
    rows: pa.Table,
    others: IntArray,
    wanted: npt.NDArray[np.bool_],
) -> None:
    """Match rows with complete utterances that were removed or superseded, and are back.

    Args:
        number: Number of each row, which is changed here.
        differs: Whether its audio is another one, which is changed here.
        known: First record of each utterance, by number.
        rows: Result of `scan`.
        others: Numbers of the complete utterances.
        wanted: Rows that have no stored utterance yet.
    """
    with_id = pc.is_in(rows["id"], value_set=known["id"].combine_chunks().take(pa.array(others)))
    wanted = wanted & with_id.to_numpy(zero_copy_only=False)
    columns = ["id", *CONTENT]
    values = [known[name].to_numpy(zero_copy_only=False)[others].tolist() for name in columns]
    content = zip(*values, strict=True)
    earlier = dict(zip(content, others.tolist(), strict=True))
    for row in np.flatnonzero(wanted).tolist():
        found = earlier.get(tuple(rows[name][row].as_py() for name in columns))
        if found is not None:
            number[row], differs[row] = found, False


def _mask(numbers: Sequence[int] | IntArray, n: int) -> npt.NDArray[np.bool_]:
    mask = np.zeros(n, bool)
    mask[np.asarray(numbers, np.int64)] = True
    return mask


def _chunk(column: pa.ChunkedArray, n: int) -> pa.Array:
    """Return the first `n` values as one array."""
    return column.slice(0, n).combine_chunks()
