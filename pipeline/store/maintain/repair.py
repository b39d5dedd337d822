"""Repair of a store: revoke the commits of damaged units, so that `extract` writes them again.

Only commits and garbage are removed. Damaged shards stay until their unit is committed in another
slot. The next run writes the same bytes if the device, the thread count and the batch size are the
same.

During a repair there is no driver, but workers of a killed driver may still run. So nothing is
removed that they could still commit, and no slot that they may write to is claimed again.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable
from dataclasses import asdict, dataclass

from pipeline.errors import DamagedError, counted
from pipeline.store import index as index_files
from pipeline.store.backend.base import Backend, Location
from pipeline.store.backend.opening import open_backend
from pipeline.store.coordination.lease import Lease
from pipeline.store.coordination.ledger import CLAIM_NAME, UNKNOWN_UNIT, Claim, Ledger
from pipeline.store.coordination.run_log import RunLog, now
from pipeline.store.documents import layout_of, read_attributes, read_plan, resize
from pipeline.store.format.layout import INDEX_DIR, LEDGER_DIR, Layout, index_key
from pipeline.store.maintain.orphans import Orphan
from pipeline.store.maintain.tokens import repair_tokens
from pipeline.store.maintain.verify import Verification, verify_store
from pipeline.store.serialization import json_bytes
from pipeline.store.write.slot import discard_slot


@dataclass(frozen=True)
class Repair:
    """Result of a repair.

    Attributes:
        found: The verification before it.
        units: Units whose commit was revoked.
        removed: Garbage that was removed.
        claims: Unreadable claims that were replaced; their slots stay taken.
        tokens: Damaged tokens that were removed, and their documents that were written anew.
    """

    found: Verification
    units: list[int]
    removed: list[Orphan]
    claims: list[str]
    tokens: tuple[str, ...] = ()

    def summary(self) -> str:
        """Return one line for the user."""
        line = (
            f"repaired: {counted(len(self.units), 'commit')} revoked, "
            f"{counted(len(self.removed), 'leftover')} removed"
        )
        if self.claims:
            line += f", {counted(len(self.claims), 'unreadable claim')} replaced"
        if self.units:
            line += "; run the same `strata extract` command as before to extract these units again"
        if self.tokens:
            line += (
                f"; {counted(len(self.tokens), 'object')} of tokens removed or written anew: run "
                "`strata tokenize STORE name=NAME` to make what is missing"
            )
        return line


def repair_store(
    store: Location, progress: Callable[[int, int], None] = lambda done, total: None
) -> Repair:
    """Revoke the commit of every damaged unit, and remove garbage.

    Args:
        store: The store.
        progress: As for `verify_store`.

    Raises:
        StoreNotFoundError: There is no store.
        StoreBusyError: A driver is running.
        DamagedError: The plan or the attributes are damaged; only a copy can restore them.
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
        n_slots = Ledger.open(backend, plan.n_units).n_slots
        resize(backend, layout, n_slots)
        found = verify_store(backend, progress)
        log = RunLog(backend, run_id)
        _revoke(backend, found, log)
        removed = _remove_garbage(backend, layout, found)
        tokens = tuple(repair_tokens(backend, layout, n_slots, found.tokens))
        units = found.damaged_units
        swept = [*(orphan.path for orphan in removed), *tokens]
        log.write("repaired", units=units, swept=swept, claims=claims)
    return Repair(found, units, removed, claims, tokens)


def _revoke(backend: Backend, found: Verification, log: RunLog) -> None:
    """Revoke commits. Delete `index.parquet` first, because it lists them too."""
    units = found.damaged_units
    if not units:
        return
    index_files.drop_cache(backend)
    for unit in units:
        problems = [damage.problem for damage in found.damages if damage.unit == unit]
        log.write("unit_taken_back", unit=unit, problems=problems[:5])
        backend.delete(index_key(unit))
    backend.sync(INDEX_DIR)


def _remove_garbage(backend: Backend, layout: Layout, found: Verification) -> list[Orphan]:
    garbage = [orphan for orphan in found.orphans if orphan.is_garbage]
    for orphan in garbage:
        if orphan.slot is not None:
            discard_slot(backend, layout, orphan.slot)
        else:
            backend.delete(orphan.path)
    return garbage


def _replace_unreadable_claims(backend: Backend, run_id: str) -> list[str]:
    """Replace unreadable claims, which stop every run, by claims without a unit.

    They are not removed: the worker of the attempt may still run, and its shards would be mixed
    with those of another attempt that claims the same slot.

    Returns:
        Names of the replaced claims.
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
            claim = Claim(
                slot=slot, unit=UNKNOWN_UNIT, attempt=0, run_id=run_id, worker="", time=now()
            )
            backend.put(key, [json_bytes(asdict(claim))])
            replaced.append(name)
    return replaced
