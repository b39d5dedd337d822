"""Who has attempted what: the claims on slots.

A claim is the exclusive creation of `ledger/slot-<n>.json` before an attempt starts. Two attempts
never share a slot, so an orphaned worker that goes on writing can damage nobody. Claims outlive
the driver, and with them the number of attempts at each unit.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass

from pipeline.errors import DamagedError, StoreError
from pipeline.store.backend.base import Location
from pipeline.store.backend.opening import open_backend
from pipeline.store.format.layout import FRAMES, LEDGER_DIR, ledger_key
from pipeline.store.serialization import json_bytes

LOST = -1
"""The unit of a claim whose content is lost: its slot is taken, and nobody knows for which unit."""
CLAIM_NAME = re.compile(r"slot-(\d+)\.json")


@dataclass(frozen=True)
class Claim:
    """One attempt at one unit.

    Attributes:
        slot: Where it writes.
        unit: What it does; `LOST` if a repair has found the claim unreadable.
        attempt: 1 for the first attempt at the unit.
        run_id: Run of the driver that claimed it.
        worker: Name of the worker it was given to.
        time: UTC, ISO 8601.
    """

    slot: int
    unit: int
    attempt: int
    run_id: str
    worker: str
    time: str


class Ledger:
    """The claims of one store; holds what is on disk and adds to it."""

    def __init__(self, store: Location, claims: Iterable[Claim], n_units: int) -> None:
        """Knows `claims` already; slots below `n_units` belong to first attempts."""
        self._backend = open_backend(store)
        self._n_units = n_units
        self._attempts: Counter[int] = Counter()
        self._slots: set[int] = set()
        self._end = 0  # one past the last slot
        for claim in claims:
            self._remember(claim)

    @classmethod
    def open(cls, store: Location, n_units: int) -> Ledger:
        """Read the ledger of a store.

        A slot that has data without a claim (one that was damaged and removed) is never given out.
        """
        ledger = cls(store, read_claims(store), n_units)
        for slot in _slots_with_data(store):
            ledger._take(slot)
        return ledger

    def attempts(self, unit: int) -> int:
        """Attempts at `unit` so far, by this and earlier drivers."""
        return self._attempts[unit]

    @property
    def n_slots(self) -> int:
        """Length that the slot axis needs."""
        return max(self._n_units, self._end)

    def claim(self, unit: int, run_id: str, worker: str, time: str) -> Claim:
        """Claims a slot for the next attempt at `unit`: slot `unit` at first, a spare one after.

        Raises:
            StoreError: Somebody else claims slots of this store at the same time.
        """
        attempt = self.attempts(unit) + 1
        slot = unit if attempt == 1 and unit not in self._slots else self.n_slots
        claim = Claim(slot, unit, attempt, run_id, worker, time)
        if not self._backend.put_if_absent(ledger_key(slot), [json_bytes(asdict(claim))]):
            raise StoreError(
                f"slot {slot} was claimed by somebody else while this run held the store; "
                "make sure that only one driver runs, then start it again"
            )
        self._remember(claim)
        return claim

    def grow(self, n_units: int) -> None:
        """Takes note of further units."""
        self._n_units = max(self._n_units, n_units)

    def _remember(self, claim: Claim) -> None:
        self._attempts[claim.unit] += 1
        self._take(claim.slot)

    def _take(self, slot: int) -> None:
        self._slots.add(slot)
        self._end = max(self._end, slot + 1)


def _slots_with_data(store: Location) -> set[int]:
    names = open_backend(store).children(f"{FRAMES}/c/0")
    return {int(name) for name in names if name.isdecimal()}


def read_claims(store: Location) -> list[Claim]:
    """Read all claims of a store, by slot.

    Raises:
        DamagedError: A claim is not readable.
    """
    backend = open_backend(store)
    claims = []
    for name in backend.children(LEDGER_DIR):
        match = CLAIM_NAME.fullmatch(name)
        if not match:
            continue
        key = f"{LEDGER_DIR}/{name}"
        try:
            claim = Claim(**json.loads(backend.read(key)))
        except (ValueError, TypeError) as error:
            raise DamagedError(
                f"{backend.locate(key)} is not a readable claim; run `strata verify --repair`"
            ) from error
        if claim.slot != int(match[1]):
            raise DamagedError(
                f"{backend.locate(key)} claims slot {claim.slot}; run `strata verify --repair`"
            )
        claims.append(claim)
    return sorted(claims, key=lambda claim: claim.slot)
