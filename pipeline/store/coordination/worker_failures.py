"""Records of failed attempts, and the search for the utterances that caused them.

After `FAILURE_LIMIT` failed attempts a unit is isolated: the worker first encodes its utterances
one by one, and names each in a marker before it starts. An utterance that is named by the markers
of `FAILURE_LIMIT` failed attempts is a culprit: it is quarantined, and the rest of its unit
commits. The records are files of the ledger, so they outlive the driver. Only a running driver
writes one: neither its own failure nor the loss of a node counts against a unit.
"""

from __future__ import annotations

import faulthandler
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from fnmatch import fnmatch
from types import TracebackType
from typing import IO, Any, Self

from pipeline import files
from pipeline.errors import StoreError
from pipeline.store.backend.base import Location
from pipeline.store.backend.opening import open_backend
from pipeline.store.format.layout import LEDGER_DIR, failure_key, marker_key
from pipeline.store.serialization import json_bytes

DIED, HUNG, FAILED = "died", "hung", "failed"
FAILURE_LIMIT = 2
"""Failures after which a unit is isolated, and after which an utterance is quarantined."""

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
class WorkerFailure:
    """One failed attempt.

    Attributes:
        slot: Slot of the attempt.
        unit: Number of the unit.
        cause: died, hung or failed.
        detail: The signal, the time limit or the error.
        position: Position in the unit of the utterance that the marker named; None without one.
        id: Id of that utterance.
        run_id: Run of the driver that recorded the failure.
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
class Isolation:
    """How to run a unit whose utterances must be tried one by one.

    Attributes:
        start: Position of the first utterance to try; those before it have passed.
        culprits: Quarantine reason of each culprit, by position.
    """

    start: int = 0
    culprits: Mapping[int, str] = field(default_factory=dict)


def isolate(failures: Sequence[WorkerFailure]) -> Isolation | None:
    """Return how to isolate a unit with these failures; None if they are too few for that."""
    if len(failures) < FAILURE_LIMIT:
        return None
    marked = [(item.position, item) for item in failures if item.position is not None]
    counts = Counter(position for position, _ in marked)
    culprits = {
        position: _REASONS.get(item.cause, "{}").format(item.detail)
        for position, item in marked
        if counts[position] >= FAILURE_LIMIT
    }
    return Isolation(max(counts, default=0), culprits)


def record_failure(store: Location, failure: WorkerFailure) -> None:
    """Add a failure to the ledger; the first record for a slot is final."""
    key = failure_key(failure.slot)
    open_backend(store).put_if_absent(key, [json_bytes(asdict(failure))])


def read_failures(store: Location) -> dict[int, list[WorkerFailure]]:
    """Read the failures of each unit, ordered by slot; unreadable records are skipped."""
    backend = open_backend(store)
    found: dict[int, list[WorkerFailure]] = {}
    for name in backend.children(LEDGER_DIR):
        if not fnmatch(name, "slot-*.died.json"):
            continue
        with suppress(OSError, ValueError, TypeError):
            failure = WorkerFailure(**json.loads(backend.read(f"{LEDGER_DIR}/{name}")))
            found.setdefault(failure.unit, []).append(failure)
    return {unit: sorted(items, key=lambda item: item.slot) for unit, items in found.items()}


class UtteranceMarker:
    """Names the utterance that an isolated attempt is at, in a file that outlives its process.

    The marker is removed when the `with` block ends well, and left when it ends in an error or the
    process dies. Where the store's objects are files of this machine, Python's fault handler
    appends the signal that the process received.
    """

    def __init__(self, store: Location, slot: int) -> None:
        self._backend, self._key = open_backend(store), marker_key(slot)
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

    def set(self, position: int, name: str) -> None:
        """Name the utterance that is encoded next: its position in the unit, and its id."""
        line = json.dumps({"position": position, "id": name}).encode() + b"\n"
        if self._path is None or self._file is None:
            self._backend.put(self._key, [line])
            return
        with files.store_errors(self._path):
            self._file.seek(0)
            self._file.truncate()
            files.write_all(self._file, line)


def take_marker(store: Location, slot: int) -> tuple[int | None, str | None, str]:
    """Read and remove the marker of an attempt that has ended.

    Returns:
        Position and id of the utterance, None without a marker; and the signal that its process
        received, empty if it is unknown.
    """
    backend, key = open_backend(store), marker_key(slot)
    try:
        line, _, rest = backend.read(key).decode(errors="replace").partition("\n")
        marked: dict[str, Any] = json.loads(line)
        backend.delete(key)
    except (OSError, ValueError, StoreError):
        return None, None, ""
    fault = rest.partition("Fatal Python error: ")[2].partition("\n")[0].strip()
    return marked.get("position"), marked.get("id"), _SIGNALS.get(fault, fault)
