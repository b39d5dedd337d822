"""Removal of what failed attempts leave: data in slots, markers and partial files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import suppress

from pipeline.store import index as index_files
from pipeline.store.backend.base import Backend, Location
from pipeline.store.backend.opening import open_backend
from pipeline.store.coordination.ledger import read_claims
from pipeline.store.format.layout import (
    FRAMES,
    GROUP,
    INDEX_DIR,
    LABELS_DIR,
    LEDGER_DIR,
    POOLED,
    SCALE,
    Layout,
    marker_key,
)
from pipeline.store.maintain.orphans import is_partial
from pipeline.store.write.slot import discard_slot


def remove_leftovers(store: Location, layout: Layout) -> list[int]:
    """Remove the leftovers of failed attempts.

    The caller must hold the lease and have no running worker. A slot is garbage once its unit is
    committed in another slot: a zombie worker that still writes to it cannot commit. The slots of
    uncommitted units are kept, because a zombie worker may still commit one of them. The winning
    slot is read from the unit's own file, not from `index.parquet`. The cost grows with the number
    of failed attempts, not with the store.

    Returns:
        The slots whose data were removed.

    Raises:
        StoreError: The store cannot be written any more.
    """
    backend = open_backend(store)
    committed = set(index_files.committed_units(backend))
    claims = read_claims(backend)
    attempts = Counter(claim.unit for claim in claims)
    winners = {
        unit: index_files.read_unit(backend, unit)["slot"][0].as_py()
        for unit in committed
        if attempts[unit] > 1
    }
    failed = [
        claim
        for claim in claims
        if claim.unit not in committed or winners.get(claim.unit, claim.slot) != claim.slot
    ]
    removed = []
    for claim in failed:
        backend.delete(marker_key(claim.slot))
        if claim.unit in winners and slot_has_data(backend, layout, claim.slot):
            discard_slot(backend, layout, claim.slot)
            removed.append(claim.slot)
    unclaimed = slots_on_disk(backend) - {claim.slot for claim in claims}
    for key in partial_files(backend, layout, unclaimed.union(claim.slot for claim in failed)):
        backend.delete(key)
    return removed


def partial_files(backend: Backend, layout: Layout, slots: Iterable[int]) -> Iterator[str]:
    """Yield the partial files that a crash has left beside the documents and in some slots."""
    folders = ["", INDEX_DIR, LEDGER_DIR, LABELS_DIR, GROUP, *layout.arrays]
    for slot in slots:
        folders += [key.rpartition("/")[0] for key in layout.slot_objects(slot)]
    for folder in folders:
        names = backend.children(folder)
        found = (f"{folder}/{name}" if folder else name for name in names)
        yield from (key for key in found if is_partial(key, layout))


def slot_has_data(backend: Backend, layout: Layout, slot: int) -> bool:
    """Return whether a slot has an object."""
    return any(backend.exists(key) for key in layout.slot_objects(slot))


def slots_on_disk(backend: Backend) -> set[int]:
    """Return the slots that have a folder, even an empty one."""
    found: set[int] = set()
    axes = backend.children(f"{FRAMES}/c")
    for folder in (*(f"{FRAMES}/c/{axis}" for axis in axes), f"{POOLED}/c", f"{SCALE}/c"):
        with suppress(NotADirectoryError):
            found.update(int(name) for name in backend.children(folder) if name.isdecimal())
    return found
