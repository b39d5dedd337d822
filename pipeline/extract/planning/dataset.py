"""The dataset of a run: its source, its plan, and the number of the utterance of each row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.extract.messages import Place
from pipeline.extract.planning.changes import Changes
from pipeline.extract.planning.matching import rows_of
from pipeline.sources.base import Segment, Source
from pipeline.store.format.plan import Plan
from pipeline.store.format.tombstones import are_tombstones
from pipeline.store.labels import IntArray, Labels


@dataclass(frozen=True)
class PlannedDataset:
    """A source with its plan.

    Attributes:
        source: The source.
        plan: The plan, which may have utterances that the source lacks.
        numbers: Number of the utterance of each row of the source: int64 [n_rows].
        has_labels: Whether labels are kept apart from the commits.
        is_changed: Whether the plan is not the one that the store has.
        new_labels: Labels that the store needs and has not yet.
        changes: How it differs from what the store has; None if nothing is extracted.
        abandoned: Generations of labels with utterances that no plan has.
    """

    source: Source
    plan: Plan
    numbers: IntArray
    has_labels: bool = False
    is_changed: bool = False
    new_labels: Labels | None = None
    changes: Changes | None = None
    abandoned: Sequence[int] = ()

    @cached_property
    def _rows(self) -> IntArray:
        numbers = self.plan.table["row"].to_numpy()
        rows = rows_of(self.numbers, int(numbers.max(initial=-1)) + 1)
        rows[numbers[are_tombstones(self.plan.table["id"])]] = -1  # dropped from the store
        return rows

    @property
    def shown(self) -> Plan:
        """The part of the plan whose utterances the source has, to count them."""
        is_shown = self._rows[self.plan.table["row"].to_numpy()] >= 0
        if is_shown.all():
            return self.plan
        return self.plan.restricted_to(self.plan.table.filter(pa.array(is_shown)))

    def unreadable(self) -> list[Segment]:
        """Return the audio that could not be read when it was planned."""
        planned = self.plan.table
        numbers = pc.unique(planned.filter(pc.equal(planned["n_samples"], 0))["row"]).to_pylist()
        found = (self.segment(number) for number in numbers)
        return [segment for segment in found if segment is not None]

    def segment(self, number: int) -> Segment | None:
        """Return the audio of an utterance; None if the source lacks it."""
        row = int(self._rows[number])
        return self.source.segment(row) if row >= 0 else None

    def places(self, numbers: Sequence[int]) -> list[Place]:
        """Return where workers find the audio of utterances."""
        if self.source.is_shared:
            return [self.segment(number) for number in numbers]
        rows = self._rows[list(numbers)].tolist()
        return [row if row >= 0 else None for row in rows]

    def metadata(self, numbers: Sequence[int]) -> pa.Table:
        """Return the columns to commit with utterances; none if labels are kept apart.

        Dropped utterances have no values.
        """
        if self.has_labels:
            return pa.table({})
        rows = self._rows[list(numbers)]
        is_there = rows >= 0
        found = self.source.metadata(rows[is_there].tolist())
        if is_there.all():
            return found
        places = pa.array(np.cumsum(is_there) - 1, pa.int64(), mask=~is_there)
        return found.combine_chunks().take(places)
