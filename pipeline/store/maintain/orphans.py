"""Files in a store that no commit speaks for: leftovers of dead attempts, and foreign ones."""

from __future__ import annotations

import re
from collections.abc import Container, Mapping
from dataclasses import dataclass

from pipeline.store.backend.base import PARTIAL_SUFFIX, Backend
from pipeline.store.coordination.ledger import LOST, Claim
from pipeline.store.format.layout import (
    FRAMES,
    GROUP,
    INDEX_CACHE,
    INDEX_DIR,
    LEASE,
    LEASE_LOCK,
    LEDGER_DIR,
    LOG,
    PLAN,
    POOLED,
    Layout,
)

_KNOWN = {
    "": re.compile("|".join(map(re.escape, (PLAN, INDEX_CACHE, LEASE, LEASE_LOCK, LOG)))),
    INDEX_DIR: re.compile(r"unit-\d+\.parquet"),
    LEDGER_DIR: re.compile(r"slot-\d+\.(died\.)?json"),
    GROUP: re.compile(r"zarr\.json"),
    FRAMES: re.compile(r"zarr\.json"),
    POOLED: re.compile(r"zarr\.json"),
}
_SHARD = re.compile(rf"{re.escape(FRAMES)}/c/(\d+)/(\d+)/0")
_CHUNK = re.compile(rf"{re.escape(POOLED)}/c/(\d+)/0/0/0")
_TRAIL = re.compile(rf"{LEDGER_DIR}/slot-\d+\.trail")


@dataclass(frozen=True)
class Stray:
    """A file that does not belong to what is committed; it does no harm to readers.

    Attributes:
        path: Relative to the store.
        what: What it is, in words.
        is_garbage: Whether a repair may remove it. Foreign files are never removed.
        slot: The slot it lies in, if it is one's data.
    """

    path: str
    what: str
    is_garbage: bool
    slot: int | None = None


@dataclass(frozen=True)
class Attempts:
    """Who has written to the store, and what has come of it.

    Attributes:
        claims: By slot.
        winners: Slot of each committed unit; None where its index is not readable.
        damaged: Units whose commit is damaged, so that a repair takes it back.
        is_complete: Whether every unit of the plan is committed, and none is damaged: then no
            attempt that is still alive can commit.
    """

    claims: Mapping[int, Claim]
    winners: Mapping[int, int | None]
    damaged: Container[int]
    is_complete: bool


def find_strays(backend: Backend, layout: Layout, attempts: Attempts) -> list[Stray]:
    """Walks the whole store."""
    committed = {slot for slot in attempts.winners.values() if slot is not None}
    found = []
    orphans: dict[int, int] = {}
    for path in backend.list():
        slot = _slot_of(path, layout)
        if path.endswith(PARTIAL_SUFFIX):
            found.append(Stray(path, "half-written file of a dead attempt", True))
        elif slot is not None:
            if slot not in committed:
                orphans[slot] = orphans.get(slot, 0) + 1
        elif _TRAIL.fullmatch(path):
            found.append(Stray(path, "trail of a dead attempt", True))
        elif not _is_known(path):
            found.append(Stray(path, "foreign file; it is left alone", False))
    return found + [_orphan(slot, n, attempts) for slot, n in orphans.items()]


def _orphan(slot: int, n_files: int, attempts: Attempts) -> Stray:
    """Says whose slot it is; garbage only if the attempt can but lose, should it still be alive."""
    path, claim = f"slot {slot}", attempts.claims.get(slot)
    if claim is None or claim.unit == LOST:
        what = f"orphan slot of {n_files} files that nobody claimed"
        if claim is not None:
            what = f"{n_files} files of an attempt whose claim is lost"
        return Stray(path, what, attempts.is_complete, slot)
    if claim.unit not in attempts.winners:
        what = f"{n_files} files of an attempt at unit {claim.unit}, which is not committed"
        return Stray(path, what, False, slot)
    if claim.unit in attempts.damaged:
        what = f"{n_files} files of an attempt at unit {claim.unit}, whose commit is damaged"
        return Stray(path, what, False, slot)
    winner = attempts.winners[claim.unit]
    what = f"orphan slot of {n_files} files: unit {claim.unit} is committed in slot {winner}"
    return Stray(path, what, True, slot)


def _slot_of(path: str, layout: Layout) -> int | None:
    """The slot of which a file is data."""
    shard = _SHARD.fullmatch(path)
    if shard and int(shard[1]) < layout.n_layers:
        return int(shard[2])
    chunk = _CHUNK.fullmatch(path)
    return int(chunk[1]) if chunk else None


def _is_known(path: str) -> bool:
    folder, _, name = path.rpartition("/")
    known = _KNOWN.get(folder)
    return known is not None and known.fullmatch(name) is not None
