"""Faults in runs on a Ray cluster of two nodes: several strike each driver and its workers."""

from __future__ import annotations

import os
import random
import signal
import time
from contextlib import suppress
from pathlib import Path

from campaigns.chaos.campaign import END_S, REFUSED, Campaign
from campaigns.chaos.checks import compare, contents, overlaps
from campaigns.chaos.cluster import Nodes
from campaigns.chaos.corpus import read_store
from campaigns.chaos.drivers import Drivers, wait_for
from campaigns.chaos.memory import MemoryLimit
from pipeline.errors import StrataError

CONTRADICTIONS = ("another driver has taken over the lease", "was claimed by another driver")
"""Messages of a driver that has met another one; on one machine there must be none."""
ORPHANS_S = 60.0
"""How long workers may outlive their driver."""


class RayCampaign(Campaign):
    """Runs with `engine=ray`."""

    def __init__(
        self,
        work: Path,
        disk: Path,
        drivers: Drivers,
        rng: random.Random,
        may_mount: bool,
        pause_s: float,
    ) -> None:
        super().__init__(work, disk, drivers, rng)
        self.pause_s = pause_s
        self.nodes = Nodes()
        self.limit = MemoryLimit()
        self.live = {
            "worker SIGKILL": lambda: self._to_worker(signal.SIGKILL),
            "worker SIGSEGV": lambda: self._to_worker(signal.SIGSEGV),
            "worker suspended": self._suspend_worker,
            "raylet SIGKILL, and its workers": self._lose_node,
            "pre-emption notice": self._drain_node,
            "driver SIGKILL, its workers are zombies": lambda: self._to_driver(signal.SIGKILL),
            "driver SIGTERM, units in flight": lambda: self._to_driver(signal.SIGTERM),
            "driver SIGINT, units in flight": lambda: self._to_driver(signal.SIGINT),
            "driver signalled twice": self._signal_twice,
            "second driver beside workers": self._second,
            "store vanished under workers": self.vanish_store,
        }
        if may_mount:
            self.live["disk full under workers"] = self.fill_disk
            self.live["read-only remount under workers"] = self.read_only
        if self.limit.is_possible:
            self.live["worker out of memory"] = self._out_of_memory
        else:
            self.tally.left_out["worker out of memory"] = "no cgroup can be made"

    def overrides(self, store: Path, *more: str) -> list[str]:
        """Return the arguments of a driver."""
        ray = ["engine=ray", "engine.workers=2", f"engine.address={self.nodes.address}"]
        kept = [o for o in super().overrides(store) if o != "engine=inline"]
        return [*kept, *(more if "engine=inline" in more else (*ray, *more))]

    def prepare(self) -> None:
        """Extract the data without faults and without Ray."""
        store = self.work / "undisturbed-by-ray"
        driver = self.drivers.start(
            self.overrides(store, "engine=inline"), self.work / "driver.log"
        )
        driver.wait()
        if driver.returncode:
            raise SystemExit(f"error: the undisturbed run fails: {driver.output()}")
        self.expected = read_store(store)
        self.contents = contents(store)

    def strike(self) -> None:
        """Run one driver until it ends, under faults at random moments."""
        driver = self.start()
        if self.rng.random() < 0.8:  # the others strike a driver that starts
            n_claims = self.n_claims()
            wait_for(lambda: driver.poll() is not None or self.n_claims() > n_claims, END_S)
        while self.tally.tries.total() < self.goal and (kinds := self.wanted(self.live)):
            if driver.wait(self.rng.expovariate(1 / self.pause_s)):
                break
            kind = self.rng.choice(kinds)
            self.recent.append(kind)
            if self.live[kind]():
                self.note(kind)
                self.tally.reported[kind] += driver.returncode == 1
            else:
                self.recent.pop()
        self.finish(driver)
        if any(words in driver.output() for words in CONTRADICTIONS):
            self.record([], [f"two drivers were running: {driver.output()[-700:]}"])
        self.rest()

    def n_claims(self) -> int:
        """Return how many slots have been claimed."""
        return len(list(self.store.glob("ledger/slot-*.json")))

    def rest(self) -> None:
        """Wait until no worker is left: only then may files be damaged."""
        if not self.nodes.wait_for_orphans(ORPHANS_S):
            self.tally.unclean.append(f"workers outlive their driver by {ORPHANS_S:.0f} s")

    def complete(self) -> None:
        """Let drivers complete the store; compare it with the undisturbed one, unit by unit."""
        super().complete()
        try:
            problems = compare(self.store, self.contents) if self.exact else []
            is_logged = not any("the log" in kind or "claim" in kind for kind in self.recent)
            problems += overlaps(self.store) if is_logged else []  # damaged lines are skipped
        except StrataError as error:
            problems = [str(error)]
        self.record([], [problem for problem in problems if "notes-" not in problem])

    def close(self) -> None:
        """End the drivers and the cluster."""
        super().close()
        self.nodes.close()
        self.limit.close()

    # --- faults; each returns whether it happened ------------------------------------------

    def _worker(self) -> int | None:
        workers = self.nodes.workers()
        return self.rng.choice(workers) if workers else None

    def _to_worker(self, number: signal.Signals) -> bool:
        pid = self._worker()
        if pid is None:
            return False
        with suppress(ProcessLookupError):
            os.kill(pid, number)
        return True

    def _suspend_worker(self) -> bool:
        pid = self._worker()
        if pid is None:
            return False
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGSTOP)
            time.sleep(self.rng.uniform(0.2, 2))
            os.kill(pid, signal.SIGCONT)
        return True

    def _out_of_memory(self) -> bool:
        pid = self._worker()
        if pid is None:
            return False
        self.limit.kill(pid)
        return wait_for(lambda: not Path(f"/proc/{pid}").exists(), 10)

    def _lose_node(self) -> bool:
        self.nodes.lose()
        return True

    def _drain_node(self) -> bool:
        self.nodes.drain()
        return True

    def _to_driver(self, number: signal.Signals) -> bool:
        assert self.driver is not None
        if number != signal.SIGKILL and not self.holder():
            return False  # its signal handlers are not installed yet
        self.driver.send_signal(number)
        return self.driver.wait(END_S)

    def _signal_twice(self) -> bool:
        assert self.driver is not None
        if not self.holder():
            return False
        self.driver.send_signal(signal.SIGTERM)
        time.sleep(self.rng.uniform(0, 0.3))
        self.driver.send_signal(signal.SIGINT)
        return self.driver.wait(END_S)

    def _second(self) -> bool:
        """Start a second driver, which must be refused; the first one is suspended meanwhile."""
        assert self.driver is not None
        if not self.holder():
            return False
        self.driver.send_signal(signal.SIGSTOP)
        try:
            if not self.holder():
                return False
            arguments = self.overrides(self.store, "engine=inline")
            second = self.drivers.start(arguments, self.work / "second.log")
            second.wait(END_S)
            if not any(words in second.output() for words in REFUSED):
                self.record([], [f"a second driver was not refused: {second.output()[-300:]}"])
            return True
        finally:
            self.driver.send_signal(signal.SIGCONT)
