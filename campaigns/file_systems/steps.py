"""What is done on each file system. A result begins with WRONG if a promise is broken."""

from __future__ import annotations

import multiprocessing
import random
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from campaigns.chaos.checks import compare, overlaps
from campaigns.file_systems.commands import Command
from campaigns.file_systems.kinds import Kind, Place
from pipeline.errors import StrataError
from pipeline.store.backend.opening import open_backend
from pipeline.store.format.layout import LEASE
from pipeline.store.index import committed_units
from pipeline.store.read.opening import open_store

RACERS, ROUNDS = 3, 30
RUNS = 12
"""Runs after which a store must be finished, once nothing is killed any more."""


@dataclass
class Campaign:
    """Results of the campaign.

    Attributes:
        n_kills: Drivers to kill on each file system.
        seed: Seed of what is random.
        data: Folder of clips.
        undisturbed: Content of a store on the local disk.
        wall_s: Seconds that a driver took there.
        rows: File system, what was done, and the result.
    """

    n_kills: int
    seed: int
    data: Path
    undisturbed: dict[str, Any] = field(default_factory=dict)
    wall_s: float = 0.0
    rows: list[tuple[str, str, str]] = field(default_factory=list)

    def add(self, kind: str, what: str, result: str) -> None:
        """Add a result and print it."""
        self.rows.append((kind, what, result))
        print(f"| {kind} | {what} | {result} |", flush=True)

    def extract_words(self, store: Path) -> list[str]:
        """Return the arguments of a driver."""
        return [
            *("extract", "dataset=audiofolder", f"dataset.path={self.data}", "model=tiny"),
            *(
                "dataset.columns=[word]",
                f"store={store}",
                "plan.frames_per_unit=256",
                "engine=inline",
                "engine.threads=1",
            ),
        ]


def race(place: Place, settle_s: float = 3.5) -> str:
    """Let processes create files exclusively, each on its machine if there are several."""
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    barrier = context.Barrier(RACERS)

    def run(me: int) -> None:
        backend = open_backend(place.paths[me % len(place.paths)] / "race")
        won = []
        for i in range(ROUNDS):
            try:
                barrier.wait(60)
                won.append(backend.put_if_absent(f"{i}", [f"{me}".encode() * 500]))
            except (StrataError, OSError, threading.BrokenBarrierError) as error:
                won.append(f"{error}")
                barrier.abort()
                break
        results.put((me, won))

    racers = [context.Process(target=run, args=(me,)) for me in range(RACERS)]
    for racer in racers:
        racer.start()
    found = dict(results.get(timeout=600) for _ in racers)
    for racer in racers:
        racer.join()
    refused = [won[-1] for won in found.values() if isinstance(won[-1], str) and won[-1]]
    if refused:
        return f"refused: {refused[0]}"
    time.sleep(settle_s if len(place.paths) > 1 else 0)
    for i in range(ROUNDS):
        winners = [me for me in range(RACERS) if found[me][i]]
        content = read_at_last(place.paths[0] / "race" / f"{i}")
        if len(winners) != 1 or content != f"{winners[0]}".encode() * 500:
            return f"WRONG: round {i} was won by {winners}, content of {content[:1]!r}"
    return "one winner in each round"


def read_at_last(path: Path) -> bytes:
    """Read a file, again after an error of the file system."""
    for _ in range(9):
        with suppress(OSError):
            return path.read_bytes()
    return path.read_bytes()


def killed_runs(campaign: Campaign, place: Place, rng: random.Random, log: Path) -> str:
    """Kill drivers at random moments, on each machine in turn; then let one finish, and compare."""
    stores = [path / "store" for path in place.paths]
    n_killed, errors, is_faulty = 0, [], place.heal is not None
    for _ in range(campaign.n_kills):
        driver = Command(campaign.extract_words(stores[0]), log)
        wait_for_commits(stores[0], rng.randint(0, 2), driver)
        time.sleep(rng.uniform(0, 0.3))
        n_killed += not driver.ended()
        driver.kill()
        if not driver.is_clean():
            return f"WRONG: {log.read_text()[-600:]}"
        if driver.code == 1:
            errors.append(driver.last_line())
    for _ in range(RUNS):
        driver = Command(campaign.extract_words(stores[0]), log)
        driver.wait()
        if not driver.is_clean():
            return f"WRONG: {log.read_text()[-600:]}"
        if driver.code == 0:
            break
        errors.append(driver.last_line())
        if not stores[0].joinpath("plan.parquet").exists() and place.heal is None:
            return f"refused: {driver.last_line()}"
        if place.heal is not None and len(errors) >= 3:
            place.heal()
            place.heal = None
    else:
        return f"WRONG: it does not finish: {driver.last_line()}"
    losses = compare(stores[0], campaign.undisturbed)
    if not is_faulty:  # a fault may hit the log, too
        losses += overlaps(stores[0])
    if losses:
        return f"WRONG: {'; '.join(losses[:3])}"
    told = f"; {len(errors)} runs ended with: {errors[0][:200]}" if errors else ""
    return f"{n_killed} kills, equal to the undisturbed store{told}"


def without_permission(campaign: Campaign, store: Path, log: Path, drop: Sequence[int]) -> str:
    """Read, verify, sweep and extract a finished store that cannot be written."""
    task = ("task=ks", "labels=[word]", "split.speaker=none")
    heads = ("layers=[1]", "task.lrs=[0.01]", "task.steps=20", f"out={log.with_name('sweep')}")
    wanted = {
        "status": (["status", str(store)], ""),
        "sweep": (["sweep", str(store), *task, *heads], ""),
        "verify": (["verify", str(store)], ""),
        "extract": (campaign.extract_words(store), "nothing is left to do"),
    }
    for name, (words, told) in wanted.items():
        done = Command(words, log, drop)
        if done.wait() or not done.is_clean() or told not in log.read_text():
            return f"WRONG: {name} exits {done.code}: {log.read_text()[-500:]}"
    opened = open_store(store)
    opened.read(opened.ids[0])
    return "reads, verifies, sweeps; extract says that nothing is left to do"


def disturbed_run(campaign: Campaign, place: Place, what: str, log: Path) -> str:
    """Disturb the file system in a run, which ends with one line; then a run finishes."""
    disturb, mend = place.disturbances[what]
    store = place.paths[0] / what.replace(" ", "-")
    driver = Command(campaign.extract_words(store), log)
    wait_for_commits(store, 1, driver)
    disturb()
    code, line = driver.wait(), driver.last_line()
    mend()
    if code == 0 and not compare(store, campaign.undisturbed):
        return "the run had ended before"
    if code != 1 or not driver.is_clean():
        return f"WRONG: exit {code}: {log.read_text()[-500:]}"
    if Command(campaign.extract_words(store), log).wait():
        return f"WRONG: it does not finish: {log.read_text()[-300:]}"
    losses = compare(store, campaign.undisturbed)
    return f"WRONG: {losses[:3]}" if losses else f"ended with: {line[:200]}; then finished, equal"


def wait_for_commits(store: Path, n: int, driver: Command) -> None:
    """Wait until a driver has committed `n` more units, or has ended."""
    before = len(committed_units(store))
    while len(committed_units(store)) < before + n and not driver.ended():
        time.sleep(0.005)


def two_machines(campaign: Campaign, place: Place, rng: random.Random, log: Path) -> str:
    """Start drivers on two machines at about the same time, kill some, and let one finish."""
    stores = [path / "store" for path in place.paths]
    told: set[str] = set()
    n_both = 0
    for i in range(campaign.n_kills):
        drivers = []
        for machine, store in enumerate(stores):
            words = campaign.extract_words(store)
            name = log.with_name(f"{log.name}.{machine}")
            drivers.append(Command(words, name, (), f"machine-{machine}"))
            time.sleep(rng.choice([0, 0, 0.3, 1]) * campaign.wall_s)
        time.sleep(rng.uniform(0.5, 1.5) * campaign.wall_s)
        n_both += not any(driver.ended() for driver in drivers)
        for driver in drivers:
            driver.kill() if rng.random() < 0.5 else driver.wait()
            if not driver.is_clean():
                return f"WRONG: {driver.log.read_text()[-600:]}"
            if driver.code:
                told.add(driver.last_line()[:160])
        if not (stores[0] / LEASE).exists() and not (stores[0] / "plan.parquet").exists():
            return f"refused: {driver.last_line()}"
        del i
    end_s = time.monotonic() + 150  # a killed driver of another machine holds its lease a minute
    while (driver := Command(campaign.extract_words(stores[1]), log, (), "machine-1")).wait():
        told.add(driver.last_line()[:160])
        if time.monotonic() > end_s:
            return f"WRONG: it does not finish: {driver.last_line()}"
        time.sleep(5)
    time.sleep(4)
    losses = compare(stores[0], campaign.undisturbed) + overlaps(stores[0])
    if losses:
        return f"WRONG: {'; '.join(losses[:3])}"
    return f"equal; {n_both} times both ran; told: {sorted(told)}"


def warned(campaign: Campaign, kind: Kind, place: Place, log: Path) -> str:
    """Run a driver that must print a warning."""
    driver = Command(campaign.extract_words(place.paths[0] / "store"), log)
    if driver.wait() or kind.warning not in log.read_text():
        return f"WRONG: exit {driver.code}, without the warning: {log.read_text()[-300:]}"
    return next(line for line in log.read_text().splitlines() if kind.warning in line)
