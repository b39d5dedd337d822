"""Observer that writes the events of a run to the run log."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, cast

from pipeline.events import CommittedUnit, Observer
from pipeline.store.coordination.run_log import RunLog


class RunLogObserver(Observer):
    """Appends the start and end of a run and the result of each attempt to the run log."""

    def __init__(self, log: RunLog) -> None:
        self._log = log

    def run_started(self, n_units: int) -> None:
        """Log the number of units to do and the command."""
        self._log.write("run_started", units=n_units, command=sys.argv[1:])

    def unit_committed(self, report: CommittedUnit) -> None:
        """Log the whole report; it must be a dataclass."""
        self._log.write("unit_committed", report=asdict(cast("Any", report)))

    def unit_failed(self, unit: int, slot: int, cause: str, error: Exception) -> None:
        """Log the attempt and the text of its exception."""
        self._log.write("unit_failed", unit=unit, slot=slot, cause=cause, error=str(error))

    def run_ended(self, failed: Sequence[int], stopped: str | None = None) -> None:
        """Log the units that were given up and, if the run can be stopped, the signal."""
        facts = {} if stopped is None else {"stopped": stopped}
        self._log.write("run_ended", failed=list(failed), **facts)
