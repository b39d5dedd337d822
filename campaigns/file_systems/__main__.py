"""Extract on many file systems, with drivers that are killed, and compare the stores.

    sudo .venv/bin/python -m campaigns.file_systems [--only WORDS] [--kills N] [--seed S]

Every file system is made here: in files through loop devices, by FUSE programs, and by
`faulty_mount.py`, which mounts a folder with the faults of network and cloud file systems. On each,
processes race to create files, drivers are killed at random moments until a last one finishes, and
the store is compared with one on the local disk, byte by byte and unit by unit. What this machine
cannot make is skipped, with the reason. Needs root; the programs that are used are named by what
is skipped. Exit 1 if anything is lost or wrong, or a refusal is not the expected one.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import soundfile
import torch

from campaigns.chaos.checks import contents
from campaigns.file_systems.commands import NOT_THE_OWNER, Command, preload_all
from campaigns.file_systems.kinds import KINDS, Kind, SkippedError, command
from campaigns.file_systems.steps import (
    Campaign,
    disturbed_run,
    killed_runs,
    race,
    two_machines,
    warned,
    without_permission,
)


def try_kind(campaign: Campaign, kind: Kind, work: Path) -> None:
    """Do all that can be done on a file system."""
    rng = random.Random(f"{campaign.seed} {kind.name}")
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
    """Write clips of noise, between 0.1 and 3 s, with a word each."""
    rng = np.random.default_rng(0)
    folder.mkdir()
    names = [f"clip-{i:03d}.wav" for i in range(n)]
    rows = "".join(f"{name},word-{i % 3}\n" for i, name in enumerate(names))
    (folder / "metadata.csv").write_text(f"file_name,word\n{rows}")
    for name in names:
        noise = 0.1 * rng.standard_normal(round(16_000 * rng.uniform(0.1, 3)))
        soundfile.write(folder / name, noise, 16_000)


def main() -> int:
    """Run the campaign and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="regular expression of names")
    parser.add_argument("--kills", type=int, default=5, help="drivers to kill on each")
    parser.add_argument("--clips", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if os.geteuid():
        raise SystemExit("mounting needs root: sudo .venv/bin/python -m campaigns.file_systems")
    preload_all()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="strata-file-systems-") as name:
        top = Path(name)
        campaign = Campaign(options.kills, options.seed, top / "clips")
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
