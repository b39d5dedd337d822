"""Removing what no commit speaks for: slots of attempts that died, and half-written files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from pipeline.store import index as index_files
from pipeline.store.layout import FRAMES, INDEX_DIR, LEDGER_DIR, PARTIAL_SUFFIX, POOLED, Layout
from pipeline.store.ledger import read_claims
from pipeline.store.writer import discard_slot


def sweep(root: Path, layout: Layout) -> list[int]:
    """Removes the garbage of dead attempts.

    Only for the driver that holds the lease, with no worker of its own at work. A slot is garbage
    once its unit is committed in another one: an orphan that still writes there can only lose.
    While a unit is not committed its slots are left alone, since an orphan may yet commit one of
    them. What counts is read from the unit's own file, never from the compaction.

    Returns:
        The slots that were swept.
    """
    committed = set(index_files.committed_units(root))
    claims = read_claims(root)
    attempts = Counter(claim.unit for claim in claims)
    winners = {
        unit: index_files.read_unit(root, unit)["slot"][0].as_py()
        for unit in committed
        if attempts[unit] > 1
    }
    garbage = [
        claim.slot
        for claim in claims
        if claim.unit in winners and claim.slot != winners[claim.unit]
    ]
    swept = []
    for slot in garbage:
        keys = (*layout.shard_keys(slot), layout.pooled_key(slot))
        if any((root / key).exists() for key in keys):
            discard_slot(root, layout, slot)
            swept.append(slot)
    for partial in partial_files(root):
        partial.unlink(missing_ok=True)
    return swept


def partial_files(root: Path) -> Iterator[Path]:
    """Half-written files that a crash has left."""
    yield from root.glob(f"*{PARTIAL_SUFFIX}")
    yield from (root / INDEX_DIR).glob(f"*{PARTIAL_SUFFIX}")
    yield from (root / LEDGER_DIR).glob(f"*{PARTIAL_SUFFIX}")
    yield from (root / FRAMES).rglob(f"*{PARTIAL_SUFFIX}")
    yield from (root / POOLED).rglob(f"*{PARTIAL_SUFFIX}")
