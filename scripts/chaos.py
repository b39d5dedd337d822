"""The campaign behind scripts/chaos: faults at random moments, then a count of what was lost.

Each run extracts the data into a fresh store with real drivers (`strata extract` in processes of
their own) on a real Ray cluster of two nodes, while workers, drivers, nodes and the disk fail;
between drivers the store itself is damaged and repaired. In the end the store must verify, hold
every utterance once, and equal an undisturbed one byte by byte, unit by unit.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from chaos_damage import Damager

from pipeline.errors import StrataError
from pipeline.store.index import committed_units
from pipeline.store.layout import index_key
from pipeline.store.lease import live_holder
from pipeline.store.ledger import read_claims
from pipeline.store.log import read_log
from pipeline.store.repair import repair_store
from pipeline.store.verify import verify_store
from pipeline.store.writer import layout_of, read_attributes, read_plan

DRAIN_PREEMPTION = 2  # ray.rpc.autoscaler DRAIN_NODE_REASON_PREEMPTION
NODE = {"num_cpus": 1, "object_store_memory": 80 * 2**20}


class Nodes:
    """A Ray cluster of two nodes on this machine; the second may be lost."""

    def __init__(self) -> None:
        import ray
        from ray.cluster_utils import Cluster

        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        self.cluster = Cluster(initialize_head=True, head_node_args=NODE)
        self.second = self.cluster.add_node(**NODE)
        ray.init(address=self.cluster.address, log_to_driver=False, logging_level="ERROR")
        self.address = self.cluster.address

    def workers(self) -> list[int]:
        """Processes of workers of this cluster, and of no other one."""
        raylets = {
            info.process.pid
            for node in self.cluster.list_all_nodes()
            for info in node.all_processes.get("raylet", [])
        }
        found = []
        for path in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                parent = int((path / "stat").read_text().rpartition(")")[2].split()[1])
                if parent in raylets and b"ray::_Actor" in (path / "cmdline").read_bytes():
                    found.append(int(path.name))
        return found

    def lose(self) -> None:
        """Loses the second node at once; another one takes its place."""
        self.cluster.remove_node(self.second, allow_graceful=False)
        self.second = self.cluster.add_node(**NODE)

    def drain(self) -> None:
        """Gives the second node notice, and takes it away a moment later."""
        from ray._private.worker import global_worker

        deadline_ms = int((time.time() + 30) * 1000)
        global_worker.gcs_client.drain_node(
            self.second.node_id, DRAIN_PREEMPTION, "chaos", deadline_ms
        )
        time.sleep(3)
        self.lose()

    def close(self) -> None:
        """Ends it all."""
        import ray

        ray.shutdown()
        self.cluster.shutdown()


class Campaign:
    """Runs until enough faults are injected."""

    def __init__(self, options: argparse.Namespace, disk: Path, may_mount: bool) -> None:
        self.options = options
        self.rng = random.Random(options.seed)
        self.disk = disk
        self.may_mount = may_mount
        self.nodes = Nodes()
        self.store = disk / "store"
        self.faults: Counter[str] = Counter()
        self.exits: Counter[str] = Counter()
        self.losses: list[str] = []
        self.unclean: list[str] = []
        self.runs = self.drivers = 0
        self.driver: subprocess.Popen[str] | None = None
        kill = self.kill_worker
        self.live: dict[str, tuple[int, Callable[[], bool]]] = {
            "worker SIGKILL": (18, lambda: kill(signal.SIGKILL)),
            "worker SIGSEGV": (8, lambda: kill(signal.SIGSEGV)),
            "worker paused, then goes on": (5, self.pause_worker),
            "driver SIGKILL": (8, lambda: self.signal_driver(signal.SIGKILL)),
            "driver SIGTERM": (4, lambda: self.signal_driver(signal.SIGTERM)),
            "driver SIGINT": (3, lambda: self.signal_driver(signal.SIGINT)),
            "driver signalled twice": (2, self.signal_twice),
            "node loss": (4, self.lose_node),
            "pre-emption notice": (3, self.drain_node),
            "second driver": (2, self.second_driver),
            "vanished store": (3, self.vanish),
        }
        if may_mount:
            self.live["disk full"] = (4, self.fill_disk)
            self.live["read-only store"] = (3, self.read_only)

    def command(self, store: Path, *more: str) -> list[str]:
        """One driver."""
        return [
            *(sys.executable, "-m", "pipeline", "extract", "dataset=audiofolder"),
            *(f"dataset.path={self.options.data}", f"dataset.limit={self.options.limit}"),
            *("model=tiny", f"store={store}", f"plan.frames_per_unit={self.options.frames}"),
            *("engine.threads=1", *more),
        ]

    def start(self) -> None:
        """Starts a driver on the cluster."""
        self.drivers += 1
        more = ["engine=ray", "engine.workers=2", f"engine.address={self.nodes.address}"]
        self.said = self.options.work / "driver.log"
        with self.said.open("w") as file:
            self.driver = subprocess.Popen(self.command(self.store, *more), stderr=file)

    def ended(self) -> bool:
        """Whether the driver is gone; takes note of how."""
        assert self.driver is not None
        code = self.driver.poll()
        if code is None:
            return False
        self.exits[f"exit {code}"] += 1
        said = self.said.read_text()
        told = "units committed" in said or "run the same command again" in said
        signalled = code in (-signal.SIGTERM, -signal.SIGINT)  # when all is said and done
        fine = code in (0, 1, -signal.SIGKILL) or (signalled and told)
        traceback = "Traceback" in said and not (told and "KeyboardInterrupt" in said)
        if traceback or not fine:
            self.unclean.append(f"exit {code}: {said[-300:]}")
        return True

    def wait_for_end(self, timeout_s: float) -> None:
        """Gives the driver time to notice."""
        end = time.monotonic() + timeout_s
        while time.monotonic() < end and self.driver is not None and self.driver.poll() is None:
            time.sleep(0.1)

    def holds(self) -> bool:
        """Whether the driver has taken the store's lease."""
        assert self.driver is not None
        holder = live_holder(self.store)
        return holder is not None and holder.pid == self.driver.pid

    def wait_for_work(self) -> None:
        """Waits until the driver has given out units, mostly: some faults hit a run that starts."""
        if self.rng.random() < 0.2:
            return
        known = len(list(self.store.glob("ledger/slot-*.json")))
        while self.driver is not None and self.driver.poll() is None:
            if len(list(self.store.glob("ledger/slot-*.json"))) > known:
                return
            time.sleep(0.02)

    # --- faults while a driver runs; each says whether it happened -------------------------

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
        if number != signal.SIGKILL and not self.holds():
            return False  # before its handlers are there, the interpreter's own ones act
        self.driver.send_signal(number)
        self.wait_for_end(30)
        return True

    def signal_twice(self) -> bool:
        assert self.driver is not None
        if not self.holds():
            return False
        self.driver.send_signal(signal.SIGTERM)
        time.sleep(self.rng.uniform(0, 0.3))
        self.driver.send_signal(signal.SIGINT)
        self.wait_for_end(30)
        return True

    def lose_node(self) -> bool:
        self.nodes.lose()
        return True

    def drain_node(self) -> bool:
        self.nodes.drain()
        return True

    def second_driver(self) -> bool:
        assert self.driver is not None
        if not self.holds():
            return False
        more = ["engine=inline"]
        done = subprocess.run(
            self.command(self.store, *more), capture_output=True, text=True, check=False
        )
        if "is in use by process" not in done.stderr:
            self.tell("the first driver ended before the second one came")
        return True

    def vanish(self) -> bool:
        assert self.driver is not None
        if not self.holds():
            return False  # a driver that starts now would begin a new store, and rightly
        aside = self.disk / "vanished"
        self.store.rename(aside)
        self.wait_for_end(15)
        self.driver.kill()
        self.driver.wait()
        if committed_units(self.store):
            self.losses.append("a unit was committed in the place of a store that had vanished")
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
        """Runs drivers on the store until `budget` faults have been injected."""
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
                        self.tell(name)
            self.damage()

    def damage(self) -> None:
        """Damages the store at rest, one to four times, and repairs it."""
        if not committed_units(self.store):
            return
        damager = Damager(self.store, self.rng)
        for _ in range(self.rng.randint(1, 4)):
            name = self.rng.choice(sorted(damager.kinds))
            if damager.kinds[name]():
                self.faults[name] += 1
                self.tell(name)
        try:
            repair_store(self.store)
            found = verify_store(self.store)
        except StrataError as error:
            self.losses.append(f"not repaired: {error}")
            return
        if not found.ok:  # garbage may have come since: orphans of a killed driver go on writing
            self.losses.append(f"repair left {found.damages[:3]}")

    def one_run(self, budget: int, quiet: dict[str, Any]) -> None:
        """A fresh store, faults, and an end in peace."""
        self.runs += 1
        shutil.rmtree(self.store, ignore_errors=True)
        self.disturb(budget)
        for _ in range(3):
            self.start()
            assert self.driver is not None
            self.driver.wait(600)
            self.ended()
            if self.driver.returncode == 0:
                break
        else:
            self.losses.append(f"run {self.runs} does not end: {self.said.read_text()[-500:]}")
        self.losses += compare(self.store, quiet) + overlaps(self.store)
        self.tell(f"run {self.runs} ends, {len(self.losses)} losses")

    def close(self) -> None:
        """Ends what is still running."""
        if self.driver is not None and self.driver.poll() is None:
            self.driver.kill()
            self.driver.wait()
        self.nodes.close()

    def tell(self, line: str) -> None:
        """Says what goes on."""
        done = len(committed_units(self.store))
        total = self.faults.total()
        print(f"{time.strftime('%H:%M:%S')} {total:4d} faults, {done:3d} units: {line}", flush=True)


def contents(store: Path) -> dict[str, Any]:
    """Shards, pooled chunks and index rows by unit, relative to the slot they lie in."""
    layout = layout_of(read_attributes(store))
    found: dict[str, Any] = {}
    for unit in committed_units(store):
        rows = pq.read_table(store / index_key(unit), partitioning=None).to_pylist()
        slot = rows[0]["slot"]
        for row in rows:
            row.pop("slot")
            if row["frame_start"] is not None:
                row["frame_start"] -= layout.slot_start(slot)
        found[f"unit {unit} rows"] = rows
        for axis, key in enumerate((*layout.shard_keys(slot), layout.pooled_key(slot))):
            found[f"unit {unit} file {axis}"] = (store / key).read_bytes()
    return found


def compare(store: Path, quiet: dict[str, Any]) -> list[str]:
    """What is lost, doubled or changed in a store, against an undisturbed one."""
    repair_store(store)
    found = verify_store(store)
    losses = [f"{stray.path}: {stray.what}" for stray in found.strays if stray.is_garbage]
    losses += [f"unit {damage.unit}: {damage.problem}" for damage in found.damages]
    plan = read_plan(store)
    assert plan is not None
    if found.units_committed != plan.n_units:
        losses.append(f"{plan.n_units - found.units_committed} units are not committed")
    now = contents(store)
    rows = [row for name, rows in now.items() if name.endswith("rows") for row in rows]
    seen = Counter(row["row"] for row in rows)
    planned = plan.table["row"].to_pylist()
    losses += [f"row {row} is there {seen[row]} times" for row in planned if seen[row] != 1]
    names = sorted(quiet.keys() | now.keys())
    differing = [name for name in names if quiet.get(name) != now.get(name)]
    return losses + [f"{name} differs from the undisturbed store" for name in differing]


def overlaps(store: Path) -> list[str]:
    """Runs that wrote to the log after the next one had begun: two drivers at work at once."""
    latest, found = "", []
    for event in read_log(store):
        run = event["run_id"]
        if event["event"] == "run_started":
            latest = run
        elif run != latest and not run.startswith("repair"):
            found.append(f"run {run} went on after run {latest} had begun: {event['event']}")
    return found


@contextmanager
def own_disk(work: Path, megabytes: int) -> Iterator[tuple[Path, bool]]:
    """A small file system of our own where that is permitted, else a folder."""
    disk = work / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "none", str(disk)]
    may_mount = not subprocess.run(mount, capture_output=True, check=False).returncode
    try:
        yield disk, may_mount
    finally:
        if may_mount:
            subprocess.run(["umount", "-l", str(disk)], check=False)


def main() -> int:
    """Runs the campaign and prints the count."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="folder of audio files")
    parser.add_argument("--faults", type=int, default=200)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--limit", type=int, default=600, help="utterances")
    parser.add_argument("--frames", type=int, default=256, help="frames per unit")
    parser.add_argument("--pause-s", type=float, default=1.5, help="mean time between faults")
    parser.add_argument("--disk-mb", type=int, default=400)
    options = parser.parse_args()
    options.data = options.data.absolute()
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="strata-chaos-") as folder:
        options.work = Path(folder)
        with own_disk(options.work, options.disk_mb) as (disk, may_mount):
            campaign = Campaign(options, disk, may_mount)
            try:
                still = options.work / "quiet"
                subprocess.run(campaign.command(still, "engine=inline"), check=True)
                quiet = contents(still)
                for i in range(options.runs):
                    left = options.faults - campaign.faults.total()
                    campaign.one_run(-(-left // (options.runs - i)), quiet)
                attempts = len(read_claims(campaign.store))
            finally:
                campaign.close()
    print(
        f"\n{campaign.faults.total()} faults in {campaign.runs} runs, {campaign.drivers} drivers, "
        f"{time.monotonic() - began:.0f} s, seed {options.seed}; {attempts} attempts at "
        f"{sum(name.endswith('rows') for name in quiet)} units in the last run"
    )
    for name, count in campaign.faults.most_common():
        print(f"{count:6d}  {name}")
    print("drivers ended:", ", ".join(f"{n}× {how}" for how, n in campaign.exits.most_common()))
    for title, lines in (("unclean ends", campaign.unclean), ("losses", campaign.losses)):
        print(f"{title}: {len(lines)}")
        for line in lines[:20]:
            print("  ", line)
    return 1 if campaign.losses else 0


if __name__ == "__main__":
    sys.exit(main())
