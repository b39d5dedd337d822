"""Inject faults at random moments, then count what was lost. Run by campaigns/chaos.

Each run extracts the data into a new store with real drivers (`strata extract` in separate
processes) on a real Ray cluster of two nodes, while workers, drivers, nodes and the disk fail.
Between drivers the store itself is damaged and repaired. At the end the store must verify, hold
every utterance once, and equal an undisturbed store byte by byte, unit by unit.
"""

from __future__ import annotations

import argparse
import difflib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from chaos_checks import compare, contents, overlaps
from chaos_cluster import Nodes, own_disk
from chaos_damage import Damager

from pipeline.errors import StrataError
from pipeline.store.coordination.ledger import read_claims
from pipeline.store.format.layout import LEASE
from pipeline.store.index import committed_units
from pipeline.store.maintain.orphans import Orphan
from pipeline.store.maintain.repair import repair_store
from pipeline.store.maintain.verify import verify_store

CONTRADICTIONS = ("another driver has taken over the lease", "was claimed by another driver")
"""Messages of a driver that has met another one; on one machine there must be none."""
REFUSED = "is in use by process"
"""What a second driver prints."""
ENDED = ("units committed", "run the same command again")
"""What a driver prints at its end, with all units or without."""
END_S = 60.0
"""How long a driver may take to end after a request."""
ORPHANS_S = 30.0
"""How long workers may outlive their driver."""


class Campaign:
    """Runs of the campaign, and what they found."""

    def __init__(self, options: argparse.Namespace, disk: Path, may_mount: bool) -> None:
        self.options = options
        self.rng = random.Random(options.seed)
        self.disk = disk
        self.may_mount = may_mount
        self.nodes = Nodes()
        self.store = disk / "store"
        self.faults: Counter[str] = Counter()
        self.exits: Counter[str] = Counter()
        self.last_lines: Counter[str] = Counter()
        self.losses: list[str] = []
        self.unclean: list[str] = []
        self.runs = self.drivers = 0
        self.driver: subprocess.Popen[str] | None = None
        kill = self.kill_worker
        self.live: dict[str, tuple[int, Callable[[], bool]]] = {
            "worker SIGKILL": (18, lambda: kill(signal.SIGKILL)),
            "worker SIGSEGV": (8, lambda: kill(signal.SIGSEGV)),
            "worker paused, then resumed": (5, self.pause_worker),
            "driver SIGKILL": (8, lambda: self.signal_driver(signal.SIGKILL)),
            "driver SIGTERM": (4, lambda: self.signal_driver(signal.SIGTERM)),
            "driver SIGINT": (3, lambda: self.signal_driver(signal.SIGINT)),
            "driver signalled twice": (2, self.signal_twice),
            "node loss": (4, self.lose_node),
            "pre-emption notice": (3, self.drain_node),
            "second driver": (2, self.second_driver),
            "second driver while the first is suspended": (2, self.second_while_suspended),
            "vanished store": (3, self.vanish),
        }
        if may_mount:
            self.live["disk full"] = (4, self.fill_disk)
            self.live["read-only store"] = (3, self.read_only)
        self.at_rest = dict.fromkeys(Damager(self.store, self.rng).kinds, 1)
        for name, weight in options.weight:
            if name in self.live:
                self.live[name] = (weight, self.live[name][1])
            elif name in self.at_rest:
                self.at_rest[name] = weight
            else:
                known = [*self.live, *self.at_rest]
                near = difflib.get_close_matches(name, known, 1) or known
                raise SystemExit(f"no fault is called {name!r}; did you mean {', '.join(near)}?")

    def command(self, store: Path, *more: str) -> list[str]:
        """Return the command of a driver."""
        return [
            *(sys.executable, "-m", "pipeline", "extract", "dataset=audiofolder"),
            *(f"dataset.path={self.options.data}", f"dataset.limit={self.options.limit}"),
            *("model=tiny", f"store={store}", f"plan.frames_per_unit={self.options.frames}"),
            *("engine.threads=1", *more),
        ]

    def start(self) -> None:
        """Start a driver on the cluster."""
        self.drivers += 1
        more = ["engine=ray", "engine.workers=2", f"engine.address={self.nodes.address}"]
        self.log = self.options.work / "driver.log"
        with self.log.open("w") as file:
            self.driver = subprocess.Popen(self.command(self.store, *more), stderr=file)

    def ended(self) -> bool:
        """Return whether the driver has ended; record how."""
        assert self.driver is not None
        code = self.driver.poll()
        if code is None:
            return False
        self.exits[f"exit {code}"] += 1
        output = self.log.read_text()
        is_final = any(words in output for words in ENDED)
        signalled = code in (-signal.SIGTERM, -signal.SIGINT)  # after its last message
        fine = code in (0, 1, -signal.SIGKILL) or (signalled and is_final)
        if "Traceback" in output or not fine or "error: unexpected " in output:
            self.unclean.append(f"exit {code}: {output[-1500:]}")
        if any(words in output for words in CONTRADICTIONS):
            self.losses.append(f"two drivers were running: {output[-1500:]}")
        if code == 1:
            self.last_lines[last_line(output)] += 1
        return True

    def wait_for_end(self, timeout_s: float) -> bool:
        """Wait for the driver to end; return whether it has."""
        end = time.monotonic() + timeout_s
        while self.driver is not None and self.driver.poll() is None:
            if time.monotonic() > end:
                return False
            time.sleep(0.1)
        return True

    def must_end(self, why: str) -> None:
        """Wait for a driver that was asked to end; record it if it does not."""
        if not self.wait_for_end(END_S):
            self.unclean.append(f"a driver did not end within {END_S:.0f} s after {why}")

    def holder(self) -> str | None:
        """Return the driver's run if the driver lives and holds the lease (read from the file)."""
        assert self.driver is not None
        with suppress(OSError, ValueError):
            lease = json.loads((self.store / LEASE).read_bytes())
            if lease["pid"] == self.driver.pid and self.driver.poll() is None:
                return str(lease["run_id"])
        return None

    def wait_for_work(self) -> None:
        """Usually wait until the driver has submitted units; some faults hit a starting run."""
        if self.rng.random() < 0.2:
            return
        known = len(list(self.store.glob("ledger/slot-*.json")))
        while self.driver is not None and self.driver.poll() is None:
            if len(list(self.store.glob("ledger/slot-*.json"))) > known:
                return
            time.sleep(0.02)

    # --- faults while a driver runs; each returns whether it happened ----------------------

    def kill_worker(self, number: signal.Signals) -> bool:
        workers = self.nodes.workers()
        if not workers:
            return False
        with suppress(ProcessLookupError):
            os.kill(self.rng.choice(workers), number)
        return True

    def pause_worker(self) -> bool:
        workers = self.nodes.workers()
        if not workers:
            return False
        pid = self.rng.choice(workers)
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGSTOP)
            time.sleep(self.rng.uniform(0.2, 2))
            os.kill(pid, signal.SIGCONT)
        return True

    def signal_driver(self, number: signal.Signals) -> bool:
        assert self.driver is not None
        if number != signal.SIGKILL and self.holder() is None:
            return False  # its signal handlers are not installed yet
        self.driver.send_signal(number)
        self.must_end(number.name)
        return True

    def signal_twice(self) -> bool:
        assert self.driver is not None
        if self.holder() is None:
            return False
        self.driver.send_signal(signal.SIGTERM)
        time.sleep(self.rng.uniform(0, 0.3))
        self.driver.send_signal(signal.SIGINT)
        self.must_end("two signals")
        return True

    def lose_node(self) -> bool:
        self.nodes.lose()
        return True

    def drain_node(self) -> bool:
        self.nodes.drain()
        return True

    def second_driver(self) -> bool:
        """Start a second driver, which must be refused unless the first one has ended by then."""
        before = self.holder()
        if before is None:
            return False
        more = ["engine=inline"]
        done = subprocess.run(
            self.command(self.store, *more), capture_output=True, text=True, check=False
        )
        if REFUSED in done.stderr:
            return True
        if self.holder() == before:
            self.losses.append(f"a second driver was not refused: {done.stderr[-300:]}")
        self.note("the first driver ended before the second one came")
        return True

    def second_while_suspended(self) -> bool:
        assert self.driver is not None
        self.driver.send_signal(signal.SIGSTOP)
        try:
            return self.second_driver()
        finally:
            self.driver.send_signal(signal.SIGCONT)

    def vanish(self) -> bool:
        assert self.driver is not None
        if self.holder() is None:
            return False  # a starting driver would rightly create a new store
        aside = self.disk / "vanished"
        self.store.rename(aside)
        self.must_end("its store vanished")
        self.driver.kill()
        self.driver.wait()
        if committed_units(self.store):
            self.losses.append("a unit was committed in the place of a vanished store")
        while self.store.exists():
            shutil.rmtree(self.store, ignore_errors=True)
        aside.rename(self.store)
        return True

    def fill_disk(self) -> bool:
        ballast = self.disk / "ballast"
        with suppress(OSError), ballast.open("wb", buffering=0) as file:
            while True:
                file.write(b"\0" * self.rng.choice([2**20, 2**16, 2**12]))
        self.wait_for_end(5)
        ballast.unlink()
        return True

    def read_only(self) -> bool:
        remount = ["mount", "-o", "remount,ro", str(self.disk)]
        for _ in range(50):  # busy while a file is open for writing
            if not subprocess.run(remount, capture_output=True, check=False).returncode:
                break
            time.sleep(0.02)
        else:
            return False
        self.wait_for_end(5)
        remount[2] = "remount,rw"
        subprocess.run(remount, check=True)
        return True

    # --- the campaign ----------------------------------------------------------------------

    def disturb(self, budget: int) -> None:
        """Run drivers on the store until `budget` faults have been injected."""
        goal = self.faults.total() + budget
        names, weights = list(self.live), [weight for weight, _ in self.live.values()]
        while self.faults.total() < goal:
            self.start()
            self.wait_for_work()
            while not self.ended():
                time.sleep(self.rng.expovariate(1 / self.options.pause_s))
                if self.driver is None or self.driver.poll() is not None:
                    continue
                if self.faults.total() < goal:
                    name = self.rng.choices(names, weights)[0]
                    if self.live[name][1]():
                        self.faults[name] += 1
                        self.note(name)
            self.damage()

    def damage(self) -> None:
        """Damage the store between drivers, one to four times, and repair it."""
        if not committed_units(self.store):
            return
        damager = Damager(self.store, self.rng)
        names, weights = list(self.at_rest), list(self.at_rest.values())
        for _ in range(self.rng.randint(1, 4)):
            name = self.rng.choices(names, weights)[0]
            if damager.kinds[name]():
                self.faults[name] += 1
                self.note(name)
        orphans = self.nodes.workers()
        garbage = self.repair()
        if not garbage:
            return
        if not orphans:
            self.losses.append(f"repair left garbage without any worker running: {garbage[:3]}")
        if not self.nodes.wait_for_orphans(ORPHANS_S):
            self.unclean.append(f"workers outlive their driver by {ORPHANS_S:.0f} s")
        elif garbage := self.repair():
            self.losses.append(f"repair left garbage after all workers had ended: {garbage[:3]}")

    def repair(self) -> list[Orphan]:
        """Repair the store, which must then be sound; return garbage written since."""
        try:
            repair_store(self.store)
            found = verify_store(self.store)
        except StrataError as error:
            self.losses.append(f"not repaired: {error}")
            return []
        if not found.ok:
            self.losses.append(f"repair left {found.damages[:3]}")
        return [orphan for orphan in found.orphans if orphan.is_garbage]

    def one_run(self, budget: int, undisturbed: dict[str, Any]) -> None:
        """Extract into a new store under faults; then let a driver finish, and compare."""
        self.runs += 1
        shutil.rmtree(self.store, ignore_errors=True)
        self.disturb(budget)
        for _ in range(3):
            self.start()
            assert self.driver is not None
            self.wait_for_end(600)
            if self.ended() and self.driver.returncode == 0:
                break
        else:
            self.losses.append(f"run {self.runs} does not end: {self.log.read_text()[-500:]}")
        if not self.nodes.wait_for_orphans(ORPHANS_S):
            self.unclean.append(f"workers outlive their driver by {ORPHANS_S:.0f} s")
        self.losses += compare(self.store, undisturbed) + overlaps(self.store)
        self.note(f"run {self.runs} ends, {len(self.losses)} losses")

    def close(self) -> None:
        """End what is still running."""
        if self.driver is not None and self.driver.poll() is None:
            self.driver.kill()
            self.driver.wait()
        self.nodes.close()

    def note(self, line: str) -> None:
        """Print a line of progress."""
        done = len(committed_units(self.store))
        total = self.faults.total()
        print(f"{time.strftime('%H:%M:%S')} {total:4d} faults, {done:3d} units: {line}", flush=True)


def last_line(output: str) -> str:
    """Return the last line that a driver printed, without numbers and paths."""
    last = next((line for line in reversed(output.splitlines()) if line.strip()), "nothing")
    return re.sub(r"\d+", "#", re.sub(r"\S*/\S*", "PATH", last))[:110]


def weighted(text: str) -> tuple[str, int]:
    """Parse KIND=N of the command line."""
    name, _, weight = text.rpartition("=")
    return name, int(weight)


def main() -> int:
    """Run the campaign and print the counts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="folder of audio files")
    parser.add_argument("--faults", type=int, default=200)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--limit", type=int, default=600, help="utterances")
    parser.add_argument("--frames", type=int, default=256, help="frames per unit")
    parser.add_argument("--pause-s", type=float, default=1.5, help="mean time between faults")
    parser.add_argument("--disk-mb", type=int, default=400)
    parser.add_argument(
        "--weight",
        type=weighted,
        action="append",
        default=[],
        metavar="KIND=N",
        help="how often a kind of fault is drawn, e.g. 'vanished store=20'; 0 is never",
    )
    options = parser.parse_args()
    options.data = options.data.absolute()
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="strata-chaos-") as folder:
        options.work = Path(folder)
        with own_disk(options.work, options.disk_mb) as (disk, may_mount):
            campaign = Campaign(options, disk, may_mount)
            try:
                baseline = options.work / "undisturbed"
                subprocess.run(campaign.command(baseline, "engine=inline"), check=True)
                undisturbed = contents(baseline)
                for i in range(options.runs):
                    left = options.faults - campaign.faults.total()
                    campaign.one_run(-(-left // (options.runs - i)), undisturbed)
                attempts = len(read_claims(campaign.store))
            finally:
                campaign.close()
    print(
        f"\n{campaign.faults.total()} faults in {campaign.runs} runs, {campaign.drivers} drivers, "
        f"{time.monotonic() - began:.0f} s, seed {options.seed}; {attempts} attempts at "
        f"{sum(name.endswith('rows') for name in undisturbed)} units in the last run"
    )
    for name, count in campaign.faults.most_common():
        print(f"{count:6d}  {name}")
    print("drivers ended:", ", ".join(f"{n}× {how}" for how, n in campaign.exits.most_common()))
    for words, count in campaign.last_lines.most_common():
        print(f"{count:6d}  exit 1: {words}")
    for title, lines in (("unclean ends", campaign.unclean), ("losses", campaign.losses)):
        print(f"{title}: {len(lines)}")
        for line in lines[:20]:
            print("  ", line)
    return 1 if campaign.losses else 0


if __name__ == "__main__":
    sys.exit(main())
