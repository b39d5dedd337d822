"""Removing what no commit speaks for: slots of attempts that died, and half-written files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import suppress

from pipeline.store import index as index_files
from pipeline.store.backend.base import PARTIAL_SUFFIX, Backend, Location
from pipeline.store.backend.opening import open_backend
from pipeline.store.coordination.ledger import read_claims
from pipeline.store.format.layout import (
    FRAMES,
    GROUP,
    INDEX_DIR,
    LEDGER_DIR,
    POOLED,
    Layout,
    marker_key,
)
from pipeline.store.write.documents import discard_slot


def sweep(store: Location, layout: Layout) -> list[int]:
    """Removes the garbage of dead attempts.

    Only for the driver that holds the lease, with no worker of its own at work. A slot is garbage
    once its unit is committed in another one: an orphan that still writes there can only lose.
    While a unit is not committed its slots are left alone, since an orphan may yet commit one of
    them. What counts is read from the unit's own file, never from the compaction. What it costs
    grows with the attempts that failed, not with the store.

    Returns:
        The slots that were swept.

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
    swept = []
    for claim in failed:
        backend.delete(marker_key(claim.slot))
        if claim.unit in winners and slot_has_data(backend, layout, claim.slot):
            discard_slot(backend, layout, claim.slot)
            swept.append(claim.slot)
    unclaimed = slots_on_disk(backend) - {claim.slot for claim in claims}
    suspects = unclaimed.union(claim.slot for claim in failed)
    for key in partial_files(backend, layout, suspects):
        backend.delete(key)
    return swept


def partial_files(backend: Backend, layout: Layout, slots: Iterable[int]) -> Iterator[str]:
    """Half-written files that a crash has left: beside the documents, and in these slots."""
    folders = ["", INDEX_DIR, LEDGER_DIR, GROUP, FRAMES, POOLED]
    for slot in slots:
        keys = (*layout.shard_keys(slot), layout.pooled_key(slot))
        folders += [key.rpartition("/")[0] for key in keys]
    for folder in folders:
        names = [name for name in backend.children(folder) if name.endswith(PARTIAL_SUFFIX)]
        yield from (f"{folder}/{name}" if folder else name for name in names)


def slot_has_data(backend: Backend, layout: Layout, slot: int) -> bool:
    """Whether there is a shard or a pooled chunk in a slot."""
    keys = (*layout.shard_keys(slot), layout.pooled_key(slot))
    return any(backend.exists(key) for key in keys)


def slots_on_disk(backend: Backend) -> set[int]:
    """Slots that have a folder, be it empty."""
    found: set[int] = set()
    for folder in (f"{FRAMES}/c/0", f"{POOLED}/c"):
        with suppress(NotADirectoryError):
            found.update(int(name) for name in backend.children(folder) if name.isdecimal())
    return found
