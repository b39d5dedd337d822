"""What a run tells those who watch it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipeline.extract.messages import UnitReport
    from pipeline.store.format.plan import Plan


class Observer:
    """Watches a run and does nothing; a subclass shows it."""

    def note(self, line: str) -> None:
        """Takes a line for people."""

    def scanned(self, done: int) -> None:
        """Takes the number of headers read so far."""

    def planned(self, plan: Plan, done: int) -> None:
        """Takes the plan and the number of units that are committed already."""

    def committed(self, report: UnitReport) -> None:
        """Takes the report of a unit that was just committed."""
