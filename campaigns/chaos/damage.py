"""Damage to a store between runs, as bad disks, mistakes and crashes cause it."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial
from pathlib import Path

from pipeline.store.format.layout import (
    ATTRIBUTES,
    FRAMES,
    GROUP,
    INDEX_CACHE,
    INDEX_DIR,
    LEDGER_DIR,
    LOG,
    PLAN,
    POOLED,
    index_key,
    ledger_key,
)
from pipeline.store.index import committed_units

FILES = {
    "a shard": f"{FRAMES}/c/*/*/0",
    "a pooled chunk": f"{POOLED}/c/*/0/0/0",
    "the document of the group": ATTRIBUTES,
    "the document of an array": f"{GROUP}/*/zarr.json",
    "the plan": PLAN,
    "a unit's index": f"{INDEX_DIR}/unit-*.parquet",
    "the index cache": INDEX_CACHE,
    "a claim": f"{LEDGER_DIR}/slot-*.json",
    "the log": LOG,
}
"""Files of a store, by the patterns of their names."""


class Damager:
    """Damages a store at a random place. Each kind returns whether it happened."""

    def __init__(self, store: Path, rng: random.Random) -> None:
        self.store = store
        self.rng = rng
        self.kinds: dict[str, Callable[[], bool]] = {
            **{f"bit flipped in {name}": partial(self.flip_one, name) for name in FILES},
            "truncated shard": self.truncated_shard,
            "bit flipped in a shard's index": lambda: self.flip(self.shard(), "tail"),
            "missing shard": lambda: self.remove(self.shard()),
            "missing index file": lambda: self.remove(self.index()),
            "torn index file": self.torn_index,
            "torn index cache": self.torn_cache,
            "missing index cache": lambda: self.remove(self.cache()),
            "foreign file": self.foreign,
            "orphan slot": self.orphan_slot,
            "half-written leftovers": self.partials,
            "unreadable claim": self.unreadable_claim,
        }

    def shard(self) -> Path | None:
        """Choose a shard."""
        found = sorted((self.store / FRAMES / "c").glob("*/*/0"))
        return self.rng.choice(found) if found else None

    def flip_one(self, name: str) -> bool:
        """Flip one bit of a file of one kind."""
        found = sorted(self.store.glob(FILES[name]))
        return self.flip(self.rng.choice(found) if found else None, "data")

    def index(self) -> Path | None:
        """Choose a commit."""
        units = committed_units(self.store)
        return self.store / index_key(self.rng.choice(units)) if units else None

    def cache(self) -> Path | None:
        """Return the compaction of all commits, which holds nothing that the commits do not."""
        path = self.store / INDEX_CACHE
        return path if path.exists() else None

    def remove(self, path: Path | None) -> bool:
        """Remove a file."""
        if path is None:
            return False
        path.unlink()
        return True

    def flip(self, path: Path | None, where: str) -> bool:
        """Flip one bit."""
        if path is None or not path.stat().st_size:
            return False
        raw = bytearray(path.read_bytes())
        low = max(0, len(raw) - 60) if where == "tail" else 0
        at = self.rng.randrange(low, len(raw))
        raw[at] ^= 1 << self.rng.randrange(8)
        path.write_bytes(raw)
        return True

    def truncated_shard(self) -> bool:
        """Truncate a shard."""
        path = self.shard()
        if path is None:
            return False
        raw = path.read_bytes()
        path.write_bytes(raw[: self.rng.randrange(len(raw))])
        return True

    def torn_index(self) -> bool:
        """Truncate a commit."""
        path = self.index()
        if path is None:
            return False
        raw = path.read_bytes()
        path.write_bytes(raw[: self.rng.randrange(len(raw))])
        return True

    def torn_cache(self) -> bool:
        """Truncate the compaction, which loses nothing."""
        path = self.cache()
        if path is None:
            return False
        path.write_bytes(path.read_bytes()[:-7])
        return True

    def foreign(self) -> bool:
        """Add a file that is not the store's."""
        folder = self.rng.choice([INDEX_DIR, LEDGER_DIR, GROUP, f"{FRAMES}/c/0", ""])
        (self.store / folder / f"notes-{self.rng.randrange(10**6)}.txt").write_text("hello")
        return True

    def orphan_slot(self) -> bool:
        """Write data into a slot that has no claim."""
        claimed = [int(path.stem[5:]) for path in self.claims()]
        slot = max(claimed, default=0) + 5 + self.rng.randrange(5)
        for axis in range(2):
            path = self.store / FRAMES / "c" / str(axis) / str(slot) / "0"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"orphan")
        return True

    def partials(self) -> bool:
        """Add half-written files."""
        for key in (index_key(0), ledger_key(0), f"{FRAMES}/c/1/0/0", PLAN):
            path = self.store / f"{key}.{self.rng.getrandbits(128):032x}.partial"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"half")
        return True

    def unreadable_claim(self) -> bool:
        """Empty a claim, as a power failure may."""
        paths = self.claims()
        if not paths:
            return False
        self.rng.choice(paths).write_text("")
        return True

    def claims(self) -> list[Path]:
        """Return the files of all claims, readable or not."""
        found = (self.store / LEDGER_DIR).glob("slot-*.json")
        return sorted(path for path in found if "died" not in path.name)
