"""Extract to a bucket and read from it through a proxy that spoils requests; nothing may be lost.

    campaigns/object_faults.py [--faults 500] [--seed 0] [--share 0.12]

Each round extracts a small corpus with a tiny encoder into a new prefix of an S3 server on this
machine (localbucket). A share of all requests fails: connections are dropped, answers come late,
twice, cut short, with 503 or 429, or are lost after the server has done what was asked; requests
arrive after the client has given them up. Creations, on which commits and claims depend, fail three
times as often. In half of the rounds the driver is killed (SIGKILL) at a random moment and started
again, and in half of them a second driver starts beside it. When a driver has ended well, these
must hold:

- the objects and the index rows of every unit equal those of an undisturbed run on a disk;
- `verify` finds the store sound, and the server has no unfinished upload;
- no driver has deleted an object of a committed slot;
- readers get equal features through the same proxy, with the same faults.

A seed reproduces the kinds of faults, not the moments of other processes. Prints a line for each
round, and exits 1 if something does not hold.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import torch

import pipeline
from pipeline.errors import StrataError
from pipeline.store.index import read_index
from pipeline.store.maintain.verify import verify_store

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from tests.helpers.corpus import mixed_lengths, write_folder
from tests.helpers.extraction import INLINE, contents, extract
from tests.servers.localbucket import BUCKET, LocalBucket, environment, start_localbucket
from tests.servers.proxy import Fault, Proxy, Request, start_proxy

DRIVER = """
import sys
from tests.helpers.extraction import INLINE, extract
from pipeline.errors import StoreBusyError
try:
    extract(sys.argv[1], sys.argv[2], *INLINE)
except StoreBusyError as error:
    sys.exit(f"busy: {error}")
"""
MOST_STARTS = 30
SHARD = re.compile(r"/frames/c/\d+/(\d+)/0$")


@dataclass
class Tally:
    """What happened so far.

    Attributes:
        injected: Faults by kind of request and kind of fault.
        kills: Drivers that were killed.
        refused: Drivers that another one kept out.
        problems: What does not hold.
    """

    injected: Counter[tuple[str, Fault]] = field(default_factory=Counter)
    kills: int = 0
    refused: int = 0
    problems: list[str] = field(default_factory=list)


class Spoiler:
    """Chooses the faults of a proxy."""

    def __init__(self, seed: int, share: float, tally: Tally) -> None:
        self._random, self._share, self._tally = random.Random(seed), share, tally

    def __call__(self, request: Request) -> Fault | None:
        """Return the fault of a request; None for most."""
        share = self._share * (3 if request.kind == "CREATE" else 1)
        if self._random.random() > share:
            return None
        fault = self._random.choice([kind for kind in Fault if self._is_of_use(kind, request)])
        self._tally.injected[request.kind, fault] += 1
        return fault

    @staticmethod
    def _is_of_use(fault: Fault, request: Request) -> bool:
        """Whether a fault is another one than a lost connection for this kind of request."""
        writes = request.method in ("PUT", "DELETE", "POST")
        return writes if fault in (Fault.LATE, Fault.TWICE, Fault.LOST) else True


def main() -> None:
    """Run rounds until enough requests have failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--faults", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--share", type=float, default=0.12, help="of the requests that fail")
    options = parser.parse_args()
    tally, chance = Tally(), random.Random(options.seed)
    with tempfile.TemporaryDirectory() as name, start_localbucket(Path(name)) as server:
        folder = Path(name)
        clips = write_folder(folder / "clips", mixed_lengths(24))
        extract(clips, folder / "reference", *INLINE)
        with start_proxy(server.url) as proxy:
            proxy.moment_s = 0.5
            os.environ |= environment(proxy.url)
            number = 0
            while sum(tally.injected.values()) < options.faults and len(tally.problems) < 10:
                number += 1
                proxy.choose = Spoiler(options.seed + number, options.share, tally)
                run_round(number, clips, server, proxy, chance, tally)
    for (kind, fault), n in sorted(tally.injected.items(), key=str):
        print(f"{kind:7s} {fault.name:10s} {n:5d}")
    print(
        f"{sum(tally.injected.values())} faults in {number} rounds, {tally.kills} drivers killed, "
        f"{tally.refused} kept out, {len(tally.problems)} problems"
    )
    sys.exit(1 if tally.problems else 0)


def run_round(
    number: int,
    clips: Path,
    server: LocalBucket,
    proxy: Proxy,
    chance: random.Random,
    tally: Tally,
) -> None:
    """Extract into a new prefix, and check what is there."""
    began, before = time.perf_counter(), sum(tally.injected.values())
    prefix, first = f"round-{number}", len(proxy.requests)
    uri = f"s3://{BUCKET}/{prefix}"
    kills = chance.random() < 0.5
    second = chance.random() < 0.5
    end = "did not end well"
    for _ in range(MOST_STARTS):
        drivers = [start_driver(clips, uri) for _ in range(1 + second)]
        if kills:
            time.sleep(chance.uniform(1.5, 6.0))
            if drivers[0].poll() is None:
                drivers[0].send_signal(signal.SIGKILL)
                tally.kills += 1
                kills = chance.random() < 0.3
        ends = [driver.communicate()[1].decode() for driver in drivers]
        tally.refused += sum("busy:" in text for text in ends)
        if any(driver.returncode == 0 for driver in drivers):
            break
        end = ends[0].strip().splitlines()[-1] if ends[0].strip() else "killed"
        second = False
    else:
        tally.problems.append(f"round {number}: {end}")
        print(tally.problems[-1])
        return
    try:
        found = problems(uri, prefix, server, proxy, first, clips.parent / "reference")
    except (OSError, StrataError) as error:
        found = [f"{type(error).__name__}: {error}"]
    tally.problems += [f"round {number}: {text}" for text in found]
    n = sum(tally.injected.values()) - before
    print(
        f"round {number}: {n} faults, {len(proxy.requests) - first} requests, "
        f"{time.perf_counter() - began:.1f} s: {'; '.join(found) or 'equal'}",
        flush=True,
    )


def start_driver(clips: Path, uri: str) -> subprocess.Popen[bytes]:
    """Start an extraction."""
    command = [sys.executable, "-c", DRIVER, str(clips), uri]
    root = Path(__file__).resolve().parents[1]
    return subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(root)},
    )


def problems(
    uri: str, prefix: str, server: LocalBucket, proxy: Proxy, first: int, reference: Path
) -> list[str]:
    """Return what does not hold of a store that a driver has completed."""
    found = []
    here = server.folder / BUCKET / prefix
    if contents(here) != contents(reference):
        found.append("objects or index rows differ from those of an undisturbed run")
    slots = set(read_index(here, columns=["unit", "slot"])["slot"].to_pylist())
    deleted = {
        int(match[1])
        for request in proxy.requests[first:]
        if request.method == "DELETE" and f"/{prefix}/" in request.path
        for match in [SHARD.search(request.path)]
        if match
    }
    if slots & deleted:
        found.append(f"shards of committed slots were deleted: {sorted(slots & deleted)}")
    if server.unfinished:
        found.append(f"{len(server.unfinished)} uploads are unfinished")
    there, expected = pipeline.open_store(uri), pipeline.open_store(reference)
    if not all(
        torch.equal(a, b) for a, b in zip(there.read_many(range(len(there))), expected, strict=True)
    ):
        found.append("a reader gets other features")
    if not torch.equal(there.pooled(), expected.pooled()):
        found.append("a reader gets other means")
    checked = verify_store(uri)
    if not checked.ok:
        found.append(f"verify: {checked}")
    return found


if __name__ == "__main__":
    main()
