"""Observer that writes the events of a run to the run log."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, cast

from pipeline.events import CommittedUnit, Observer
from pipeline.store.coordination.limiting_stage import StageTotals
from pipeline.store.coordination.run_log import RunLog


class RunLogObserver(Observer):
    """Appends the start and end of a run and the result of each attempt to the run log."""

    def __init__(self, log: RunLog) -> None:
        self._log = log
        self._totals = StageTotals()
        self._start_s = self._last_commit_s = time.monotonic()

    def run_started(self, n_units: int) -> None:
        """Log the number of units to do and the command."""
        self._start_s = time.monotonic()
        self._log.write("run_started", units=n_units, command=sys.argv[1:])

    def unit_committed(self, report: CommittedUnit) -> None:
        """Log the whole report; it must be a dataclass."""
        facts = asdict(cast("Any", report))
        self._totals.add(facts)
        self._last_commit_s = time.monotonic()
        self._log.write("unit_committed", report=facts)

    def unit_failed(self, unit: int, slot: int, cause: str, error: Exception) -> None:
        """Log the attempt and the text of its exception."""
        self._log.write("unit_failed", unit=unit, slot=slot, cause=cause, error=str(error))

    def run_ended(self, failed: Sequence[int], stopped: str | None = None) -> None:
        """Log the units that were given up, the limiting stage and, if any, the signal."""
        facts: dict[str, Any] = {} if stopped is None else {"stopped": stopped}
        limited_by = self._totals.limited_by(self._last_commit_s - self._start_s)
        if limited_by is not None:
            facts["limited_by"] = limited_by
        self._log.write("run_ended", failed=list(failed), **facts)
