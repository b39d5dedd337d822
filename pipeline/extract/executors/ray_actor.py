"""A worker in another process, as the driver sees it."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

from pipeline.extract.executors.inline import can_take
from pipeline.extract.messages import UnitTask


@dataclass(frozen=True, eq=False)
class Flight:
    """A unit that an actor has."""

    task: UnitTask
    limit_s: float


@dataclass(eq=False)
class Remote:
    """An actor as the driver sees it.

    Attributes:
        name: For people.
        actor: Ray's handle.
        node: Where it is; known once it is ready.
        flights: Its units by Ray's reference, in the order in which they were given to it.
        since_s: When the first of them became the first: from then on its time runs.
    """

    name: str
    actor: Any
    node: str = ""
    flights: dict[Any, Flight] = field(default_factory=dict)
    since_s: float = 0.0

    def can_take(self, alone: bool) -> bool:
        """Whether it can take another unit."""
        return can_take([flight.task for flight in self.flights.values()], alone)

    def add(self, reference: Any, flight: Flight) -> None:
        """Takes note of a unit that was sent."""
        if not self.flights:
            self.since_s = time.monotonic()
        self.flights[reference] = flight

    def end(self, reference: Any) -> UnitTask:
        """Takes note of a unit that has ended."""
        self.since_s = time.monotonic()
        return self.flights.pop(reference).task

    @property
    def overdue(self) -> Flight | None:
        """The unit in hand, if it takes too long; one that waits for its turn never does."""
        first = next(iter(self.flights.values()), None)
        if first is None or time.monotonic() - self.since_s <= first.limit_s:
            return None
        return first
