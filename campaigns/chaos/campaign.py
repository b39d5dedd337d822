"""What all campaigns share: drivers, faults that need no more than a driver, and the checks.

After every driver and every damage the store is compared with an undisturbed one. At the end of a
run everything that was taken away is given back, and the store must become complete.
"""

from __future__ import annotations

import difflib
import random
import re
import shutil
import signal
import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

from campaigns.chaos.corpus import Damage, Expected, differences, read_store
from campaigns.chaos.damage import Damager
from campaigns.chaos.drivers import Driver, Drivers
from campaigns.chaos.tally import Tally
from pipeline.errors import StoreNotFoundError, StrataError
from pipeline.store.format.layout import LEASE, PLAN
from pipeline.store.index import committed_units
from pipeline.store.maintain.repair import repair_store
from pipeline.store.maintain.status import read_status
from pipeline.store.maintain.verify import verify_store

REFUSED = ("is in use by process", "another driver took the lease", "has been locked for")
"""What a second driver prints."""
END_S = 120.0
"""How long a driver may take to end after a request."""
MAX_DRIVERS = 12
"""Drivers at the end of a run, one of which must complete it."""


class Campaign(ABC):
    """Runs with faults, and what they found.

    Attributes:
        live: Faults that strike a driver; each returns whether it happened.
        at_rest: Damages to a store between drivers.
        recent: Faults of this run, the latest last.
        seen: Utterances that were stored at the last check.
        expected: What the store must hold.
        changed: What it may hold instead, all of it: the dataset has just changed.
        goal: Number of faults after which the run ends.
        exact: Whether all features must be equal bit by bit, or up to rounding.
        is_each_once: Whether each kind of fault happens once, and the run ends when all have.
    """

    def __init__(self, work: Path, disk: Path, drivers: Drivers, rng: random.Random) -> None:
        self.work, self.disk, self.drivers, self.rng = work, disk, drivers, rng
        self.store = disk / "store"
        self.data = work / "home" / "corpus"
        self.corpus = Damage(self.data, rng)
        self.weights = work / "weights.pt"
        self.expected = Expected({}, {}, {})
        self.changed: Expected | None = None
        self.typical_s = 1.0
        self.tally = Tally()
        self.recent: list[str] = []
        self.foreign: dict[Path, bytes] = {}
        self.seen: set[str] = set()
        self.exact = True
        self.is_each_once = False
        self.driver: Driver | None = None
        self.goal = 0
        self.live: dict[str, Callable[[], bool]] = {}
        self.at_rest = list(Damager(self.store, rng).kinds)

    def only(self, kinds: list[str]) -> None:
        """Leave out all other kinds of fault."""
        known = [*self.live, *self.at_rest]
        for kind in kinds:
            if kind not in known:
                near = difflib.get_close_matches(kind, known, 1) or known
                raise SystemExit(f"no fault is called {kind!r}; did you mean {', '.join(near)}?")
        self.live = {name: act for name, act in self.live.items() if not kinds or name in kinds}
        self.at_rest = [name for name in self.at_rest if not kinds or name in kinds]
        if not self.live:
            self.live = {"none": bool}

    # --- drivers ---------------------------------------------------------------------------

    @abstractmethod
    def prepare(self) -> None:
        """Extract the data without faults."""

    @abstractmethod
    def strike(self) -> None:
        """Run one driver under faults."""

    def overrides(self, store: Path, *more: str) -> list[str]:
        """Return the arguments of a driver."""
        return [
            *("extract", "--debug", "dataset=audiofolder", f"dataset.path={self.data}"),
            *("model=tiny", f"model.weights={self.weights}", f"store={store}"),
            "plan.frames_per_unit=256",
            *("engine=inline", "engine.threads=1", "run.max_quarantined=1", *more),  # the last wins
        ]

    def start(self, *more: str) -> Driver:
        """Start a driver."""
        log = self.work / "driver.log"
        self.driver = self.drivers.start(self.overrides(self.store, *more), log)
        return self.driver

    def finish(self, driver: Driver) -> int:
        """Wait for the end of a driver; record how it ended, and return its exit code."""
        if not driver.wait(END_S):
            self.unclean(f"a driver did not end within {END_S:.0f} s", driver)
            driver.send_signal(signal.SIGKILL)
            driver.wait()
        code = driver.returncode
        assert code is not None
        if driver.is_recorded:
            return code
        driver.is_recorded = True
        self.tally.ends[f"exit {code}"] += 1
        output = driver.output()
        killed = (-signal.SIGKILL, -signal.SIGTERM, -signal.SIGINT)
        is_odd = "error: unexpected " in output  # --debug prints tracebacks of all errors
        is_odd |= code == 1 and not last_line(output).startswith("error: ")
        if is_odd or code not in (0, 1, 3, *killed):
            self.unclean(f"exit {code}", driver)
        if code == 1:
            self.tally.lines[last_line(output)] += 1
        return code

    def unclean(self, what: str, driver: Driver) -> None:
        """Record a driver that did not end as it should."""
        self.tally.unclean.append(f"{what} after {self.recent}: {driver.output()[-2500:]}")

    # --- the campaign ----------------------------------------------------------------------

    def one_run(self, budget: int) -> None:
        """Make a store under `budget` faults."""
        self.goal = self.tally.tries.total() + budget
        shutil.rmtree(self.store, ignore_errors=True)
        self.recent, self.seen, self.foreign = [], set(), {}
        self.changed, self.exact = None, True
        while self.tally.tries.total() < self.goal and self.wanted(self.live):
            if self.is_each_once and self.is_complete():
                shutil.rmtree(self.store)  # a driver with nothing to do ends before any fault
                self.seen = set()
            self.strike()
            self.check()
            for _ in range(self.rng.randint(2, 12)):  # cheaper than a driver
                has_units = self.store.exists() and committed_units(self.store)
                is_over = self.tally.tries.total() >= self.goal or not has_units
                if not is_over and self.wanted(self.at_rest):
                    self.damage()
        self.complete()

    def wanted(self, kinds: Iterable[str]) -> list[str]:
        """Return the kinds of fault that may be next."""
        return [kind for kind in kinds if not (self.is_each_once and self.tally.tries[kind])]

    def note(self, kind: str, *, is_fault: bool = True) -> None:
        """Count a fault, and print a line of progress."""
        self.tally.tries[kind] += is_fault
        total, units = self.tally.tries.total(), len(committed_units(self.store))
        print(
            f"{time.strftime('%H:%M:%S')} {total:4d} faults, {units:3d} units: {kind}", flush=True
        )

    def undo(self) -> None:
        """Give back what faults have taken away."""
        self.corpus.restore()

    def check(self, *, final: bool = False) -> None:
        """Compare the store with the undisturbed one; record what is lost or wrong."""
        lost: list[str] = []
        wrong: list[str] = []
        if (self.store / "features.zarr").exists():
            try:
                now = read_store(self.store)
            except StrataError as error:
                lost.append(f"the store cannot be read: {error}")
            else:
                lost += [f"{name} was stored and is gone" for name in self.seen - {*now.features}]
                wrong += self.differences(now)
                self.seen = {*now.features}
        if final:
            missing = self.expected.features.keys() - self.seen
            lost += [f"{name} is not stored" for name in missing]
        lost += [
            f"the foreign file {path} is gone or changed"
            for path, raw in self.foreign.items()
            if not path.exists() or path.read_bytes() != raw
        ]
        self.record(lost, wrong)
        self.foreign = {path: raw for path, raw in self.foreign.items() if path.exists()}

    def differences(self, now: Expected) -> list[str]:
        """Return what is wrong in a store; adopt the changed dataset if that is what it holds."""
        found = differences(now, self.expected, exact=self.exact)
        if self.changed is None or not found:
            return found
        self.exact = False  # in units with another content the batches are others
        new = differences(now, self.changed, exact=False)
        if not new:
            self.expected, self.changed = self.changed, None
            self.corpus.keep()
            self.note("planned again, with the changed dataset", is_fault=False)
        return min(found, new, key=len)

    def record(self, lost: list[str], wrong: list[str]) -> None:
        """Count problems, for the faults since the last sound state."""
        for column, problems in ((self.tally.lost, lost), (self.tally.wrong, wrong)):
            if problems:
                column[self.recent[-1] if self.recent else "none"] += len(problems)
                line = f"after {self.recent[-4:]}: {len(problems)}: {problems[:3]}"
                self.tally.problems.append(line)
                print("   PROBLEM", line, flush=True)

    def damage(self) -> None:
        """Damage a file of the store at rest; it must be harmless or reported, and repairable."""
        damager = Damager(self.store, self.rng)
        kind = self.rng.choice(self.wanted(self.at_rest))
        before = snapshot(self.store)
        if not damager.kinds[kind]():
            return
        self.note(kind)
        self.recent.append(kind)
        after = snapshot(self.store)
        touched = {path for path in before.keys() | after if before.get(path) != after.get(path)}
        reports, differing = self.inspect()
        self.tally.reported[kind] += bool(reports)
        if differing and not reports:
            self.record([], [f"{', '.join(map(str, touched))}: {problem}" for problem in differing])
        if kind == "foreign file":
            self.foreign |= {self.store / path: after[path] for path in touched}
        try:
            repair_store(self.store)
            is_sound = verify_store(self.store).ok
        except StrataError:
            is_sound = False
        if not is_sound:  # as documented for the plan and the documents of Zarr
            for path in touched:
                if path in before:
                    (self.store / path).write_bytes(before[path])
            try:
                repair_store(self.store)
                if not verify_store(self.store).ok:
                    self.record(["the store is not sound after its copies were restored"], [])
            except StrataError as error:
                self.record([f"not repaired after its copies were restored: {error}"], [])
        self.seen = set()  # repair takes back the commits of damaged units
        self.check()
        if self.rng.random() < 0.6:  # else the next driver has work
            put_back(self.store, before)
            self.check()

    def inspect(self) -> tuple[list[str], list[str]]:
        """Return what open, read or verify report, and what a reader returns that differs."""
        reports: list[str] = []
        differing: list[str] = []
        try:
            now = read_store(self.store)
            differing += self.differences(now)
            differing += [f"{name} is not found" for name in self.seen - {*now.features}]
        except StrataError as error:
            reports.append(str(error))
        try:
            found = verify_store(self.store)
            reports += [damage.problem for damage in found.damages]
            if found.units_committed < found.units_total:
                reports.append("status counts the units that are missing")
        except StrataError as error:
            reports.append(str(error))
        return reports, differing

    def complete(self) -> None:
        """Let drivers complete the store, with all files back in their places."""
        self.undo()
        for n in range(MAX_DRIVERS):
            code = self.finish(self.start(*(["retry_quarantined=true"] if n else [])))
            if n:
                self.exact = False  # retried utterances are in other batches
            if n and code == 0 and not self.quarantined():
                break
        else:
            output = self.output()[-400:]
            self.record([f"the store is not complete after {MAX_DRIVERS} drivers: {output}"], [])
        self.check(final=True)
        try:
            found = verify_store(self.store)
            problems = [damage.problem for damage in found.damages]
            garbage = [orphan.path for orphan in found.orphans if orphan.is_garbage]
            if garbage and not self.foreign:
                repair_store(self.store)
        except StrataError as error:
            problems = [str(error)]
        self.record(problems, [])

    def output(self) -> str:
        """Return what the latest driver has printed."""
        return self.driver.output() if self.driver is not None else ""

    def is_complete(self) -> bool:
        """Return whether the store has all of its units."""
        try:
            status = read_status(self.store)
        except StrataError:
            return False
        return 0 < status.units_total == status.units_committed

    def quarantined(self) -> int:
        """Return how many utterances are quarantined; 0 while there is no store."""
        try:
            return read_status(self.store).utterances_quarantined
        except StoreNotFoundError:
            return 0

    def close(self) -> None:
        """End all drivers."""
        self.drivers.end()

    # --- faults; each returns whether it happened ------------------------------------------

    def signal(self, number: signal.Signals) -> bool:
        assert self.driver is not None
        self.driver.send_signal(number)
        return True

    def holder(self) -> bool:
        """Whether the driver lives and holds the lease."""
        assert self.driver is not None
        with suppress(OSError):
            return f'"pid": {self.driver.pid}' in (self.store / LEASE).read_text()
        return False

    def vanish_store(self) -> bool:
        assert self.driver is not None
        if not self.holder():
            return False  # a starting driver would rightly create a new store
        aside = self.disk / "vanished"
        self.store.rename(aside)
        if not self.driver.wait(END_S):
            self.unclean("a driver goes on without its store", self.driver)
            self.driver.send_signal(signal.SIGKILL)
            self.driver.wait()
        if (self.store / PLAN).exists():
            self.record([], ["a second store was made in the place of the vanished one"])
        shutil.rmtree(self.store, ignore_errors=True)
        aside.rename(self.store)
        return True

    def fill_disk(self) -> bool:
        assert self.driver is not None
        ballast = self.disk / "ballast"
        with suppress(OSError), ballast.open("wb", buffering=0) as file:
            while True:
                file.write(b"\0" * self.rng.choice([2**20, 2**16, 2**12]))
        self.driver.wait(5)
        ballast.unlink()
        return True

    def read_only(self) -> bool:
        assert self.driver is not None
        remount = ["mount", "-o", "remount,ro", str(self.disk)]
        for _ in range(100):  # busy while a file is open for writing
            if not subprocess.run(remount, capture_output=True, check=False).returncode:
                break
            time.sleep(0.01)
        else:
            return False
        self.driver.wait(5)
        remount[2] = "remount,rw"
        subprocess.run(remount, check=True)
        return True


def snapshot(store: Path) -> dict[str, bytes]:
    """Return the bytes of all files of a store."""
    found = {}
    for path in store.rglob("*"):
        if path.is_file():
            found[str(path.relative_to(store))] = path.read_bytes()
    return found


def put_back(store: Path, before: dict[str, bytes]) -> None:
    """Restore the files of a store that have changed or are gone."""
    now = snapshot(store)
    for name, raw in before.items():
        if now.get(name) != raw:
            (store / name).parent.mkdir(parents=True, exist_ok=True)
            (store / name).write_bytes(raw)


def last_line(output: str) -> str:
    """Return the last line that a driver printed, without numbers and paths."""
    last = next((line for line in reversed(output.splitlines()) if line.strip()), "nothing")
    return re.sub(r"\d+", "#", re.sub(r"\S*/\S*", "PATH", last))[:110]
