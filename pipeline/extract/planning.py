"""Planning: scan the headers of a source, assign its utterances to units, and estimate the size."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.audio.identity import SOXR_KEY
from pipeline.audio.probe import probe
from pipeline.audio.resample import SOXR_RESAMPLER, needs_soxr
from pipeline.encoders.windows import Windowing
from pipeline.errors import AudioError, NoSpaceError, SourceError
from pipeline.extract.replanning import refresh_plan
from pipeline.sources.base import Source
from pipeline.store.backend.base import Location
from pipeline.store.backend.opening import open_backend
from pipeline.store.format.geometry import FrameGeometry
from pipeline.store.format.layout import Layout
from pipeline.store.format.plan import (
    SCHEMA,
    Plan,
    choose_frames_per_unit,
    make_plan,
    round_up_to_chunk,
)

SCAN_THREADS = 32  # they wait for the file system, which may be remote
SCAN_CHUNK = 128
PROBED = ("n_samples", "n_frames", "n_bytes", "fingerprint")
"""Plan columns read from the headers."""
RATE = "source_rate_hz"
"""Column of a scan that is not in the plan: the native sample rate, 0 if unreadable."""
COMPARED = ("id", "n_samples", "n_bytes", "fingerprint")
"""Plan columns that must not change between runs."""


_NAMED = 5  # utterances named for each reason


@dataclass(frozen=True)
class Unreadable:
    """Utterances that cannot be read, for like reasons.

    Attributes:
        reason: The reason of the first; that of others may differ in its numbers.
        count: Number of utterances.
        ids: Ids of the first ones.
    """

    reason: str
    count: int
    ids: tuple[str, ...]


@dataclass(frozen=True)
class Estimate:
    """Size of a plan.

    Attributes:
        utterances: Number of utterances.
        unreadable: Number of utterances that cannot be read; they will be quarantined.
        hours: Hours of audio.
        units: Number of units.
        frames: Frames of one layer.
        bytes: Bytes of the features of all units.
        free_bytes: Free bytes on the disk of the store.
        frames_per_unit: Capacity of a unit in frames.
        reasons: Why utterances cannot be read, most frequent first.
    """

    utterances: int
    unreadable: int
    hours: float
    units: int
    frames: int
    bytes: int
    free_bytes: int
    frames_per_unit: int
    reasons: tuple[Unreadable, ...] = ()


def scan(
    source: Source, geometry: FrameGeometry, progress: Callable[[int], None] = lambda done: None
) -> pa.Table:
    """Read the header of every utterance.

    Args:
        source: The dataset.
        geometry: Geometry of the encoder; samples are counted at its rate.
        progress: Called with the number of headers read so far.

    Returns:
        Rows for `make_plan`, in source order, with the column `RATE`; 0 samples for an unreadable
        header.
    """
    n = len(source)
    names = (*PROBED, RATE)
    probed = np.zeros((len(names), n), np.int64)
    with ThreadPoolExecutor(SCAN_THREADS) as pool:
        starts = range(0, n, SCAN_CHUNK)
        chunks = pool.map(lambda start: _probe_rows(source, start, geometry), starts)
        for start, chunk in zip(starts, chunks, strict=True):
            stop = start + chunk.shape[1]
            probed[:, start:stop] = chunk
            progress(stop)
    columns = {
        "id": source.ids(),
        "row": np.arange(n),
        **dict(zip(names, probed, strict=True)),
        "piece": np.zeros(n, np.int32),
        "n_pieces": np.ones(n, np.int32),
        "piece_start": np.zeros(n, np.int64),
    }
    fields = SCHEMA.append(pa.field(RATE, pa.int64(), nullable=False))
    schema = pa.schema([fields.field(name) for name in columns])
    return pa.table({k: pa.array(v, schema.field(k).type) for k, v in columns.items()}, schema)


def plan_source(
    source: Source,
    windowing: Windowing,
    frames_per_unit: int | None,
    stored: Plan | None = None,
    progress: Callable[[int], None] = lambda done: None,
    retried: Sequence[int] = (),
) -> Plan:
    """Plan a source, or extend the stored plan by rows that were added to the source.

    Args:
        source: The dataset.
        windowing: Windows of the encoder, at whose boundaries long recordings are cut.
        frames_per_unit: Capacity of a unit for a new plan; None adapts it to the corpus.
        stored: The stored plan; None for a new one.
        progress: As for `scan`.
        retried: Source rows of the stored plan to plan again; their audio may have changed.

    Returns:
        The plan; `stored` itself if nothing has changed.

    Raises:
        SourceError: Rows of the stored plan are missing or have changed, other than `retried`.
    """
    facts: dict[str, Any] = {"fingerprint": source.fingerprint}
    if stored is not None and stored.source["fingerprint"] == source.fingerprint and not retried:
        return stored
    rows = scan(source, windowing.geometry, progress)
    rate_hz = windowing.geometry.sample_rate_hz
    if any(needs_soxr(rate, rate_hz) for rate in pc.unique(rows[RATE]).to_pylist() if rate):
        facts[SOXR_KEY] = SOXR_RESAMPLER
    rows = rows.drop_columns([RATE])
    if stored is None:
        if frames_per_unit is None:
            frames_per_unit = choose_frames_per_unit(rows["n_frames"].to_numpy().astype(np.int64))
        capacity = round_up_to_chunk(frames_per_unit)
        return make_plan(cut_into_pieces(rows, capacity, windowing), facts, capacity)
    stored = refresh_plan(stored, rows, retried) if retried else stored
    n_known = _check_unchanged(stored, rows)
    fresh = pa.concat_tables([rows.take(pa.array(retried, pa.int64())), rows.slice(n_known)])
    added = cut_into_pieces(fresh, stored.frames_per_unit, windowing)
    plan = stored.extended(added) if len(added) else stored
    return Plan(plan.table, plan.frames_per_unit, plan.utterances_per_slot, facts)


def cut_into_pieces(rows: pa.Table, frames_per_unit: int, windowing: Windowing) -> pa.Table:
    """Cut recordings that are longer than a unit into pieces, at boundaries of their windows.

    Args:
        rows: Result of `scan`, one row per utterance.
        frames_per_unit: Capacity of a unit in frames.
        windowing: Windows of the encoder.

    Returns:
        The rows, with one row per piece of each cut recording. The pieces of a recording follow
        each other and cover its frames exactly. A recording whose windows are longer than a unit
        is not cut: it cannot be extracted with units of this size.
    """
    long = np.flatnonzero(rows["n_frames"].to_numpy() > frames_per_unit)
    parts, n_handled = [], 0
    for i in long.tolist():
        pieces = _pieces(rows.slice(i, 1).to_pylist()[0], frames_per_unit, windowing)
        before = rows.slice(n_handled, i - n_handled)
        parts += [before, pa.Table.from_pylist(pieces, schema=rows.schema)]
        n_handled = i + 1
    return pa.concat_tables([*parts, rows.slice(n_handled)]).combine_chunks()


def _pieces(row: dict[str, Any], capacity: int, windowing: Windowing) -> list[dict[str, Any]]:
    """Cut one recording into pieces of whole windows, each of at most `capacity` frames."""
    spans: list[tuple[int, int]] = []
    for window in windowing.plan(row["n_samples"]):
        start, stop = window.keep_start, window.keep_stop
        if stop - start > capacity:
            return [row]
        if spans and stop - spans[-1][0] <= capacity:
            spans[-1] = (spans[-1][0], stop)
        else:
            spans.append((start, stop))
    return [
        row | {"n_frames": stop - start, "piece": i, "n_pieces": len(spans), "piece_start": start}
        for i, (start, stop) in enumerate(spans)
    ]


def estimate(plan: Plan, layout: Layout, sample_rate_hz: int, store: Location) -> Estimate:
    """Estimate the size of a plan.

    Args:
        plan: The plan.
        layout: Shapes of the store.
        sample_rate_hz: Sample rate of the encoder.
        store: The store, which need not exist.
    """
    first = pc.equal(plan.table["piece"], 0)
    unreadable = pc.sum(pc.equal(plan.table["n_samples"].filter(first), 0)).as_py() or 0
    return Estimate(
        utterances=plan.n_utterances,
        unreadable=unreadable,
        hours=plan.audio_seconds(sample_rate_hz) / 3600,
        units=plan.n_units,
        frames=plan.n_frames,
        bytes=plan.n_units * layout.slot_bytes,
        free_bytes=open_backend(store).free_bytes(),
        frames_per_unit=plan.frames_per_unit,
    )


def find_unreadable(source: Source, plan: Plan, sample_rate_hz: int) -> tuple[Unreadable, ...]:
    """Probe the utterances again that the plan holds as unreadable; group them by their reasons.

    Args:
        source: The dataset.
        plan: Its plan.
        sample_rate_hz: Sample rate of the encoder.

    Returns:
        Most frequent reason first.
    """
    unreadable = plan.table.filter(pc.equal(plan.table["n_samples"], 0))
    rows = pc.unique(unreadable["row"]).to_pylist()
    with ThreadPoolExecutor(SCAN_THREADS) as pool:
        reasons = list(pool.map(lambda row: _reason(source, row, sample_rate_hz), rows))
    members: dict[str, list[int]] = defaultdict(list)
    for i, reason in enumerate(reasons):
        members[re.sub(r"\d+", "0", reason)].append(i)
    groups = []
    for group in sorted(members.values(), key=len, reverse=True):
        ids = source.ids().take(pa.array([rows[i] for i in group[:_NAMED]])).to_pylist()
        groups.append(Unreadable(reasons[group[0]], len(group), tuple(ids)))
    return tuple(groups)


def check_space(n_units: int, layout: Layout, store: Location) -> None:
    """Check that `n_units` more units fit on the disk.

    Raises:
        NoSpaceError: They do not fit; the message reports the needed and the free space.
    """
    needed, free = n_units * layout.slot_bytes, open_backend(store).free_bytes()
    if needed > free:
        raise NoSpaceError(
            f"{needed / 1e9:.2f} GB are needed in {store}, {free / 1e9:.2f} GB are free; make "
            "room, choose another store=, or extract fewer layers with extract.layers=[...]"
        )


def _probe_rows(source: Source, start: int, geometry: FrameGeometry) -> npt.NDArray[np.int64]:
    """Read `PROBED` and `RATE` of a chunk of rows: int64 `[5, n]`; zeros if unreadable."""
    stop = min(start + SCAN_CHUNK, len(source))
    probed = [_probe_row(source, row, geometry) for row in range(start, stop)]
    return np.array(probed, np.int64).T


def _probe_row(source: Source, row: int, geometry: FrameGeometry) -> tuple[int, ...]:
    try:
        header = probe(source.segment(row), geometry.sample_rate_hz)
    except AudioError:
        return 0, 0, 0, 0, 0  # the worker gets the same error and quarantines the utterance
    n_frames = geometry.n_frames(header.n_samples)
    return header.n_samples, n_frames, header.n_bytes, header.fingerprint, header.source_rate_hz


def _reason(source: Source, row: int, sample_rate_hz: int) -> str:
    """Return why an utterance cannot be read."""
    try:
        probe(source.segment(row), sample_rate_hz)
    except AudioError as error:
        return str(error)
    return "it could not be read when it was planned: retry_quarantined=true plans it again"


def _check_unchanged(stored: Plan, rows: pa.Table) -> int:
    """Compare the planned rows with the rows of the source; return the number of planned rows."""
    planned = stored.table
    first_pieces = planned.filter(pc.equal(planned["piece"], 0)).sort_by(
        [("row", "ascending"), ("unit", "ascending")]
    )
    source_rows = first_pieces["row"].to_numpy()
    is_first = np.diff(source_rows, prepend=-1) != 0  # not deferred or retried
    earlier = first_pieces.filter(pa.array(is_first))
    n_known = len(earlier)
    if len(rows) < n_known:
        raise SourceError(
            f"{n_known - len(rows)} of the {n_known} planned utterances are missing from the "
            "dataset; restore the dataset, or choose another store="
        )
    current = rows.slice(0, n_known)
    was_unreadable = pc.equal(earlier["n_bytes"].combine_chunks(), 0)
    for name in COMPARED:
        same = pc.equal(earlier[name].combine_chunks(), current[name].combine_chunks())
        if name != "id":
            same = pc.or_(same, was_unreadable)
        if not pc.all(same).as_py():
            i = pc.index(same, False).as_py()
            changed = n_known - pc.sum(same).as_py()
            raise SourceError(
                f"{changed} of the {n_known} planned utterances have changed, first at row "
                f"{i}: {name} was {earlier[name][i].as_py()!r}, now {current[name][i].as_py()!r} "
                f"(utterance {earlier['id'][i].as_py()!r}); restore the dataset, or choose another "
                "store="
            )
    return n_known
