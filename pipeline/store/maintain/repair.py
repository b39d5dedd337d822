"""Taking back what is damaged, so that the next `extract` writes it anew.

Only commits are removed here, and garbage: the damaged shards themselves stay until their unit is
committed in another slot. What the next run writes is byte-identical, as units are a function of
the plan and the audio alone.

No driver is at work, but workers of one that was killed may be. So nothing is removed that they
could still commit, and no slot that they write to is ever given out again.
"""

from __future__ import annotations

import json
import uuid
from dataclasses import asdict, dataclass

from pipeline.errors import DamagedError
from pipeline.store import index as index_files
from pipeline.store.backend.base import Backend, Location
from pipeline.store.backend.opening import open_backend
from pipeline.store.coordination.lease import Lease
from pipeline.store.coordination.ledger import CLAIM_NAME, LOST, Claim, Ledger
from pipeline.store.coordination.run_log import RunLog, now
from pipeline.store.format.layout import INDEX_DIR, LEDGER_DIR, Layout, index_key
from pipeline.store.maintain.orphans import Stray
from pipeline.store.maintain.verify import Verification, verify_store
from pipeline.store.serialization import json_bytes
from pipeline.store.write.documents import (
    discard_slot,
    layout_of,
    read_attributes,
    read_plan,
    resize,
)


@dataclass(frozen=True)
class Repair:
    """What a repair has found and done.

    Attributes:
        found: The check that came before it.
        units: Units whose commit was taken back.
        swept: Garbage that was removed.
        claims: Claims that were unreadable; their slots stay taken.
    """

    found: Verification
    units: list[int]
    swept: list[Stray]
    claims: list[str]

    def summary(self) -> str:
        """One line for people."""
        line = f"repaired: {len(self.units)} units taken back, {len(self.swept)} strays removed"
        if self.claims:
            line += f", {len(self.claims)} unreadable claims written anew"
        if self.units:
            line += "; run the same `strata extract` command as before to extract these units again"
        return line


def repair_store(store: Location) -> Repair:
    """Takes back the commit of every damaged unit, and removes garbage.

    Raises:
        StoreNotFoundError: There is no store.
        StoreBusyError: A driver is at work on it.
        DamagedError: The plan or the attributes are damaged; these only a copy can restore.
    """
    backend = open_backend(store)
    attributes = read_attributes(backend)
    layout = layout_of(attributes)
    run_id = f"repair-{uuid.uuid4().hex[:8]}"
    with Lease(backend, run_id):
        claims = _replace_unreadable_claims(backend, run_id)
        plan = read_plan(backend)
        if plan is None:
            raise DamagedError(f"store {backend} has no plan.parquet; restore it from a copy")
        resize(backend, layout, Ledger.open(backend, plan.n_units).n_slots)
        found = verify_store(backend)
        log = RunLog(backend, run_id)
        _uncommit(backend, found, log)
        swept = _remove_garbage(backend, layout, found)
        units = found.damaged_units
        log.write("repaired", units=units, swept=[stray.path for stray in swept], claims=claims)
    return Repair(found, units, swept, claims)


def _uncommit(backend: Backend, found: Verification, log: RunLog) -> None:
    """Takes commits back: first the compaction goes, so that nothing remembers them."""
    units = found.damaged_units
    if not units:
        return
    index_files.drop_cache(backend)
    for unit in units:
        problems = [damage.problem for damage in found.damages if damage.unit == unit]
        log.write("unit_taken_back", unit=unit, problems=problems[:5])
        backend.delete(index_key(unit))
    backend.sync(INDEX_DIR)


def _remove_garbage(backend: Backend, layout: Layout, found: Verification) -> list[Stray]:
    garbage = [stray for stray in found.strays if stray.is_garbage]
    for stray in garbage:
        if stray.slot is not None:
            discard_slot(backend, layout, stray.slot)
        else:
            backend.delete(stray.path)
    return garbage


def _replace_unreadable_claims(backend: Backend, run_id: str) -> list[str]:
    """A claim that cannot be read stops every run; without it the slot would be given out again.

    The worker that it was made for may still be there: in a slot that a later attempt is given as
    well, the shards of both would be mixed.
    """
    replaced = []
    for name in sorted(backend.children(LEDGER_DIR)):
        match = CLAIM_NAME.fullmatch(name)
        if not match:
            continue
        key, slot = f"{LEDGER_DIR}/{name}", int(match[1])
        try:
            readable = Claim(**json.loads(backend.read(key))).slot == slot
        except (ValueError, TypeError):
            readable = False
        if not readable:
            claim = Claim(slot, LOST, 0, run_id, "", now())
            backend.put(key, [json_bytes(asdict(claim))])
            replaced.append(name)
    return replaced
