"""Compare few workers with many threads and many workers with one thread, on the same CPUs.

    python benchmarks/bench_workers.py AUDIO_FOLDER [--audio-s 400] [--rounds 3] [--cpus 2]

Every division of the CPUs among workers gets the same clips, in units of similar size. Each worker
is a process (HuBERT base, random weights) that decodes, encodes, writes and commits its share of
the units, as in a run. The divisions take turns, round after round; an idle worker takes no CPU
time. The rule derived from the result is in pipeline/extract/resources.py.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import shutil
import statistics
import tempfile
import time
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path

from bench_extract import MAX_BATCH_FRAMES, choose

import pipeline
from pipeline.config import DatasetConfig
from pipeline.encoders.wav2vec2.geometry import GEOMETRY
from pipeline.encoders.windows import Windowing
from pipeline.extract.planning.planner import plan_source
from pipeline.extract.worker import Job, UnitTask, Worker
from pipeline.sources.opening import open_source
from pipeline.store.backend.opening import open_backend
from pipeline.store.documents import write_group
from pipeline.store.format.layout import Layout
from pipeline.store.format.plan import Plan

LAYERS = tuple(range(1, 13))


def work(job: Job, plan: Plan, orders: Connection) -> None:
    """Run a worker: extract the units in each order, and report when they are done."""
    worker = Worker(job)
    orders.send("ready")
    while units := orders.recv():
        tasks = [UnitTask(unit, unit, 1, plan.unit_rows(unit)) for unit in units]
        for task in tasks:
            worker.prefetch(task)
        for future in [worker.begin(task) for task in tasks]:
            assert future.result().won
        orders.send("done")


class Division:
    """A number of workers with the same number of threads each."""

    def __init__(self, n_workers: int, root: Path, job: Job, plan: Plan) -> None:
        self.root, self.job, self.plan = root, job, plan
        self.orders = []
        spawn = multiprocessing.get_context("spawn")
        for _ in range(n_workers):
            ours, theirs = spawn.Pipe()
            spawn.Process(target=work, args=(job, plan, theirs), daemon=True).start()
            self.orders.append(ours)
        for orders in self.orders:
            orders.recv()

    def run(self, n_units: int) -> float:
        """Extract units into a new store; return the seconds until the last is done."""
        shutil.rmtree(self.root, ignore_errors=True)
        write_group(self.root, self.job.layout, self.plan.n_units, {"format_version": 1})
        units = list(range(n_units))
        began = time.perf_counter()
        for i, orders in enumerate(self.orders):
            orders.send(units[i :: len(self.orders)])
        for orders in self.orders:
            orders.recv()
        return time.perf_counter() - began

    def close(self) -> None:
        """End the workers."""
        for orders in self.orders:
            orders.send([])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--audio-s", type=float, default=400.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cpus", type=int, default=2)
    parser.add_argument("--precisions", nargs="+", default=["fp32", "bf16"])
    arguments = parser.parse_args()
    files, audio_s = choose(arguments.folder, arguments.audio_s)
    divisions = [n for n in range(1, arguments.cpus + 1) if arguments.cpus % n == 0]
    table = {}
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        (scratch / "clips").mkdir()
        for file in files:
            shutil.copy(file, scratch / "clips" / file.name)
        dataset = DatasetConfig("audiofolder", path=str(scratch / "clips"))
        frames = round(audio_s * 50 / (2 * arguments.cpus))
        plan = plan_source(open_source(dataset), Windowing(GEOMETRY, 60.0, 2.0), frames)
        n_units = plan.n_units // arguments.cpus * arguments.cpus  # equal shares
        frames = sum(
            int(plan.unit_rows(unit)["n_frames"].to_numpy().sum()) for unit in range(n_units)
        )
        audio_s = frames / 50
        layout = Layout(LAYERS, 768, plan.frames_per_unit, plan.utterances_per_slot)
        for precision in arguments.precisions:
            load = partial(pipeline.load_encoder, "hubert_base", "random", precision=precision)
            made = {
                n: Division(
                    n,
                    scratch / f"store-{n}",
                    Job(
                        open_backend(scratch / f"store-{n}"),
                        layout,
                        dataset,
                        load,
                        MAX_BATCH_FRAMES,
                        arguments.cpus // n,
                    ),
                    plan,
                )
                for n in divisions
            }
            for division in made.values():
                division.run(n_units)  # warm-up
            seconds = {n: [] for n in divisions}
            for _ in range(arguments.rounds):
                for n, division in made.items():
                    seconds[n].append(division.run(n_units))
            for division in made.values():
                division.close()
            table[precision] = report(precision, seconds, audio_s, n_units, arguments)
    print(json.dumps(table))


def report(
    precision: str,
    seconds: dict[int, list[float]],
    audio_s: float,
    n_units: int,
    arguments: argparse.Namespace,
) -> dict[str, float]:
    """Print one line per division; ratios are taken round by round."""
    print(
        f"{precision}: {audio_s:.0f} s of audio in {n_units} units, {arguments.cpus} CPUs, medians "
        f"of {arguments.rounds} alternating rounds"
    )
    found = {}
    for n, runs in seconds.items():
        ratio = statistics.median(a / b for a, b in zip(seconds[1], runs, strict=True))
        speed = audio_s / statistics.median(runs)
        spread = f"{audio_s / max(runs):.1f}–{audio_s / min(runs):.1f}"
        name = f"{n} × {arguments.cpus // n} threads"
        print(f"  {name:<16}{speed:6.1f} × real time ({spread}), {ratio:.2f} of one worker")
        found[name] = ratio
    return found


if __name__ == "__main__":
    main()
