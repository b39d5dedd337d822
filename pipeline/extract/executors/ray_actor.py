"""State of a Ray actor in the driver's process: its node, its units and their start time."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

from pipeline.extract.executors.base import can_take
from pipeline.extract.messages import UnitTask


@dataclass(frozen=True, eq=False)
class UnitInFlight:
    """A unit that was sent to an actor, with its time limit in seconds."""

    task: UnitTask
    limit_s: float


@dataclass(eq=False)
class RemoteActor:
    """An actor and the units that it holds.

    Attributes:
        name: Name for messages.
        handle: Ray's handle.
        n_units: Maximum number of units that it has at a time.
        node: Id of its node; empty until it is ready.
        in_flight: Its units by Ray reference, in the order of submission.
        n_sent: Number of units that were sent to it so far.
        since_s: `time.monotonic()` when its first unit became the first; the time limit counts from
            then.
    """

    name: str
    handle: Any
    n_units: int
    node: str = ""
    in_flight: dict[Any, UnitInFlight] = field(default_factory=dict)
    n_sent: int = 0
    since_s: float = 0.0

    def can_take(self, exclusive: bool) -> bool:
        """Whether it can take another unit."""
        return can_take([unit.task for unit in self.in_flight.values()], exclusive, self.n_units)

    def add(self, reference: Any, unit: UnitInFlight) -> None:
        """Record a unit that was sent."""
        if not self.in_flight:
            self.since_s = time.monotonic()
        self.in_flight[reference] = unit
        self.n_sent += 1

    def end(self, reference: Any) -> UnitTask:
        """Remove a unit that has ended."""
        self.since_s = time.monotonic()
        return self.in_flight.pop(reference).task

    @property
    def overdue(self) -> UnitInFlight | None:
        """The first unit if it exceeded its limit; units that wait for their turn never do."""
        first = next(iter(self.in_flight.values()), None)
        if first is None or time.monotonic() - self.since_s <= first.limit_s:
            return None
        return first
