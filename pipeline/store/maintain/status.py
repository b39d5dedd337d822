"""Progress of a store."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.store import index as index_files
from pipeline.store.backend.base import Backend, Location
from pipeline.store.backend.opening import open_backend
from pipeline.store.coordination.lease import live_holder
from pipeline.store.coordination.limiting_stage import StageTotals
from pipeline.store.coordination.run_log import read_log
from pipeline.store.documents import read_attributes, read_plan

_COLUMNS = ("row", "unit", "status", "reason", "piece", "n_pieces", "n_samples")


@dataclass(frozen=True)
class Status:
    """Progress of a store, from its commits and its run log.

    Attributes:
        units_total: Units of the plan.
        units_committed: Committed units.
        utterances_total: Utterances of the plan.
        utterances_ok: Utterances with features.
        utterances_quarantined: Utterances that could not be extracted.
        utterances_fp32: Utterances that were encoded again in fp32, because values were out of
            range in a reduced precision.
        audio_seconds: Seconds of audio with features.
        wall_seconds: Duration of all runs.
        realtime_factor: Audio seconds per wall second of the last run that committed a unit.
        eta_seconds: Remaining seconds at that rate; None if no driver runs or the rate is unknown.
        live: Whether a driver is running.
        run_id: The last run.
        seconds: Seconds of the workers in all runs, by stage (`UnitReport.seconds`).
        reasons: Number of utterances with each quarantine reason, most frequent first.
        limited_by: The stage that limits the last run that committed a unit, in words; None if
            that is unknown.
    """

    units_total: int
    units_committed: int
    utterances_total: int
    utterances_ok: int
    utterances_quarantined: int
    utterances_fp32: int
    audio_seconds: float
    wall_seconds: float
    realtime_factor: float | None
    eta_seconds: float | None
    live: bool
    run_id: str | None
    seconds: dict[str, float]
    reasons: dict[str, int]
    limited_by: str | None = None


@dataclass
class _Run:
    began: datetime
    last: datetime
    last_commit: datetime | None = None
    totals: StageTotals = field(default_factory=StageTotals)

    @property
    def wall_s(self) -> float:
        return (self.last - self.began).total_seconds()

    @property
    def limited_by(self) -> str | None:
        if self.last_commit is None:
            return None
        return self.totals.limited_by((self.last_commit - self.began).total_seconds())


def read_status(store: Location) -> Status:
    """Count the commits of a store and read its run log.

    Raises:
        StoreNotFoundError: There is no store.
    """
    backend = open_backend(store)
    attributes = read_attributes(backend)
    plan = read_plan(backend)
    rate_hz = attributes["sample_rate_hz"]
    table = index_files.read_index(backend, columns=_COLUMNS)
    pieces, first_piece = index_files.complete_utterances(table)
    done = pieces.take(pa.array(first_piece[:-1]))
    lost = index_files.still_quarantined(table)
    audio_s = (pc.sum(done["n_samples"]).as_py() or 0) / rate_hz
    runs, n_fp32 = _read_runs(backend)
    seconds: Counter[str] = Counter()
    for run in runs.values():
        seconds.update(run.totals.seconds)
    live = live_holder(backend) is not None
    busy = [run for run in runs.values() if run.totals.audio_s > 0 and run.wall_s > 0]
    rate = busy[-1].totals.audio_s / busy[-1].wall_s if busy else None
    left_s = (plan.audio_seconds(rate_hz) if plan else 0.0) - audio_s
    return Status(
        units_total=plan.n_units if plan else 0,
        units_committed=len(index_files.committed_units(backend)),
        utterances_total=plan.n_utterances if plan else 0,
        utterances_ok=len(done),
        utterances_quarantined=len(lost),
        utterances_fp32=n_fp32,
        audio_seconds=round(audio_s, 3),
        wall_seconds=round(sum(run.wall_s for run in runs.values()), 3),
        realtime_factor=rate,
        eta_seconds=max(0.0, left_s) / rate if live and rate else None,
        live=live,
        run_id=next(reversed(runs), None),
        seconds={stage: round(spent, 3) for stage, spent in seconds.items()},
        reasons=dict(Counter(lost["reason"].to_pylist()).most_common()),
        limited_by=busy[-1].limited_by if busy else None,
    )


def _read_runs(backend: Backend) -> tuple[dict[str, _Run], int]:
    """Return the runs of the log, oldest first, and the number of utterances encoded in fp32."""
    runs: dict[str, _Run] = {}
    n_fp32 = 0
    for event in read_log(backend):
        time = datetime.fromisoformat(event["time"])
        run = runs.setdefault(event["run_id"], _Run(time, time))
        run.last = time
        if event["event"] == "unit_committed":
            report: dict[str, Any] = event["report"]
            run.last_commit = time
            run.totals.add(report)
            n_fp32 += report["n_fp32"]
    return runs, n_fp32
