"""Shares of the units of a store, which the ranks of a distributed job extract side by side.

The commit protocol has one driver per store, because a driver makes the plan, gives out slots and
tidies up. Only a part of that needs a single driver:

- The driver of rank 0 leads. It holds the lease of the store, makes plan and store, and then
  announces in `shares.json` the id of its run and the number of ranks.
- The driver of rank `r` waits for the announcement, and extracts the missing units `k` with
  `k % world_size == r`. It holds a lease of its own, `lease-<r>.json`, and goes on only while the
  lease of the store is that of the announced run. So another job never meets it: when the leader
  ends, it ends.
- No two drivers extract one unit, because their shares have none in common. Both may claim a slot
  for a second attempt: the exclusive creation of the claim decides, and the loser takes the next
  slot. A commit is exclusive as ever.
- When its share is done, the leader waits for the others. It takes over the share of a rank whose
  lease is gone, and of one that has not come within `JOIN_S`. It says so in `shares.json`, and then
  looks at that lease again. A rank takes its lease, and then looks at `shares.json` again. So one
  of the two notices the other, and leaves the share to it.
- At the end the leader plans deferred utterances, removes leftovers and compacts the index, alone.

With Ray, one driver has workers on all nodes: the leader then extracts everything.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass

from pipeline.errors import StoreBusyError, StoreError
from pipeline.extract.driver import Share
from pipeline.store.backend.base import Backend, Location
from pipeline.store.coordination.lease import Lease, live_holder
from pipeline.store.coordination.run_log import RunLog
from pipeline.store.format.layout import SHARES, share_lease_key
from pipeline.store.serialization import json_bytes

JOIN_S = 60.0
"""Seconds after which a rank that has not begun to extract its share is not waited for."""

LED = "shares_announced"
"""Event in the run log: a leader has compared the store with the dataset, and made the plan."""


@dataclass(frozen=True)
class Announcement:
    """The content of `shares.json`.

    Attributes:
        run_id: Run of the leader.
        world_size: Number of ranks, and of shares.
        taken: Ranks whose shares the leader has taken over.
    """

    run_id: str
    world_size: int
    taken: Sequence[int] = ()


def announced_shares(backend: Backend) -> Announcement | None:
    """Return the shares of the driver that holds a store; None if there is none, or it has none."""
    holder = live_holder(backend)
    if holder is None:
        return None
    try:
        found = Announcement(**json.loads(backend.read(SHARES)))
    except (OSError, ValueError, TypeError):
        return None
    return found if found.run_id == holder.run_id else None


class LeaderShare(Share):
    """The share of rank 0, which makes the store, and waits for the others.

    Args:
        backend: The store.
        world_size: Number of ranks, at least 2.
    """

    is_alone = False

    def __init__(self, backend: Backend, world_size: int) -> None:
        self._backend, self._world_size = backend, world_size
        self._run_id = ""
        self._begun_s: float | None = None
        self._is_own_chosen = False
        self._joined: set[int] = set()
        self._taken: set[int] = set()

    def begin(self, run_id: str) -> None:
        """Announce the shares."""
        self._run_id, self._begun_s = run_id, time.monotonic()
        self._announce()
        RunLog(self._backend, run_id).write(LED, ranks=self._world_size)

    def end(self) -> None:
        """Take the announcement back; if that fails, nobody believes it without the lease."""
        if self._begun_s is not None:
            with suppress(StoreError, OSError):
                self._backend.delete(SHARES)

    def choose(self, missing: Sequence[int]) -> list[int]:
        """Return the own share at first, then units of ranks that have ended or never come."""
        if not self._is_own_chosen:
            self._is_own_chosen = True
            own = [unit for unit in missing if unit % self._world_size == 0]
            if own:
                return own
        return [unit for unit in missing if not self._is_waited_for(unit % self._world_size)]

    def waits(self, missing: Sequence[int]) -> bool:
        """Whether units of other ranks are missing."""
        return bool(missing)

    def _announce(self) -> None:
        content = Announcement(self._run_id, self._world_size, sorted(self._taken))
        self._backend.put(SHARES, [json_bytes(asdict(content))])

    def _is_waited_for(self, rank: int) -> bool:
        """Whether a rank extracts its share; if not, it is taken over."""
        if rank == 0 or self._extracts(rank):
            return rank != 0
        assert self._begun_s is not None  # the driver runs
        if rank not in self._joined and time.monotonic() - self._begun_s < JOIN_S:
            return True
        if rank not in self._taken:
            self._taken.add(rank)
            self._announce()
        return self._extracts(rank)

    def _extracts(self, rank: int) -> bool:
        is_live = live_holder(self._backend, share_lease_key(rank)) is not None
        if is_live:
            self._joined.add(rank)
        return is_live


class MemberShare(Share):
    """The share of another rank.

    Args:
        backend: The store.
        rank: The rank, at least 1.
        announced: What the leader has announced.
    """

    leads = False
    is_alone = False

    def __init__(self, backend: Backend, rank: int, announced: Announcement) -> None:
        self._backend, self._rank, self._announced = backend, rank, announced
        self._is_chosen = False

    def lease(self, store: Location, run_id: str) -> Lease:
        """Return the lease of the share."""
        return Lease(store, run_id, share_lease_key(self._rank))

    def begin(self, run_id: str) -> None:
        """Check that the share is still free, now that its lease is held.

        Raises:
            StoreBusyError: The leader has ended, or has taken the share over.
        """
        self.check()
        found = announced_shares(self._backend)
        if found is None or self._rank in found.taken:
            raise StoreBusyError(
                f"store {self._backend}: the driver of rank 0 has taken over the share of rank "
                f"{self._rank}, which came late"
            )

    def check(self) -> None:
        """Check that the leader still runs.

        Raises:
            StoreBusyError: It does not.
        """
        holder = live_holder(self._backend)
        if holder is None or holder.run_id != self._announced.run_id:
            raise StoreBusyError(
                f"store {self._backend}: the driver of rank 0 (run {self._announced.run_id}) has "
                f"ended, and with it the share of rank {self._rank}"
            )

    def choose(self, missing: Sequence[int]) -> list[int]:
        """Return the own share, once."""
        if self._is_chosen:
            return []
        self._is_chosen = True
        world_size = self._announced.world_size
        return [unit for unit in missing if unit % world_size == self._rank]
