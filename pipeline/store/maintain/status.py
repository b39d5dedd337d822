"""Progress of a store."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.store import index as index_files
from pipeline.store.backend.base import Location
from pipeline.store.backend.opening import open_backend
from pipeline.store.coordination.lease import live_holder
from pipeline.store.coordination.run_history import read_history
from pipeline.store.documents import read_attributes, read_plan
from pipeline.store.format.records import DROPPED
from pipeline.store.format.tombstones import are_tombstones
from pipeline.store.labels import read_labels
from pipeline.store.maintain.tokens import TokenCount, count_tokens

_COLUMNS = ("row", "unit", "status", "reason", "piece", "n_pieces", "n_samples", "flags")


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
        last_run_audio_seconds: Seconds of audio that the last run that committed a unit extracted.
        last_run_wall_seconds: Duration of that run.
        realtime_factor: Audio seconds per wall second of that run.
        eta_seconds: Remaining seconds at that rate; None if no driver runs or the rate is unknown.
        live: Whether a driver is running.
        run_id: The last run.
        seconds: Seconds of the workers in all runs, by stage (`UnitReport.seconds`).
        reasons: Number of utterances with each quarantine reason, most frequent first.
        limited_by: The stage that limits the last run that committed a unit, in words; None if
            that is unknown.
        log_lines_skipped: Damaged lines of the run log; the times above lack them.
        clock_steps: Lines of the run log at which the clock was set.
        flags: Number of utterances with features that have each flag, most frequent first.
        utterances_dropped: Utterances that were dropped from the store; they count nowhere else.
        tokens: Tokens that the store has, and how many of its units have them.
    """

    units_total: int
    units_committed: int
    utterances_total: int
    utterances_ok: int
    utterances_quarantined: int
    utterances_fp32: int
    audio_seconds: float
    wall_seconds: float
    last_run_audio_seconds: float | None
    last_run_wall_seconds: float | None
    realtime_factor: float | None
    eta_seconds: float | None
    live: bool
    run_id: str | None
    seconds: dict[str, float]
    reasons: dict[str, int]
    limited_by: str | None = None
    log_lines_skipped: int = 0
    clock_steps: int = 0
    flags: dict[str, int] = field(default_factory=dict)
    utterances_dropped: int = 0
    tokens: tuple[TokenCount, ...] = ()


def read_status(store: Location) -> Status:
    """Count the commits of a store and read its run log.

    Raises:
        StoreNotFoundError: There is no store.
    """
    backend = open_backend(store)
    attributes = read_attributes(backend)
    plan = read_plan(backend)
    n_units = plan.n_units if plan else 0
    rate_hz = attributes["sample_rate_hz"]
    table = index_files.read_index(backend, columns=_COLUMNS)
    labels = read_labels(backend)
    n_dropped = len(pc.unique(index_files.of_status(table, DROPPED)["row"]))
    if n_dropped and plan:
        is_kept = pa.array(~are_tombstones(plan.table["id"]))
        plan = plan.restricted_to(plan.table.filter(is_kept))
    if labels is not None:
        table, plan = labels.shown(table), plan and plan.restricted_to(labels.shown(plan.table))
    pieces, first_piece = index_files.complete_utterances(table)
    done = pieces.take(pa.array(first_piece[:-1]))
    lost = index_files.still_quarantined(table)
    audio_s = (pc.sum(done["n_samples"]).as_py() or 0) / rate_hz
    history = read_history(backend)
    runs = history.runs
    seconds: Counter[str] = Counter()
    for run in runs.values():
        seconds.update(run.totals.seconds)
    live = live_holder(backend) is not None
    last = history.last_busy
    rate = last.speed if last else None
    left_s = (plan.audio_seconds(rate_hz) if plan else 0.0) - audio_s
    return Status(
        units_total=n_units,
        units_committed=len(index_files.committed_units(backend)),
        utterances_total=plan.n_utterances if plan else 0,
        utterances_ok=len(done),
        utterances_quarantined=len(lost),
        utterances_fp32=history.n_fp32,
        audio_seconds=round(audio_s, 3),
        wall_seconds=round(sum(run.wall_s for run in runs.values()), 3),
        last_run_audio_seconds=round(last.totals.audio_s, 3) if last else None,
        last_run_wall_seconds=round(last.wall_s, 3) if last else None,
        realtime_factor=rate,
        eta_seconds=max(0.0, left_s) / rate if live and rate else None,
        live=live,
        run_id=next(reversed(runs), None),
        seconds={stage: round(spent, 3) for stage, spent in seconds.items()},
        reasons=dict(Counter(lost["reason"].to_pylist()).most_common()),
        limited_by=last.limited_by if last else None,
        log_lines_skipped=history.n_skipped,
        clock_steps=history.n_clock_steps,
        flags=dict(Counter(pc.list_flatten(done["flags"]).to_pylist()).most_common()),
        utterances_dropped=n_dropped,
        tokens=tuple(count_tokens(backend)),
    )
