"""The ledger: claims of attempts on slots.

A claim is the exclusive creation of `ledger/slot-<n>.json` before an attempt starts. Two attempts
never share a slot, so a zombie worker cannot corrupt data. Claims outlive the driver, and so does
the number of attempts at each unit.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass

from pipeline.errors import DamagedError, StoreError
from pipeline.objects.parallel import run_parallel
from pipeline.store.backend.base import Location
from pipeline.store.backend.opening import open_backend
from pipeline.store.format.layout import FRAMES, LEDGER_DIR, POOLED, ledger_key
from pipeline.store.serialization import json_bytes

UNKNOWN_UNIT = -1
"""Unit of a claim that a repair has found unreadable: its slot stays taken."""
CLAIM_NAME = re.compile(r"slot-(\d+)\.json")


@dataclass(frozen=True)
class Claim:
    """One attempt at one unit.

    Attributes:
        slot: Slot that the attempt writes to.
        unit: Its unit, or `UNKNOWN_UNIT`.
        attempt: Number of the attempt at the unit, from 1; 0 if the unit is unknown.
        run_id: Run of the driver that made the claim.
        worker: Kind of the executor ("inline", "ray"), or "collapse" or "copy".
        time: UTC, ISO 8601.
    """

    slot: int
    unit: int
    attempt: int
    run_id: str
    worker: str
    time: str


class Ledger:
    """Claims of one store: those read at opening, and those made through this object."""

    def __init__(
        self, store: Location, claims: Iterable[Claim], n_units: int, is_shared: bool = False
    ) -> None:
        """Use `open` to read the claims of a store.

        Args:
            store: The store.
            claims: Its claims.
            n_units: Units of the plan; slots below that number belong to first attempts.
            is_shared: Whether other drivers claim slots for other units at the same time.
        """
        self._backend = open_backend(store)
        self._n_units, self._is_shared = n_units, is_shared
        self._attempts: Counter[int] = Counter()
        self._slots: set[int] = set()
        self._end = 0  # one past the last slot
        for claim in claims:
            self._add(claim)

    @classmethod
    def open(cls, store: Location, n_units: int, is_shared: bool = False) -> Ledger:
        """Read the ledger of a store.

        A slot with data but without a claim, which was damaged and removed, is never claimed again.
        """
        ledger = cls(store, read_claims(store), n_units, is_shared)
        for slot in _slots_with_data(store):
            ledger._add_slot(slot)
        return ledger

    def attempts(self, unit: int) -> int:
        """Return the number of attempts at `unit`, by this and earlier drivers."""
        return self._attempts[unit]

    @property
    def n_slots(self) -> int:
        """Required length of the slot axis."""
        return max(self._n_units, self._end)

    def claim(self, unit: int, run_id: str, worker: str, time: str) -> Claim:
        """Claim a slot for the next attempt at `unit`.

        The first attempt takes slot `unit`, every later one a new slot at the end.

        Raises:
            StoreError: Another driver claims slots of this store at the same time.
        """
        attempt = self.attempts(unit) + 1
        slot = unit if attempt == 1 and unit not in self._slots else self.n_slots
        while True:
            claim = Claim(slot, unit, attempt, run_id, worker, time)
            if self._backend.put_if_absent(ledger_key(slot), [json_bytes(asdict(claim))]):
                self._add(claim)
                return claim
            if not self._is_shared or self._unit_of(slot) == unit:
                raise StoreError(
                    f"slot {slot} was claimed by another driver while this run held the store; "
                    "make sure that only one driver runs, then start it again"
                )
            self._add_slot(slot)  # of another driver's unit: the next one
            slot = self.n_slots

    def _unit_of(self, slot: int) -> int:
        """Return the unit of a claim that another driver has just made."""
        claim = json.loads(self._backend.read(ledger_key(slot)))
        return int(claim["unit"])

    def grow(self, n_units: int) -> None:
        """Extend the slots of first attempts to a plan with more units."""
        self._n_units = max(self._n_units, n_units)

    def _add(self, claim: Claim) -> None:
        self._attempts[claim.unit] += 1
        self._add_slot(claim.slot)

    def _add_slot(self, slot: int) -> None:
        self._slots.add(slot)
        self._end = max(self._end, slot + 1)


def _slots_with_data(store: Location) -> set[int]:
    backend = open_backend(store)
    axes = backend.children(f"{FRAMES}/c")  # the first layer may have been dropped
    folders = [f"{POOLED}/c", *(f"{FRAMES}/c/{axis}" for axis in axes)]
    names = (name for folder in folders for name in backend.children(folder))
    return {int(name) for name in names if name.isdecimal()}


def read_claims(store: Location) -> list[Claim]:
    """Read all claims of a store, by slot.

    Raises:
        DamagedError: A claim is unreadable.
    """
    backend = open_backend(store)
    claims = []
    names = [name for name in backend.children(LEDGER_DIR) if CLAIM_NAME.fullmatch(name)]
    keys = [f"{LEDGER_DIR}/{name}" for name in names]
    contents = run_parallel(backend.read, keys, backend.parallel_reads)
    for key, content in zip(keys, contents, strict=True):
        try:
            claim = Claim(**json.loads(content))
        except (ValueError, TypeError) as error:
            raise DamagedError(
                f"{backend.locate(key)} is not a readable claim; run `strata verify --repair`"
            ) from error
        if key != ledger_key(claim.slot):
            raise DamagedError(
                f"{backend.locate(key)} claims slot {claim.slot}; run `strata verify --repair`"
            )
        claims.append(claim)
    return sorted(claims, key=lambda claim: claim.slot)
