"""Inject faults at random moments, then count what was lost: `-m campaigns.chaos FOLDER`.

Drivers (`strata extract` in processes of their own) extract clips of a folder with a tiny encoder,
while processes are killed, files change, calls fail and clocks jump: `inline.py` with one worker in
the driver's process, `on_ray.py` on a Ray cluster of two nodes. Between drivers the store itself is
damaged and repaired. At the end it must be complete, sound, and equal to that of an undisturbed
run; what differs meanwhile must be reported.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from campaigns.chaos.campaign import Campaign
from campaigns.chaos.cluster import own_disk
from campaigns.chaos.corpus import copy_corpus, write_weights
from campaigns.chaos.drivers import Drivers
from campaigns.chaos.inline import InlineCampaign
from campaigns.chaos.layer import Layer, compile_layer
from campaigns.chaos.on_ray import RayCampaign
from campaigns.chaos.tally import Tally

ROOT = Path(__file__).resolve().parents[2]


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(prog="campaigns.chaos", description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="folder of audio files")
    parser.add_argument("--faults", type=int, default=1000, help="faults without Ray")
    parser.add_argument("--ray-faults", type=int, default=200, help="faults on a Ray cluster")
    parser.add_argument("--faults-per-run", type=int, default=40)
    parser.add_argument("--each-once", action="store_true", help="no kind of fault a second time")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=1e6, help="stop after the run at hand")
    parser.add_argument("--clips", type=int, default=36)
    parser.add_argument("--pause-s", type=float, default=0.7, help="mean, between faults on Ray")
    parser.add_argument("--disk-mb", type=int, default=200)
    for name, where in (("--only", "without Ray"), ("--only-ray", "on Ray")):
        parser.add_argument(
            name, action="append", default=[], metavar="KIND", help=f"kinds of fault {where}"
        )
    parser.add_argument("--tally", type=Path, help="file to which the counts of this leg are added")
    return parser.parse_args(arguments)


def run(options: argparse.Namespace, work: Path) -> Tally:
    """Run the campaign in a folder; return its counts."""
    tally, began = Tally(), time.monotonic()
    rng = random.Random(options.seed)
    copy_corpus(options.data, work / "home" / "corpus", options.clips)
    write_weights(work / "weights.pt", 0)
    library = compile_layer(work)
    layer = Layer(work / "control") if library else None
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    if library and layer:
        environment |= {"LD_PRELOAD": str(library), "CHAOS_CONTROL": str(layer.path)}
    with (
        own_disk(work, options.disk_mb) as (disk, may_mount),
        closing(Drivers(environment)) as drivers,
    ):
        makers: list[tuple[int, list[str], Callable[[], Campaign]]] = [
            (
                options.faults,
                options.only,
                lambda: InlineCampaign(work, disk, drivers, rng, layer, may_mount),
            ),
            (
                options.ray_faults,
                options.only_ray,
                lambda: RayCampaign(work, disk, drivers, rng, may_mount, options.pause_s),
            ),
        ]
        for budget, kinds, make in makers:
            if not budget:
                continue
            campaign = make()
            campaign.is_each_once = options.each_once
            try:
                campaign.only(kinds)
                campaign.prepare()
                while left := max(0, budget - campaign.tally.tries.total()):
                    if time.monotonic() - began > 60 * options.minutes:
                        break
                    if not campaign.wanted([*campaign.live, *campaign.at_rest]):
                        break
                    campaign.one_run(min(left, options.faults_per_run))
            finally:
                campaign.close()
                tally.add(campaign.tally)
    return tally


def main() -> int:
    """Run the campaign and print the counts."""
    options = parse()
    options.data = options.data.absolute()
    began = time.monotonic()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # mounts and processes are ended
    with tempfile.TemporaryDirectory(prefix="strata-chaos-") as folder:
        tally = run(options, Path(folder))
    if options.tally:
        if options.tally.exists():
            tally.add(Tally.load(options.tally))
        tally.save(options.tally)
    print(f"\n{tally.table()}\n")
    print(f"this leg took {time.monotonic() - began:.0f} s, seed {options.seed}")
    print("drivers ended:", ", ".join(f"{n}× {how}" for how, n in tally.ends.most_common()))
    for words, count in tally.lines.most_common():
        print(f"{count:6d}  exit 1: {words}")
    for kind, why in tally.left_out.items():
        print(f"left out: {kind}: {why}")
    for title, lines in (("unclean ends", tally.unclean), ("problems", tally.problems)):
        print(f"{title}: {len(lines)}")
        for line in lines[:20]:
            print("  ", line)
    return 1 if tally.problems else 0


if __name__ == "__main__":
    sys.exit(main())
