"""Faults in runs with one worker in the driver's process; each driver meets one fault."""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

from campaigns.chaos.campaign import END_S, REFUSED, Campaign
from campaigns.chaos.corpus import Expected, mount_bind, read_store, unmount, write_weights
from campaigns.chaos.drivers import Drivers, wait_for
from campaigns.chaos.layer import FAULTS, READ, Fault, Layer
from campaigns.chaos.memory import MemoryLimit
from pipeline.store.format.layout import LEASE, PLAN


class InlineCampaign(Campaign):
    """Runs with `engine=inline`."""

    def __init__(
        self,
        work: Path,
        disk: Path,
        drivers: Drivers,
        rng: random.Random,
        layer: Layer | None,
        may_mount: bool,
    ) -> None:
        super().__init__(work, disk, drivers, rng)
        self.layer = layer
        self.limit = MemoryLimit()
        self.shown = work / "shown"
        self.is_mounted = may_mount and mount_bind(work / "home", self.shown)
        if self.is_mounted:
            self.data = self.shown / "corpus"
        self.live = self._live(may_mount)

    def _live(self, may_mount: bool) -> dict[str, Callable[[], bool]]:
        """Return the faults that strike a driver; those that need what is missing are left out."""
        change = self._change_data
        live: dict[str, Callable[[], bool]] = {
            "driver SIGKILL": lambda: self.signal(signal.SIGKILL),
            "driver SIGTERM": lambda: self.signal(signal.SIGTERM),
            "driver SIGINT": lambda: self.signal(signal.SIGINT),
            "driver suspended": self._suspend,
            "second driver": self._second,
            "two drivers at once": self._two_at_once,
            "store vanished": self.vanish_store,
            "dataset vanished": self._vanish_data,
            "audio file replaced": lambda: change(self.corpus.replaced),
            "audio file rewritten": lambda: change(self.corpus.rewritten),
            "audio file truncated": lambda: change(self.corpus.truncated),
            "audio file removed": lambda: change(self.corpus.removed),
            "audio file renamed": lambda: change(self.corpus.renamed),
            "audio files swapped": lambda: change(self.corpus.swapped),
            "table edited": lambda: change(self.corpus.relabelled),
            "weights replaced": self._replace_weights,
        }
        if self.layer is not None:
            live |= {kind: lambda: False for kind in FAULTS}
            live |= {f"EIO on audio ({n})": lambda: False for n in ("once", "for ever")}
            live["clock set forward"] = lambda: self._set_clock(1)
            live["clock set back"] = lambda: self._set_clock(-1)
            live["zombie driver"] = self._zombie
        else:
            self.tally.left_out["errors of calls, clocks, zombie drivers"] = "no C compiler"
        if may_mount:
            live |= {"disk full": self.fill_disk, "read-only remount": self.read_only}
        else:
            self.tally.left_out["disk full, read-only, unmounted"] = "mount is not permitted"
        if self.is_mounted:
            live["dataset unmounted"] = self._unmount_data
        if self.limit.is_possible:
            live["driver out of memory"] = self._out_of_memory
        else:
            self.tally.left_out["driver out of memory"] = "no cgroup can be made"
        return live

    def prepare(self) -> None:
        """Extract the data without faults; learn how long that takes and what it calls."""
        began = time.monotonic()
        if self.layer:
            self.layer.count(self.work / "undisturbed")
        expected = self.undisturbed()
        if expected is None:
            output = (self.work / "undisturbed.log").read_text()
            raise SystemExit(f"error: the undisturbed run fails: {output}")
        self.expected = expected
        self.typical_s = time.monotonic() - began
        self.n_calls = self.layer.counted() if self.layer else {}

    def undisturbed(self) -> Expected | None:
        """Extract the dataset, as it is now, into a store of its own; None if it is refused."""
        store = self.work / "undisturbed"
        shutil.rmtree(store, ignore_errors=True)
        driver = self.drivers.start(self.overrides(store), self.work / "undisturbed.log")
        driver.wait()
        return None if driver.returncode else read_store(store)

    def strike(self) -> None:
        """Run one driver, which meets one fault."""
        kind = self.rng.choice(self.wanted(self.live))
        fault = FAULTS.get(kind)
        folder = self.store
        if kind.startswith("EIO on audio"):
            fault, folder = Fault(READ, 5, is_endless="ever" in kind), self.data
        if fault is not None:
            assert self.layer is not None
            self.recent.append(kind)
            n_calls = sum(n for call, n in self.n_calls.items() if fault.calls & call)
            self.layer.arm(fault, folder, self.rng.randrange(max(n_calls, 8)), self.rng)
            code = self.finish(self.start())
            struck = self.layer.block.fired > 0
            self.layer.calm()
        else:
            known_claims = len(list(self.store.glob("ledger/slot-*.json")))
            self.recent.append(kind)
            driver = self.start()
            if self.rng.random() < 0.7:  # the others meet a driver that starts
                wait_for(
                    lambda: (
                        driver.poll() is not None
                        or len(list(self.store.glob("ledger/slot-*.json"))) > known_claims
                    ),
                    END_S,
                )
            driver.wait(self.rng.uniform(0, 0.5 * self.typical_s))
            struck = driver.poll() is None and self.live[kind]()
            code = self.finish(self.driver)  # some faults start another one
            self.undo()
        if struck:
            self.note(kind)
            self.tally.reported[kind] += code in (1, 3) or "quarantined" in self.output()
        else:
            self.recent.pop()

    def undo(self) -> None:
        """Give back what faults have taken away."""
        if self.layer is not None:
            self.layer.calm()
        super().undo()

    def close(self) -> None:
        """End the drivers, the faults and the mounts."""
        super().close()
        if self.layer is not None:
            self.layer.calm()  # drivers of the next campaign have the layer, too
        self.limit.close()
        if self.is_mounted:
            unmount(self.shown)

    # --- faults; each returns whether it happened ------------------------------------------

    def _suspend(self) -> bool:
        assert self.driver is not None
        self.driver.send_signal(signal.SIGSTOP)
        time.sleep(self.rng.uniform(0.1, 0.6))
        self.driver.send_signal(signal.SIGCONT)
        return True

    def _second(self) -> bool:
        """Start a second driver, which must be refused while the first one holds the store."""
        assert self.driver is not None
        if not self.holder():
            return False
        self.driver.send_signal(signal.SIGSTOP)  # it lives until the second one has been refused
        try:
            if not self.holder():
                return False
            second = self.drivers.start(self.overrides(self.store), self.work / "second.log")
            second.wait(END_S)
            if not any(words in second.output() for words in REFUSED):
                self.record([], [f"a second driver was not refused: {second.output()[-300:]}"])
            return True
        finally:
            self.driver.send_signal(signal.SIGCONT)

    def _two_at_once(self) -> bool:
        """Start a second driver beside one that starts or ends; one of them must do the work."""
        second = self.drivers.start(self.overrides(self.store), self.work / "second.log")
        second.wait(END_S)
        if second.returncode not in (0, 1):
            self.unclean(f"the second of two drivers: exit {second.returncode}", second)
        return True

    def _zombie(self) -> bool:
        """Suspend a driver until another host has taken its store over, then let it go on."""
        assert self.driver is not None
        assert self.layer is not None
        if not self.holder():
            return False
        first = self.driver
        first.send_signal(signal.SIGSTOP)
        try:
            if not self.holder():
                return False
            long_ago = time.time() - 3600
            os.utime(self.store / LEASE, (long_ago, long_ago))
            other = Layer(self.work / "other-control")
            other.block.host = b"another-host"
            second = self.drivers.start(
                self.overrides(self.store), self.work / "second.log", control=other.path
            )
            second.wait(self.rng.uniform(0, self.typical_s))
        finally:
            first.send_signal(signal.SIGCONT)
        second.wait(END_S)
        if second.returncode != 0:
            self.unclean(f"the driver that took over: exit {second.returncode}", second)
        first.wait(END_S)
        return True

    def _without_data(self, take: Callable[[], bool], give: Callable[[], bool]) -> bool:
        """Take the dataset away; until it is back, nothing may be concluded about its files."""
        assert self.driver is not None
        if not (self.store / PLAN).exists():
            return False
        before = self.quarantined()
        if not take():
            return False
        self.driver.wait(END_S)
        give()
        if (n := self.quarantined()) > before:
            self.record([f"{n - before} utterances were quarantined without their dataset"], [])
        return True

    def _vanish_data(self) -> bool:
        root, aside = self.corpus.folder, self.corpus.folder.with_name("away")
        return self._without_data(
            lambda: bool(root.rename(aside)), lambda: bool(aside.rename(root))
        )

    def _unmount_data(self) -> bool:
        return self._without_data(
            lambda: unmount(self.shown), lambda: mount_bind(self.work / "home", self.shown)
        )

    def _change_data(self, change: Callable[[], None]) -> bool:
        """Change the dataset under a driver that has planned it, and run another one then."""
        if not (self.store / PLAN).exists():
            return False  # the new content would rightly be planned
        change()
        self.changed = self.undisturbed()
        assert self.driver is not None
        self.finish(self.driver)
        self.check()
        self.finish(self.start())
        self.check()
        self.changed = None
        return True

    def _replace_weights(self) -> bool:
        """Put other weights into the place of the first ones; the next driver must refuse them."""
        assert self.driver is not None
        if not (self.store / PLAN).exists():
            return False
        kept = self.weights.with_name("kept.pt")
        shutil.copy2(self.weights, kept)
        write_weights(self.weights, self.rng.randint(1, 9))
        self.finish(self.driver)
        self.check()
        driver = self.start()
        code = self.finish(driver)
        if code != 1:
            self.record([], [f"other weights are not refused: {driver.output()[-300:]}"])
        kept.replace(self.weights)
        return True

    def _set_clock(self, sign: int) -> bool:
        assert self.layer is not None
        self.layer.block.clock_offset_s = sign * self.rng.choice([90, 7200, 40 * 86400])
        return True

    def _out_of_memory(self) -> bool:
        assert self.driver is not None
        self.limit.kill(self.driver.pid)
        return self.driver.wait(10) and self.driver.returncode == -signal.SIGKILL
