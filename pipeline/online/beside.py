"""The extraction beside a trainer, in its own process.

It is that of `strata extract`, with two differences. While another job extracts into the store, it
waits instead of failing: the trainer reads what that job commits, and if the job ends before the
store is complete, this process takes over. And each rank of a distributed job extracts a share of
the units (`shares.py`).
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Protocol

from pipeline.config import Config
from pipeline.errors import StoreBusyError
from pipeline.events import Observer
from pipeline.extract import run
from pipeline.extract.driver import Share
from pipeline.extract.stop import Stop
from pipeline.online.completeness import is_complete
from pipeline.online.shares import (
    LED,
    Announcement,
    LeaderShare,
    MemberShare,
    announced_shares,
)
from pipeline.store.backend.opening import open_backend
from pipeline.store.coordination.lease import live_holder
from pipeline.store.coordination.run_log import read_log
from pipeline.store.format.layout import ATTRIBUTES, LOG

LOOK_S = 0.5
"""Seconds between two looks at the lease of another driver."""
LEAD_S = 60.0
"""Seconds without a driver after which another rank than 0 leads."""
_MAX_REFUSALS = 5
"""Consecutive refusals of the store although no driver holds it, after which one is an error."""


class Ready(Protocol):
    """Called when the store is known to be that of the settings; perhaps several times."""

    def __call__(self) -> None: ...


@dataclass(frozen=True)
class Request:
    """What to extract.

    Attributes:
        config: The settings, with the path of the store.
        rank: Rank of the trainer.
        world_size: Number of ranks.
        recheck: Whether to run even if the store is complete, to find changes of the dataset.
    """

    config: Config
    rank: int = 0
    world_size: int = 1
    recheck: bool = False


class _Beside:
    """Extracts until the store is complete, by this process or by others.

    Args:
        request: What to extract.
        observer: Receives the events of the runs.
        stop: Request to stop.
        ready: See `Ready`.
    """

    def __init__(self, request: Request, observer: Observer, stop: Stop, ready: Ready) -> None:
        assert request.config.store is not None  # `open_or_extract` sets it
        self._request, self._observer, self._stop = request, observer, stop
        self._ready = ready
        self._backend = open_backend(request.config.store)
        self._seen_s = time.monotonic()  # when a driver was last seen
        self._start = datetime.now(UTC)
        self._log_s: float | None = None  # when the run log was written that was read last
        self._joined: str | None = None  # the run whose share was extracted
        self._followed: str | None = None  # the run that was noted to hold the store
        self._n_refusals = 0

    def run(self) -> None:
        """Extract; see `extract_beside`."""
        must_run = self._request.recheck
        while must_run or not is_complete(self._backend):
            share = self._share()
            if share is None:
                must_run = must_run and not self._is_checked()
                self._follow()
                continue
            try:
                run.extract(self._request.config, self._observer, self._stop, share=share)
                must_run = False
            except StoreBusyError as error:
                self._on_busy(error)

    def _share(self) -> Share | None:
        """Return the units to extract now; None while another driver must go first."""
        rank, world_size = self._request.rank, self._request.world_size
        if world_size == 1:
            return Share()
        is_ray = self._request.config.engine.kind == "ray"
        if rank == 0:
            return Share() if is_ray else LeaderShare(self._backend, world_size)
        found = self._free_share()
        if found is not None:
            self._joined = found.run_id
            return MemberShare(self._backend, rank, found)
        if live_holder(self._backend) is not None:
            self._seen_s = time.monotonic()
        if time.monotonic() - self._seen_s > LEAD_S:
            self._seen_s = time.monotonic()
            return Share() if is_ray else LeaderShare(self._backend, world_size)
        return None

    def _is_checked(self) -> bool:
        """Whether a leader has compared the store with the dataset.

        It may have ended before this rank began, as the ranks of a job begin within seconds.
        """
        try:
            written_s = self._backend.modified_s(LOG)
        except OSError:
            return False
        if written_s == self._log_s:
            return False
        self._log_s = written_s
        since = (self._start - timedelta(seconds=LEAD_S)).isoformat()
        return any(
            event["event"] == LED and str(event["time"]) >= since
            for event in read_log(self._backend)
        )

    def _follow(self) -> None:
        """Wait a moment while another driver goes first."""
        if self._backend.exists(ATTRIBUTES):
            self._ready()
        time.sleep(LOOK_S)

    def _on_busy(self, error: StoreBusyError) -> None:
        """Wait until no other driver holds the store; say so once.

        Raises:
            StoreBusyError: None holds it, and yet it is refused again and again.
        """
        holder = live_holder(self._backend)
        self._n_refusals = 0 if holder else self._n_refusals + 1
        if self._n_refusals > _MAX_REFUSALS:
            raise error
        if holder and holder.run_id not in (self._followed, self._joined):
            self._followed = holder.run_id
            self._observer.note(
                f"store {self._backend} is in use by process {holder.pid} on {holder.host} (run "
                f"{holder.run_id}): its units are read as they are committed; if it ends before "
                "the store is complete, the extraction continues here"
            )
        while live_holder(self._backend) is not None and self._free_share() is None:
            self._follow()
        self._seen_s = time.monotonic()

    def _free_share(self) -> Announcement | None:
        """Return what a leader has announced, if this rank may extract a share of it."""
        rank, found = self._request.rank, announced_shares(self._backend)
        if rank == 0 or found is None or found.world_size != self._request.world_size:
            return None
        return None if rank in found.taken or found.run_id == self._joined else found


def extract_beside(request: Request, observer: Observer, stop: Stop, ready: Ready) -> None:
    """Extract until the store is complete, by this process or by others.

    Args:
        request: What to extract.
        observer: Receives the events of the runs.
        stop: Request to stop.
        ready: Called when the store is known to be that of the settings.

    Raises:
        StrataError: As `pipeline.extract.run.extract`.
    """
    _Beside(request, observer, stop, ready).run()
