"""The runs of a store, from its run log: what they committed and how long they took.

The log is a convenience, so nothing in it is trusted: damaged lines are skipped and counted.
Durations come from the seconds since the start of the run (`elapsed_s`). Logs of version 0.1.0 have
only the time of day, which changes when a clock is set: a step backwards, or of more than a day,
counts as no time.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from pipeline.store.backend.base import Location
from pipeline.store.coordination.limiting_stage import StageTotals
from pipeline.store.coordination.run_log import read_log

_LONGEST_STEP_S = 86_400.0
_LARGEST = 1e15
"""Upper bound of any number in a sound report."""
_NUMBERS = ("audio_s", "n_bytes", "n_fp32")


@dataclass
class LoggedRun:
    """One run, from its lines in the log.

    Attributes:
        totals: Sums over the reports of its units.
        wall_s: Seconds from its first to its last line.
        commit_s: Seconds from its first line to its last commit; None without a commit.
        n_clock_steps: Number of lines at which the clock was set.
    """

    totals: StageTotals = field(default_factory=StageTotals)
    wall_s: float = 0.0
    commit_s: float | None = None
    n_clock_steps: int = 0
    _first_elapsed_s: float | None = None
    _last_time: datetime | None = None

    @property
    def speed(self) -> float:
        """Audio seconds per wall second; 0 if no time has passed."""
        return self.totals.audio_s / self.wall_s if self.wall_s > 0 else 0.0

    @property
    def limited_by(self) -> str | None:
        """The stage that limits the run, in words; None if that is unknown."""
        return None if self.commit_s is None else self.totals.limited_by(self.commit_s)

    def add(self, event: Mapping[str, Any], time: datetime) -> None:
        """Add a line of the log that is sound."""
        step_s = 0.0 if self._last_time is None else (time - self._last_time).total_seconds()
        self._last_time = time
        is_clock_step = not 0 <= step_s <= _LONGEST_STEP_S
        self.n_clock_steps += is_clock_step
        elapsed_s = event.get("elapsed_s")
        if elapsed_s is None:
            self.wall_s += 0.0 if is_clock_step else step_s
        else:
            if self._first_elapsed_s is None:
                self._first_elapsed_s = elapsed_s
            self.wall_s = max(self.wall_s, elapsed_s - self._first_elapsed_s)
        if event["event"] == "unit_committed":
            self.commit_s = self.wall_s
            self.totals.add(event["report"])


@dataclass
class RunHistory:
    """All runs of a store.

    Attributes:
        runs: The runs by id, oldest first.
        n_fp32: Utterances that were encoded again in fp32.
        n_skipped: Damaged lines of the log.
    """

    runs: dict[str, LoggedRun] = field(default_factory=dict)
    n_fp32: int = 0
    n_skipped: int = 0

    @property
    def last_busy(self) -> LoggedRun | None:
        """The last run that committed a unit and took time."""
        busy = [run for run in self.runs.values() if run.totals.audio_s > 0 and run.wall_s > 0]
        return busy[-1] if busy else None

    @property
    def n_clock_steps(self) -> int:
        """Number of lines at which the clock was set."""
        return sum(run.n_clock_steps for run in self.runs.values())


def read_history(store: Location) -> RunHistory:
    """Read the run log of a store; damaged lines are skipped and counted."""
    history = RunHistory()

    def skip() -> None:
        history.n_skipped += 1

    for event in read_log(store, skip):
        time = _time(event["time"])
        if time is None or not _is_sound(event):
            skip()
            continue
        history.runs.setdefault(event["run_id"], LoggedRun()).add(event, time)
        if event["event"] == "unit_committed":
            history.n_fp32 += event["report"].get("n_fp32", 0)
    return history


def _time(text: object) -> datetime | None:
    """Parse a time stamp with a time zone; None for anything else."""
    try:
        time = datetime.fromisoformat(str(text))
        return None if time.utcoffset() is None else time
    except ValueError:
        return None


def _is_sound(event: Mapping[str, Any]) -> bool:
    """Whether the fields of an event that are used here have sound values."""
    if not isinstance(event["run_id"], str) or not _is_number(event.get("elapsed_s", 0)):
        return False
    if event["event"] != "unit_committed":
        return True
    report = event.get("report")
    return (
        isinstance(report, dict)
        and all(_is_number(report.get(name, 0)) for name in _NUMBERS)
        and _is_mapping(report.get("seconds", {}))
        and _is_mapping(report.get("threads", {}), minimum=1)
        and isinstance(report.get("worker", ""), str)
    )


def _is_mapping(value: object, minimum: int = 0) -> bool:
    return isinstance(value, dict) and all(_is_number(item, minimum) for item in value.values())


def _is_number(value: object, minimum: int = 0) -> bool:
    """Whether a value is a number from `minimum` to `_LARGEST`; NaN is not."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    return minimum <= value <= _LARGEST
