"""Orphans: objects of a store that belong to no commit.

An orphan is left by a failed attempt, or it is foreign. A repair removes an orphan only if no
worker can commit it any more; foreign files are never removed.
"""

from __future__ import annotations

import re
from collections.abc import Container, Mapping
from dataclasses import dataclass

from pipeline.store import index as index_files
from pipeline.store.backend.base import Backend, final_name
from pipeline.store.coordination.lease import SHARE_LEASE
from pipeline.store.coordination.ledger import UNKNOWN_UNIT, Claim
from pipeline.store.format.layout import (
    DROPPING,
    FRAME_STATISTICS,
    FRAMES,
    GROUP,
    HUB_FILES,
    INDEX_CACHE,
    INDEX_DIR,
    INDEX_RANGES,
    LABELS_DIR,
    LEASE,
    LEASE_LOCK,
    LEDGER_DIR,
    LOG,
    PLAN,
    POOLED,
    SCALE,
    SHARES,
    Layout,
)
from pipeline.store.format.tokens import chunk_place, is_token_document
from pipeline.store.frame_statistics import frame_statistics_problem
from pipeline.store.index_ranges import RANGE_NAME
from pipeline.store.labels import GENERATION_NAME

_KNOWN_NAMES = {
    "": re.compile(
        "|".join(
            map(
                re.escape,
                (
                    PLAN,
                    INDEX_CACHE,
                    FRAME_STATISTICS,
                    LEASE,
                    LEASE_LOCK,
                    LOG,
                    SHARES,
                    DROPPING,
                    *HUB_FILES,
                ),
            )
        )
    ),
    INDEX_DIR: re.compile(r"unit-\d+\.parquet"),
    INDEX_RANGES: RANGE_NAME,
    LABELS_DIR: GENERATION_NAME,
    LEDGER_DIR: re.compile(r"slot-\d+\.(died\.)?json"),
    GROUP: re.compile(r"zarr\.json"),
    FRAMES: re.compile(r"zarr\.json"),
    POOLED: re.compile(r"zarr\.json"),
    SCALE: re.compile(r"zarr\.json"),
}
_SHARD = re.compile(rf"{re.escape(FRAMES)}/c/(\d+)/(\d+)/0")
_CHUNK = re.compile(rf"(?:{re.escape(POOLED)}|{re.escape(SCALE)})/c/(\d+)(?:/0)+")
_MARKER = re.compile(rf"{LEDGER_DIR}/slot-\d+\.trail")
_OLD_LEASE = re.compile(rf"(?:{re.escape(LEASE)}|{SHARE_LEASE.pattern})\.[^/]+\.dead")


@dataclass(frozen=True)
class Orphan:
    """An object, or the data of a slot, that belongs to no commit. Readers ignore it.

    Attributes:
        path: Key of the object, or "slot <n>" for the data of a slot.
        what: Description, for the user.
        is_garbage: Whether a repair may remove it.
        slot: Number of the slot; None for a single object.
    """

    path: str
    what: str
    is_garbage: bool
    slot: int | None = None


@dataclass(frozen=True)
class CommitState:
    """Claims and commits of a store.

    Attributes:
        claims: Claim on each slot.
        winners: Slot of each committed unit; None if its index is unreadable.
        damaged: Units whose commit is damaged and would be revoked by a repair.
        is_complete: Whether every unit of the plan is committed and none is damaged. Then no
            running attempt can commit any more.
    """

    claims: Mapping[int, Claim]
    winners: Mapping[int, int | None]
    damaged: Container[int]
    is_complete: bool


def find_orphans(backend: Backend, layout: Layout, state: CommitState) -> list[Orphan]:
    """List every object of the store and return those that belong to no commit."""
    committed = {slot for slot in state.winners.values() if slot is not None}
    found = []
    n_files: dict[int, int] = {}  # of slots without a commit
    for key in backend.list():
        slot = _slot_of(key, layout)
        if is_partial(key, layout):
            found.append(Orphan(key, "half-written file of a failed attempt", True))
        elif slot is not None:
            if _is_of_dropped_layer(key, layout):
                found.append(Orphan(key, "shard of a dropped layer", True))
            elif slot not in committed:
                n_files[slot] = n_files.get(slot, 0) + 1
        elif (place := chunk_place(key)) is not None:
            if place[1] not in committed:
                found.append(Orphan(key, "tokens of a slot without a commit", True))
        elif _MARKER.fullmatch(key):
            found.append(Orphan(key, "marker of a failed attempt", True))
        elif _OLD_LEASE.fullmatch(key):
            found.append(Orphan(key, "old lease of a driver; it is never removed", False))
        elif not _is_known(key) and not SHARE_LEASE.fullmatch(key):
            found.append(Orphan(key, "foreign file; it is never removed", False))
    for key, reason in index_files.cache_problems(backend).items():
        found.append(Orphan(key, f"{reason}; readers do without it", True))
    problem = frame_statistics_problem(backend)
    if problem:
        found.append(Orphan(FRAME_STATISTICS, f"{problem}; readers compute them again", True))
    return found + [_orphan_slot(slot, n, state) for slot, n in n_files.items()]


def is_partial(key: str, layout: Layout) -> bool:
    """Return whether a key is that of a half-written object of a store.

    Any other object with such a suffix, of a browser or of rsync, is foreign.
    """
    final = final_name(key)
    return final is not None and (
        _is_known(final) or _slot_of(final, layout) is not None or chunk_place(final) is not None
    )


def _orphan_slot(slot: int, n_files: int, state: CommitState) -> Orphan:
    """Describe a slot without a commit.

    The slot is garbage if no worker can commit it any more, running or not: its unit is committed
    in another slot, or every unit is committed.
    """
    path, claim = f"slot {slot}", state.claims.get(slot)
    if claim is None or claim.unit == UNKNOWN_UNIT:
        what = f"orphan slot of {n_files} files without a claim"
        if claim is not None:
            what = f"{n_files} files of an attempt whose claim is lost"
        return Orphan(path, what, state.is_complete, slot)
    if claim.unit not in state.winners:
        what = f"{n_files} files of an attempt at unit {claim.unit}, which is not committed"
        return Orphan(path, what, False, slot)
    if claim.unit in state.damaged:
        what = f"{n_files} files of an attempt at unit {claim.unit}, whose commit is damaged"
        return Orphan(path, what, False, slot)
    winner = state.winners[claim.unit]
    what = f"orphan slot of {n_files} files: unit {claim.unit} is committed in slot {winner}"
    return Orphan(path, what, True, slot)


def _slot_of(key: str, layout: Layout) -> int | None:
    """Return the slot that an object is data of."""
    shard = _SHARD.fullmatch(key)
    if shard and int(shard[1]) < layout.n_layers:
        return int(shard[2])
    chunk = _CHUNK.fullmatch(key)
    return int(chunk[1]) if chunk and key in layout.slot_objects(int(chunk[1])) else None


def _is_of_dropped_layer(key: str, layout: Layout) -> bool:
    shard = _SHARD.fullmatch(key)
    return shard is not None and int(shard[1]) not in layout.kept_axes


def _is_known(key: str) -> bool:
    if is_token_document(key):
        return True
    folder, _, name = key.rpartition("/")
    known = _KNOWN_NAMES.get(folder)
    return known is not None and known.fullmatch(name) is not None
