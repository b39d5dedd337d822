"""Verification of a store: every checksum and every count."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.errors import ConfigError, DamagedError, UnreachableError
from pipeline.store import index as index_files
from pipeline.store.backend.base import Backend, Location
from pipeline.store.backend.opening import open_backend
from pipeline.store.coordination.lease import check_no_drop, live_holder
from pipeline.store.coordination.ledger import UNKNOWN_UNIT, read_claims
from pipeline.store.documents import check_format_shape, layout_of, read_attributes, read_plan
from pipeline.store.format.codecs import FloatArray, checksum
from pipeline.store.format.layout import Layout, index_key, labels_key
from pipeline.store.format.plan import NUMBERED, Plan
from pipeline.store.format.pooling import is_same
from pipeline.store.format.records import DEFERRED, DROPPED, OK, QUARANTINED
from pipeline.store.labels import generations, read_labels
from pipeline.store.maintain.arrays import check_documents, check_other_readers
from pipeline.store.maintain.dropped import check_cleared, check_tombstones
from pipeline.store.maintain.layers import Row, check_layer
from pipeline.store.maintain.orphans import CommitState, Orphan, find_orphans
from pipeline.store.maintain.tokens import TokenDamage, check_tokens
from pipeline.store.read.shards import ShardReader


@dataclass(frozen=True)
class Damage:
    """One problem of one unit.

    Attributes:
        unit: The unit.
        problem: The problem, with the file or utterance that has it.
    """

    unit: int
    problem: str


@dataclass(frozen=True)
class Verification:
    """Result of a verification.

    Attributes:
        damages: All problems; empty for a sound store.
        units_committed: Units that were checked.
        units_total: Units of the plan.
        utterances_ok: Utterances with features.
        utterances_quarantined: Utterances with a quarantine reason.
        n_bytes: Bytes of features that were read.
        orphans: Objects that belong to no commit; they are not damage.
        tokens: Problems of tokens, which can be made again from the frames.
    """

    damages: tuple[Damage, ...]
    units_committed: int
    units_total: int
    utterances_ok: int
    utterances_quarantined: int
    n_bytes: int
    orphans: tuple[Orphan, ...] = ()
    tokens: tuple[TokenDamage, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether the store is sound, with its tokens."""
        return not self.damages and not self.tokens

    @property
    def damaged_units(self) -> list[int]:
        """Units with at least one problem, ascending."""
        return sorted({damage.unit for damage in self.damages})


def verify_store(
    store: Location,
    progress: Callable[[int, int], None] = lambda done, total: None,
    sample: float = 1.0,
) -> Verification:
    """Check every committed unit of a store.

    A unit is sound if:

    - its index is readable and has the utterances of the plan, in order;
    - no other unit has or has claimed its slot;
    - every shard exists, has the right size, and is flat or readable as Zarr;
    - the frames of every utterance, with its scales, match their checksum in every layer, and
      overlap no others;
    - every pooled vector is the statistic of its frames, or matches its checksum if these are not
      kept;
    - frames without an utterance have the codec's fill value;
    - nothing is left of dropped utterances: their frames are zero, their statistics NaN;
    - tokens match their checksums, and every frame of an utterance of a unit with tokens has a
      code, and no other frame.

    A unit without a commit is not damage, unless `index.parquet` lists it. The zarr.json documents
    must be those of the layout, and zarr-python must read the same values.

    Args:
        store: The store.
        progress: Called with the number of units that have been checked, from 0 on, and of all.
        sample: Share of the units, at least one and chosen at random, whose bytes are read. Of the
            others only the index, and the presence and size of every file, are checked.

    Raises:
        ConfigError: `sample` is not more than 0 and at most 1.
        StoreNotFoundError: There is no store.
        DamagedError: The plan, the ledger, a generation of labels or a Zarr document is damaged.
        StoreError: A drop was interrupted.
    """
    backend = open_backend(store)
    attributes = read_attributes(backend)
    if live_holder(backend) is None:
        check_no_drop(backend)
    layout = layout_of(attributes)
    plan = read_plan(backend)
    if plan is None:
        raise DamagedError(f"store {backend} has no plan.parquet; restore it from a copy")
    planned = replace(
        layout,
        frames_per_unit=plan.frames_per_unit,
        utterances_per_slot=plan.utterances_per_slot,
    )
    check_format_shape(attributes, planned, backend)
    known = generations(backend)
    read_labels(backend)  # fails if the newest one is missing
    for generation in known:
        read_labels(backend, generation)
    numbered = plan.source.get(NUMBERED, 0)
    if numbered > max(known, default=0):
        raise DamagedError(
            f"{backend.locate(labels_key(numbered))} is missing, and readers show older labels; "
            "restore it from a copy, or run `strata extract` with the dataset as it is"
        )
    units = index_files.committed_units(backend)
    deep = _chosen(units, sample)
    damages = [
        Damage(
            unit, f"{backend.locate(index_key(unit))} is missing, but index.parquet lists the unit"
        )
        for unit in index_files.lost_units(backend)
    ]
    progress(0, len(units))
    with ThreadPoolExecutor(backend.parallel_reads) as pool:
        check = _UnitCheck(backend, layout, plan, pool)
        for done, unit in enumerate(units, start=1):
            damages += [Damage(unit, problem) for problem in check.problems(unit, unit in deep)]
            progress(done, len(units))
    check_documents(backend, layout, plan.n_units, list(check.slots))
    damaged = {damage.unit for damage in damages}
    sound = [slot for slot in check.with_data if check.slots[slot] not in damaged]
    if sound:
        check_other_readers(backend, layout, min(sound))
    return Verification(
        damages=tuple(damages),
        units_committed=len(units),
        units_total=plan.n_units,
        utterances_ok=check.n_ok,
        utterances_quarantined=check.n_quarantined,
        n_bytes=check.n_bytes,
        orphans=tuple(check.orphans(units, {damage.unit for damage in damages})),
        tokens=tuple(check_tokens(backend, layout)),
    )


def _chosen(units: list[int], sample: float) -> set[int]:
    if not 0 < sample <= 1:
        raise ConfigError(f"the sample is {sample:g}; expected a share, more than 0 and at most 1")
    n_chosen = min(len(units), max(1, round(sample * len(units))))
    return set(random.sample(units, n_chosen))


class _UnitCheck:
    def __init__(
        self, backend: Backend, layout: Layout, plan: Plan, pool: ThreadPoolExecutor
    ) -> None:
        self._backend = backend
        self._pool = pool
        self._layout = layout
        self._plan = plan
        self.slots: dict[int, int] = {}
        self.with_data: set[int] = set()  # slots that have an utterance
        self.n_bytes = 0
        self._claims = {claim.slot: claim for claim in read_claims(backend)}
        self._claimed = {
            slot: claim.unit for slot, claim in self._claims.items() if claim.unit != UNKNOWN_UNIT
        }
        self._seen: dict[tuple[int, int], int] = {}
        self._left: dict[int, int] = {}  # pieces that an utterance lacks, by source row
        self._quarantined: set[int] = set()
        labels = read_labels(backend)
        self._shown = None if labels is None else set(labels.numbers.tolist())

    @property
    def n_ok(self) -> int:
        """Utterances of which all pieces are stored, as readers show them."""
        return sum(n_left <= 0 for number, n_left in self._left.items() if self._is_shown(number))

    @property
    def n_quarantined(self) -> int:
        """Quarantined utterances, without those that later units have completed."""
        return sum(
            self._left.get(number, 1) > 0 for number in self._quarantined if self._is_shown(number)
        )

    def _is_shown(self, number: int) -> bool:
        return self._shown is None or number in self._shown

    def orphans(self, units: list[int], damaged: set[int]) -> list[Orphan]:
        """Return the objects without a commit; call it when all units have been checked."""
        slots = {unit: slot for slot, unit in self.slots.items()}
        winners = {unit: slots.get(unit) for unit in units}
        is_complete = len(units) == self._plan.n_units and not damaged
        attempts = CommitState(self._claims, winners, damaged, is_complete)
        return find_orphans(self._backend, self._layout, attempts)

    def problems(self, unit: int, deep: bool = True) -> Iterator[str]:
        try:
            table = index_files.read_unit(self._backend, unit)
        except DamagedError as error:
            yield str(error)
            return
        if unit >= self._plan.n_units:
            yield f"the plan has only {self._plan.n_units} units"
            return
        yield from self._check_plan(unit, table)
        yield from check_tombstones(table)
        rows = table.to_pylist()
        for row in rows:
            if row["status"] == QUARANTINED:
                self._quarantined.add(row["row"])
            elif row["status"] == OK:
                self._left[row["row"]] = self._left.get(row["row"], row["n_pieces"]) - 1
            if row["status"] in (QUARANTINED, DEFERRED) and not row["reason"]:
                yield f"utterance {row['id']!r} is {row['status']} without a reason"
            if row["status"] not in (OK, QUARANTINED, DEFERRED, DROPPED):
                yield f"utterance {row['id']!r} has the unknown status {row['status']!r}"
        slots = {row["slot"] for row in rows}
        if len(slots) != 1:
            yield f"its utterances are in several slots: {sorted(slots)}"
            return
        slot = slots.pop()
        yield from self._check_slot(unit, slot)
        done = [row for row in rows if row["status"] == OK]
        if not done:
            return
        self.with_data.add(slot)
        yield from self._check_unique(unit, done)
        taken = np.zeros(self._layout.frames_per_unit, bool)
        misplaced = set()
        for row in done:
            for problem in self._check_range(slot, row, taken):
                misplaced.add(row["position"])
                yield f"utterance {row['id']!r} {problem}"
        placed = [row for row in done if row["position"] not in misplaced]
        dropped = [row for row in rows if row["status"] == DROPPED]
        for row in dropped:
            if row["frame_start"] is not None:
                yield from self._check_place(slot, row, taken)
        if not deep and self._has_right_sizes(slot):
            return
        shards = ShardReader(self._backend, self._layout)
        try:
            yield from self._check_data(shards, slot, placed, taken, dropped)
        except UnreachableError:
            raise
        except DamagedError as error:
            yield str(error)
        except Exception as error:  # noqa: BLE001  zarr raises whatever its codecs raise
            yield f"slot {slot} is not readable ({type(error).__name__}: {error})"

    def _has_right_sizes(self, slot: int) -> bool:
        """Return whether every object of a slot exists with the size of a flat one."""
        objects = self._layout.slot_objects(slot)
        try:
            return all(self._backend.size(key) == size for key, size in objects.items())
        except UnreachableError:
            raise
        except OSError:
            return False

    def _check_plan(self, unit: int, table: pa.Table) -> Iterator[str]:
        planned = self._plan.unit_rows(unit)
        for name in ("id", "row", "position", "piece", "n_pieces"):
            if table[name].to_pylist() != planned[name].to_pylist():
                yield f"its index and the plan have different {name} columns"

    def _check_slot(self, unit: int, slot: int) -> Iterator[str]:
        other = self.slots.setdefault(slot, unit)
        if other != unit:
            yield f"it shares slot {slot} with unit {other}"
        if self._claimed.get(slot, unit) != unit:
            yield f"slot {slot} was claimed for unit {self._claimed[slot]}"

    def _check_unique(self, unit: int, done: list[Row]) -> Iterator[str]:
        for row in done:
            other = self._seen.setdefault((row["row"], row["piece"]), unit)
            if other != unit:
                yield f"utterance {row['id']!r} is in unit {other} too"

    def _check_range(self, slot: int, row: Row, taken: npt.NDArray[np.bool_]) -> Iterator[str]:
        """Check the range of an utterance's frames, and mark these frames as taken."""
        if row["frame_start"] is None or len(row["crc32c"] or ()) != self._layout.n_layers:
            yield "has no frame_start, or not one checksum per layer"
            return
        yield from self._check_place(slot, row, taken)

    def _check_place(self, slot: int, row: Row, taken: npt.NDArray[np.bool_]) -> Iterator[str]:
        start = row["frame_start"] - self._layout.slot_start(slot)
        stop = start + row["n_frames"]
        if not 0 <= start < stop <= len(taken):
            yield f"has no valid range of frames in slot {slot}"
            return
        if taken[start:stop].any():
            yield "overlaps another utterance"
        taken[start:stop] = True

    def _check_data(
        self,
        shards: ShardReader,
        slot: int,
        done: list[Row],
        taken: npt.NDArray[np.bool_],
        dropped: list[Row],
    ) -> Iterator[str]:
        layout = self._layout
        pooled = shards.pooled(slot) if layout.keeps_pooled else None
        scales = shards.scale_chunk(slot) if layout.keeps_scales else None
        yield from check_cleared(shards, slot, dropped, pooled, scales)
        if pooled is not None and not layout.keeps_frames:
            yield from self._check_pooled_only(slot, done, pooled)
            return
        found = []
        layers = self._pool.map(
            lambda axis: check_layer(shards, layout, slot, axis, done, taken, scales),
            layout.kept_axes,
        )
        for problems, statistics in layers:
            yield from problems
            found.append(statistics)
        self.n_bytes += sum(row["n_frames"] for row in done) * layout.frame_share_bytes
        if pooled is None:
            return
        for i, row in enumerate(done):
            right = np.stack([layer[i] for layer in found], axis=1)  # [statistic, layer, dim]
            own = pooled[row["position"]][:, list(layout.kept_axes)]
            pairs = zip(layout.statistics, own, right, strict=True)
            for name, kept, expected in pairs:
                if not is_same(layout.codec, name, kept, expected):
                    yield (
                        f"the pooled vector of utterance {row['id']!r} is not the {name} of its "
                        f"frames ({layout.pooled_key(slot)})"
                    )

    def _check_pooled_only(self, slot: int, done: list[Row], pooled: FloatArray) -> Iterator[str]:
        """Compare the statistics of a store without frames with their checksums."""
        layout = self._layout
        for row in done:
            for axis in layout.kept_axes:
                layer, kept = layout.layers[axis], pooled[row["position"], :, axis]
                self.n_bytes += kept.nbytes
                if checksum(kept) != row["crc32c"][axis]:
                    yield (
                        f"the statistics of layer {layer} of utterance {row['id']!r} have a wrong "
                        f"checksum ({layout.pooled_key(slot)})"
                    )
