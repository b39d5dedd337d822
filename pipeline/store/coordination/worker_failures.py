"""How attempts died, and whom that makes suspect.

A unit that took two workers with it is done carefully: the worker encodes its utterances one by
one, and before each leaves word of it on a trail. An utterance that stands on the trail of two
dead attempts is guilty: it is quarantined, and the rest of its unit commits. Deaths are files of
the ledger, so suspicion survives the driver. Only a driver that lives records one: its own death,
or the loss of a node, is held against nobody.
"""

from __future__ import annotations

import faulthandler
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from fnmatch import fnmatch
from types import TracebackType
from typing import IO, Any, Self

from pipeline import files
from pipeline.errors import StoreError
from pipeline.store.backend.base import Location
from pipeline.store.backend.opening import open_backend
from pipeline.store.format.layout import LEDGER_DIR, death_key, trail_key
from pipeline.store.serialization import json_bytes

DIED, HUNG, FAILED = "died", "hung", "failed"
DEATHS_TO_SUSPECT = 2
"""Deaths of a unit after which it is done carefully, and of an utterance after which it is out."""

_REASONS = {
    DIED: "killed its worker twice ({})",
    HUNG: "held its worker twice for more than {}",
    FAILED: "failed twice ({})",
}
_SIGNALS = {
    "Segmentation fault": "SIGSEGV",
    "Aborted": "SIGABRT",
    "Bus error": "SIGBUS",
    "Floating-point exception": "SIGFPE",
    "Illegal instruction": "SIGILL",
}


@dataclass(frozen=True)
class Death:
    """How one attempt ended that did not end well.

    Attributes:
        slot: The attempt's slot.
        unit: The unit.
        cause: died, hung or failed.
        detail: The signal, the limit or the error.
        position: The utterance in hand, if the attempt was a careful one; its place in the unit.
        id: Its id.
        run_id: Run of the driver that saw it.
        time: UTC, ISO 8601.
    """

    slot: int
    unit: int
    cause: str
    detail: str
    position: int | None
    id: str | None
    run_id: str
    time: str


@dataclass(frozen=True)
class Probation:
    """How to do a unit that is under suspicion.

    Attributes:
        start: Position of the first utterance to try alone; those before it have passed.
        guilty: Reason for each position that is to be quarantined.
    """

    start: int = 0
    guilty: Mapping[int, str] = field(default_factory=dict)


def judge(deaths: Sequence[Death]) -> Probation | None:
    """What follows from the deaths of one unit; None as long as it is no suspect."""
    if len(deaths) < DEATHS_TO_SUSPECT:
        return None
    named = [death for death in deaths if death.position is not None]
    counts = Counter(death.position for death in named)
    guilty = {
        death.position: _REASONS.get(death.cause, "{}").format(death.detail)
        for death in named
        if death.position is not None and counts[death.position] >= DEATHS_TO_SUSPECT
    }
    return Probation(max((d.position for d in named if d.position is not None), default=0), guilty)


def record_death(store: Location, death: Death) -> None:
    """Keeps a death, once and for all drivers to come."""
    open_backend(store).put_if_absent(death_key(death.slot), [json_bytes(asdict(death))])


def read_deaths(store: Location) -> dict[int, list[Death]]:
    """The deaths of each unit, by slot; one that cannot be read accuses nobody."""
    backend = open_backend(store)
    found: dict[int, list[Death]] = {}
    for name in backend.children(LEDGER_DIR):
        if not fnmatch(name, "slot-*.died.json"):
            continue
        with suppress(OSError, ValueError, TypeError):
            death = Death(**json.loads(backend.read(f"{LEDGER_DIR}/{name}")))
            found.setdefault(death.unit, []).append(death)
    return {unit: sorted(deaths, key=lambda death: death.slot) for unit, deaths in found.items()}


def forget_deaths(store: Location, units: Iterable[int]) -> None:
    """Gives units another chance: what is known against them is removed."""
    backend, pardoned = open_backend(store), set(units)
    for unit, deaths in read_deaths(backend).items():
        for death in deaths if unit in pardoned else ():
            backend.delete(death_key(death.slot))


class Trail:
    """Says which utterance a careful attempt has in hand, in a file that outlives its process.

    Left behind if the block ends in an error or the process dies. Where the store's objects are
    files of this machine, Python's fault handler adds the signal that the process catches.
    """

    def __init__(self, store: Location, slot: int) -> None:
        self._backend, self._key = open_backend(store), trail_key(slot)
        self._path = self._backend.local_path(self._key)
        self._file: IO[bytes] | None = None

    def __enter__(self) -> Self:
        if self._path is not None:
            with files.store_errors(self._path):
                self._file = self._path.open("wb", buffering=0)
            faulthandler.enable(self._file, all_threads=False)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._file is not None:
            faulthandler.disable()
            with suppress(Exception):  # a captured stderr may have no descriptor
                faulthandler.enable()
            self._file.close()
        if error is None:
            self._backend.delete(self._key)

    def at(self, position: int, name: str) -> None:
        """Notes the utterance that is about to be tried."""
        line = json.dumps({"position": position, "id": name}).encode() + b"\n"
        if self._path is None or self._file is None:
            self._backend.put(self._key, [line])
            return
        with files.store_errors(self._path):
            self._file.seek(0)
            self._file.truncate()
            self._file.write(line)


def take_trail(store: Location, slot: int) -> tuple[int | None, str | None, str]:
    """Reads and removes the trail of an attempt that has ended.

    Returns:
        Position and id of the utterance in hand, None if there was none, and the signal that its
        process caught, if any.
    """
    backend, key = open_backend(store), trail_key(slot)
    try:
        line, _, rest = backend.read(key).decode(errors="replace").partition("\n")
        word: dict[str, Any] = json.loads(line)
        backend.delete(key)
    except (OSError, ValueError, StoreError):
        return None, None, ""
    fault = rest.partition("Fatal Python error: ")[2].partition("\n")[0].strip()
    return word.get("position"), word.get("id"), _SIGNALS.get(fault, fault)
