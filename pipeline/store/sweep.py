"""Removing what no commit speaks for: slots of attempts that died, and half-written files."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pyarrow.compute as pc

from pipeline.store import index as index_files
from pipeline.store.layout import FRAMES, INDEX_DIR, PARTIAL_SUFFIX, POOLED, Layout
from pipeline.store.ledger import read_claims
from pipeline.store.writer import discard_slot


def sweep(root: Path, layout: Layout) -> list[int]:
    """Removes the garbage of dead attempts.

    Only for the driver that holds the lease, with no worker of its own at work. An orphan of
    another run that still writes loses the race for its unit and removes its own slot.

    Returns:
        The slots that were swept.
    """
    table = index_files.read_index(root)
    kept = set(pc.unique(table["slot"]).to_pylist())
    garbage = [claim.slot for claim in read_claims(root) if claim.slot not in kept]
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
    yield from (root / FRAMES).rglob(f"*{PARTIAL_SUFFIX}")
    yield from (root / POOLED).rglob(f"*{PARTIAL_SUFFIX}")
