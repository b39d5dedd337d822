"""Removing what no commit speaks for: slots of attempts that died, and half-written files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from pipeline import files
from pipeline.files import PARTIAL_SUFFIX
from pipeline.store import index as index_files
from pipeline.store.coordination.ledger import read_claims
from pipeline.store.format.layout import (
    FRAMES,
    GROUP,
    INDEX_DIR,
    LEDGER_DIR,
    POOLED,
    Layout,
    trail_key,
)
from pipeline.store.write.documents import discard_slot


def sweep(root: Path, layout: Layout) -> list[int]:
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
    committed = set(index_files.committed_units(root))
    claims = read_claims(root)
    attempts = Counter(claim.unit for claim in claims)
    winners = {
        unit: index_files.read_unit(root, unit)["slot"][0].as_py()
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
        files.remove(root / trail_key(claim.slot))
        if claim.unit in winners and slot_has_data(root, layout, claim.slot):
            discard_slot(root, layout, claim.slot)
            swept.append(claim.slot)
    unclaimed = slots_on_disk(root) - {claim.slot for claim in claims}
    suspects = unclaimed.union(claim.slot for claim in failed)
    for partial in partial_files(root, layout, suspects):
        files.remove(partial)
    return swept


def partial_files(root: Path, layout: Layout, slots: Iterable[int]) -> Iterator[Path]:
    """Half-written files that a crash has left: beside the documents, and in these slots."""
    flat = ["", INDEX_DIR, LEDGER_DIR, GROUP, FRAMES, POOLED]
    folders = [root / key for key in flat]
    for slot in slots:
        keys = (*layout.shard_keys(slot), layout.pooled_key(slot))
        folders += [(root / key).parent for key in keys]
    for folder in folders:
        yield from folder.glob(f"*{PARTIAL_SUFFIX}")


def slot_has_data(root: Path, layout: Layout, slot: int) -> bool:
    """Whether there is a shard or a pooled chunk in a slot."""
    keys = (*layout.shard_keys(slot), layout.pooled_key(slot))
    return any((root / key).exists() for key in keys)


def slots_on_disk(root: Path) -> set[int]:
    """Slots that have a folder, be it empty."""
    found: set[int] = set()
    for folder in (root / FRAMES / "c" / "0", root / POOLED / "c"):
        with suppress(FileNotFoundError, NotADirectoryError):
            found.update(int(path.name) for path in folder.iterdir() if path.name.isdecimal())
    return found
