"""Contract of an executor, which runs units on workers and reports how each attempt ended."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from pipeline.errors import StrataError
from pipeline.extract.messages import DeviceLostError, UnitReport, UnitTask


def units_per_worker(device: str) -> int:
    """Return the maximum number of units that a worker has at a time.

    On a CPU two: one is encoded; the other is decoded or, if it is the older one, committed. On a
    GPU, where a unit may take less time to encode than to commit, three: one is committed, one
    encoded and one decoded, so that no stage waits for the driver. More would make a failure of
    the worker cost more.

    Args:
        device: "cpu" or "cuda".
    """
    return 3 if device == "cuda" else 2


class Cause(StrEnum):
    """Why an attempt failed. The values are written to the run log and the ledger."""

    DIED = "died"
    """Its worker process died, or the GPU of that process failed."""
    HUNG = "hung"
    """It exceeded its time limit, and its worker was stopped."""
    FAILED = "failed"
    """It raised an exception."""
    LOST = "lost"
    """Its node was lost; the unit is not the cause."""
    SHARED = "shared"
    """Its worker was stopped because another unit hung; this unit is not the cause."""


@dataclass(frozen=True)
class Outcome:
    """Result of an attempt: a report or an error.

    Attributes:
        task: The attempt.
        report: Report of the unit; None if the attempt failed.
        error: Reason of the failure; None on success. A retry would raise a `StrataError` again.
        cause: Category of the failure; None on success.
        detail: The exceeded limit or the exception, for the record of the failure.
        is_ambiguous: Whether the dead worker held another unit too, so either may be the culprit.
    """

    task: UnitTask
    report: UnitReport | None = None
    error: Exception | None = None
    cause: Cause | None = None
    detail: str = ""
    is_ambiguous: bool = False


class UnitWorker(Protocol):
    """Interface of a worker; `pipeline.extract.worker.Worker` implements it."""

    def prefetch(self, task: UnitTask) -> None:
        """Start decoding a unit; called from any thread."""

    def begin(self, task: UnitTask) -> Future[UnitReport]:
        """Encode a unit; the future completes when the unit is committed."""

    def interrupt(self) -> None:
        """Make `begin` raise after the current batch; called from any thread."""

    def close(self) -> None:
        """Commit the encoded units and stop the worker's threads."""


class Executor(Protocol):
    """Runs units on workers (inline, Ray).

    An implementation must

    - give a worker at most `units_per_worker` units, and encode them in the order of submission;
    - give an `exclusive` unit to a worker without units, and no other unit to that worker until the
      exclusive one ends;
    - return exactly one `Outcome` for each submitted unit, in any order, until it is closed;
    - return a unit's exceptions as outcomes: a `StrataError` with its type, any other exception as
      a `RuntimeError` with its text and `Cause.FAILED`;
    - after a `DeviceLostError` give no unit to that worker any more: replace it, or raise;
    - never retry: the driver decides, and claims a new slot for each attempt;
    - raise from `poll` only errors that no unit causes, such as a worker that cannot be created;
    - not access the store; `exclusive` is the only field of a task that it reads.
    """

    def has_room(self, exclusive: bool = False) -> bool:
        """Whether a worker can take a unit; with `exclusive`, whether an idle worker can."""

    def submit(self, task: UnitTask, limit_s: float) -> str:
        """Give a unit to a worker. Call only while `has_room(task.exclusive)`.

        Args:
            task: The unit.
            limit_s: Time limit in seconds, from the moment at which the unit is the worker's first.
                An executor that cannot stop a worker ignores it.

        Returns:
            Name of the worker.
        """

    def poll(self, timeout_s: float) -> list[Outcome]:
        """Return the attempts that ended; wait at most `timeout_s` for the first one.

        An inline executor also creates its worker here, however long it takes.

        Raises:
            RunError: Workers cannot be started.
            StrataError: A worker cannot be created on any node, e.g. because weights are missing.
        """

    def close(self) -> None:
        """Stop the workers and drop the units in flight, without outcomes."""


def can_take(held: Sequence[UnitTask], exclusive: bool, n_units: int) -> bool:
    """Whether a worker that has the units `held`, of at most `n_units`, can take another one."""
    if not held:
        return True
    return len(held) < n_units and not exclusive and not any(task.exclusive for task in held)


def attempt(task: UnitTask, report: Future[UnitReport]) -> Outcome:
    """Wait for a unit; return errors as values, so that they keep their types across processes."""
    try:
        return Outcome(task, report=report.result())
    except StrataError as error:
        return Outcome(task, error=error, cause=Cause.FAILED, detail=type(error).__name__)
    except DeviceLostError as error:
        text = " ".join(str(error).split())
        return Outcome(task, error=RuntimeError(text), cause=Cause.DIED, detail=text[:200])
    except Exception as error:  # noqa: BLE001  the worker's boundary: the driver decides
        text = " ".join(f"{type(error).__name__}: {error}".split())
        return Outcome(task, error=RuntimeError(text), cause=Cause.FAILED, detail=text[:200])
