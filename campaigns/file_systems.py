"""Extract on many file systems, with drivers that are killed, and compare the stores.

    sudo .venv/bin/python campaigns/file_systems.py [--only WORDS] [--kills N] [--seed S]

Every file system is made here: in files through loop devices, by FUSE programs, and by
`faulty_mount.py`, which mounts a folder with the faults of network and cloud file systems. On each,
processes race to create files, drivers are killed at random moments until a last one finishes, and
the store is compared with one on the local disk, byte by byte and unit by unit. What this machine
cannot make is skipped, with the reason. Needs root; the programs that are used are named by what
is skipped. Exit 1 if anything is lost or wrong, or a refusal is not the expected one.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import multiprocessing
import os
import random
import re
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from chaos_checks import compare, contents, overlaps
from file_system_kinds import KINDS, Kind, Place, SkippedError, command

import pipeline.extract.run  # noqa: F401 - what a driver imports, once for all
from pipeline.cli.app import app
from pipeline.errors import StrataError
from pipeline.store.backend.opening import open_backend
from pipeline.store.format.layout import LEASE
from pipeline.store.index import committed_units
from pipeline.store.read.features import open_store

RACERS, ROUNDS = 3, 30
CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH, CAP_FOWNER = 1, 2, 3
NOT_THE_OWNER = (CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH, CAP_FOWNER)
RUNS = 12
"""Runs after which a store must be finished, once nothing is killed any more."""
_CLONE_NEWNS, _CLONE_NEWUTS, _CLONE_NEWPID = 0x00020000, 0x04000000, 0x20000000


@dataclass
class Campaign:
    """Results of the campaign.

    Attributes:
        options: The command line.
        data: Folder of clips.
        undisturbed: Content of a store on the local disk.
        wall_s: Seconds that a driver took there.
        rows: File system, what was done, and the result.
    """

    options: argparse.Namespace
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
            *(f"store={store}", "plan.frames_per_unit=256", "engine=inline", "engine.threads=1"),
        ]


class Command:
    """`strata` in a fork of this process, which has imported everything already."""

    def __init__(
        self, words: Sequence[str], log: Path, drop: Sequence[int] = (), host: str = ""
    ) -> None:
        self.log = log
        sys.stdout.flush()
        self.pid = os.fork()
        if self.pid == 0:
            _become(words, log, drop, host)
        self.code: int | None = None

    def wait(self, timeout_s: float = 300.0) -> int:
        """Wait for the end; return the exit code, or minus the signal."""
        end_s = time.monotonic() + timeout_s
        while not self.ended():
            if time.monotonic() > end_s:
                self.kill()
            time.sleep(0.02)
        assert self.code is not None
        return self.code

    def ended(self) -> bool:
        """Return whether it has ended."""
        if self.code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.code = os.waitstatus_to_exitcode(status)
        return self.code is not None

    def kill(self) -> None:
        """End it by SIGKILL, with all that it has started."""
        if not self.ended():
            os.killpg(self.pid, signal.SIGKILL)
            self.wait()

    def last_line(self) -> str:
        """Return the last line that it printed."""
        lines = [line.strip() for line in self.log.read_text().splitlines() if line.strip()]
        return lines[-1] if lines else "nothing"

    def is_clean(self) -> bool:
        """Return whether it printed no traceback and no unexpected error."""
        text = self.log.read_text()
        return "Traceback" not in text and "error: unexpected" not in text


def _become(words: Sequence[str], log: Path, drop: Sequence[int], host: str) -> None:
    """Run the command in this fork, and end the process."""
    code = 1
    try:
        os.setpgid(0, 0)
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        for standard in (1, 2):
            os.dup2(descriptor, standard)
        if host:
            _move_to_host(host)
        if drop:
            _drop_capabilities(drop)
        app(list(words), standalone_mode=True)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException as error:  # noqa: BLE001 - a fork must not go on in the campaign
        print(f"Traceback: {error!r}", file=sys.stderr)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _move_to_host(name: str) -> None:
    """Give this process a host name and processes of its own, as on another machine."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_CLONE_NEWNS | _CLONE_NEWUTS | _CLONE_NEWPID):
        raise OSError(ctypes.get_errno(), "unshare")
    child = os.fork()
    if child:
        os._exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) & 0xFF)
    libc.mount(b"none", b"/", None, 0x44000, None)  # private, and all below it
    libc.mount(b"proc", b"/proc", b"proc", 0, None)
    libc.sethostname(name.encode(), len(name))
    libc.prctl(1, signal.SIGKILL)  # end with the parent


def _drop_capabilities(numbers: Sequence[int]) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    data = (ctypes.c_uint32 * 6)()  # effective, permitted, inheritable; twice 32 bits
    libc.capget(header, data)
    for number in numbers:
        for part in range(3):
            data[number // 32 * 3 + part] &= ~(1 << number % 32)
    if libc.capset(header, data):
        raise OSError(ctypes.get_errno(), "capset")


# --- what is done on each file system -----------------------------------------------------------


def race(place: Place) -> str:
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
    time.sleep(3.5 if len(place.paths) > 1 else 0)
    for i in range(ROUNDS):
        winners = [me for me in range(RACERS) if found[me][i]]
        content = (place.paths[0] / "race" / f"{i}").read_bytes()
        if len(winners) != 1 or content != f"{winners[0]}".encode() * 500:
            return f"WRONG: round {i} was won by {winners}, content of {content[:1]!r}"
    return "one winner in each round"


def killed_runs(campaign: Campaign, place: Place, rng: random.Random, log: Path) -> str:
    """Kill drivers at random moments, on each machine in turn; then let one finish, and compare."""
    stores = [path / "store" for path in place.paths]
    n_killed, errors, is_faulty = 0, [], place.heal is not None
    for _ in range(campaign.options.kills):
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
    """Read, verify and extract a finished store that cannot be written."""
    wanted = {
        "status": (["status", str(store)], ""),
        "verify": (["verify", str(store)], ""),
        "extract": (campaign.extract_words(store), "nothing is left to do"),
    }
    for name, (words, told) in wanted.items():
        done = Command(words, log, drop)
        if done.wait() or not done.is_clean() or told not in log.read_text():
            return f"WRONG: {name} exits {done.code}: {log.read_text()[-500:]}"
    opened = open_store(store)
    opened.read(opened.ids[0])
    return "reads, verifies; extract says that nothing is left to do"


def disturbed_run(campaign: Campaign, place: Place, what: str, log: Path) -> str:
    """Disturb the file system in a run, which ends with one line; then a run finishes."""
    disturb, mend = place.disturbances[what]
    store = place.paths[0] / what.replace(" ", "-")
    driver = Command(campaign.extract_words(store), log)
    wait_for_commits(store, 1, driver)
    disturb()
    code, line = driver.wait(), driver.last_line()
    mend()
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
    for i in range(campaign.options.kills):
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


def try_kind(campaign: Campaign, kind: Kind, work: Path) -> None:
    """Do all that can be done on a file system."""
    rng = random.Random(f"{campaign.options.seed} {kind.name}")
    log = work / "driver.log"
    with contextmanager(kind.mount)(work) as place:
        if len(place.paths) > 1:
            steps: dict[str, Callable[[], str]] = {
                "race": lambda: race(place),
                "two drivers, killed": lambda: two_machines(campaign, place, rng, log),
            }
        else:
            steps = {
                "race": lambda: race(place),
                "kills": lambda: killed_runs(campaign, place, rng, log),
            }
        if kind.expected:
            del steps["race"]
        if kind.warning:
            campaign.add(kind.name, "warning", warned(campaign, kind, place, log))
            result = steps.pop("race")()
            campaign.add(kind.name, "race", result.replace("WRONG", "not promised"))
            return
        for what, step in steps.items():
            result = step()
            is_refused = result.startswith("refused")
            if kind.expected and not (is_refused and kind.expected in result):
                result = f"WRONG: expected a refusal: {result}"
            elif kind.expected:
                result += " (as expected)"
            campaign.add(kind.name, what, result)
            if result.startswith(("refused", "WRONG")):
                return
        for what in place.disturbances:
            campaign.add(kind.name, f"{what} in a run", disturbed_run(campaign, place, what, log))
        if "read-only" not in place.disturbances:
            return
        store = place.paths[0] / "store"
        disturb, mend = place.disturbances["read-only"]
        disturb()
        result = without_permission(campaign, store, log, ())
        mend()
        campaign.add(kind.name, "finished, mounted read-only", result)
        if kind.name != "ext4":
            return
        command("chown", "-R", "1:1", store)
        result = without_permission(campaign, store, log, NOT_THE_OWNER)
        campaign.add(kind.name, "finished, of another user", result)


def write_clips(folder: Path, n: int) -> None:
    """Write clips of noise, between 0.1 and 3 s."""
    rng = np.random.default_rng(0)
    folder.mkdir()
    for i in range(n):
        noise = 0.1 * rng.standard_normal(round(16_000 * rng.uniform(0.1, 3)))
        soundfile.write(folder / f"clip-{i:03d}.wav", noise, 16_000)


def main() -> int:
    """Run the campaign and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="regular expression of names")
    parser.add_argument("--kills", type=int, default=5, help="drivers to kill on each")
    parser.add_argument("--clips", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if os.geteuid():
        raise SystemExit("mounting needs root: sudo .venv/bin/python campaigns/file_systems.py")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="strata-file-systems-") as name:
        top = Path(name)
        campaign = Campaign(options, top / "clips")
        write_clips(campaign.data, options.clips)
        began = time.monotonic()
        first = Command(campaign.extract_words(top / "undisturbed"), top / "log")
        if first.wait():
            raise SystemExit(first.log.read_text())
        campaign.wall_s = time.monotonic() - began
        campaign.undisturbed = contents(top / "undisturbed")
        print(f"{len(campaign.undisturbed)} objects, {campaign.wall_s:.1f} s a run\n")
        print("| file system | what was done | result |\n|---|---|---|")
        for i, kind in enumerate(kind for kind in KINDS if re.search(options.only, kind.name)):
            work = top / f"{i}"
            work.mkdir()
            try:
                try_kind(campaign, kind, work)
            except SkippedError as reason:
                campaign.add(kind.name, "skipped", str(reason))
    results = [result for _, _, result in campaign.rows]
    n_wrong = sum("WRONG" in result for result in results)
    n_refused = sum(r.startswith("refused") and "as expected" not in r for r in results)
    print(f"\n{json.dumps({'results': len(results), 'wrong': n_wrong, 'not expected': n_refused})}")
    return 1 if n_wrong or n_refused else 0


if __name__ == "__main__":
    sys.exit(main())
