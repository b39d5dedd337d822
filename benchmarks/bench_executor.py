"""Compare the executors: the same units with a free encoder, inline and in one Ray actor.

    python benchmarks/bench_executor.py [--units 12] [--frames 9216] [--rounds 3] [--folder DIR]

The features are constants with the shapes of HuBERT base, so a unit costs its decoding, copy,
checksums, means, write and commit only. The executors take turns. `start` is the time to the first
commit: Ray, the actor's process and its imports. The speed is taken from the first commit to the
last one, as in a long run.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import tempfile
import time
from functools import partial
from pathlib import Path

import ray
from bench_memory import ConstantEncoder, write_clips

from pipeline.config import DatasetConfig, EngineConfig
from pipeline.encoders.wav2vec2.geometry import GEOMETRY
from pipeline.encoders.windows import Windowing
from pipeline.extract.executors.opening import open_executor
from pipeline.extract.messages import Job, UnitTask
from pipeline.extract.planning.planner import plan_source
from pipeline.extract.resources import Resources
from pipeline.extract.worker import Worker
from pipeline.sources.opening import open_source
from pipeline.store.backend.opening import open_backend
from pipeline.store.documents import write_group
from pipeline.store.format.layout import Layout
from pipeline.store.format.plan import Plan

MAX_BATCH_FRAMES = 1000
THREADS = 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--units", type=int, default=12)
    parser.add_argument("--frames", type=int, default=9_216, help="frames per unit")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="where to write")
    arguments = parser.parse_args()
    ray.cloudpickle.register_pickle_by_value(__import__("bench_memory"))
    found: dict[str, list[dict[str, float]]] = {"inline": [], "ray": []}
    with tempfile.TemporaryDirectory(dir=arguments.folder) as scratch:
        clips = Path(scratch) / "clips"
        write_clips(clips, arguments.units * arguments.frames / 50)
        dataset = DatasetConfig("audiofolder", path=str(clips))
        plan = plan_source(open_source(dataset), Windowing(GEOMETRY, 60.0, 2.0), arguments.frames)
        for _ in range(arguments.rounds):
            for kind, rounds in found.items():
                root = Path(scratch) / "store"
                rounds.append(extract(kind, dataset, plan, root))
                shutil.rmtree(root)
    medians = {
        kind: {name: statistics.median(one[name] for one in rounds) for name in rounds[0]}
        for kind, rounds in found.items()
    }
    for kind, values in medians.items():
        print(
            f"{kind:<7} start {values['start_s']:5.1f} s, then {values['unit_s']:.3f} s a unit, "
            f"{values['realtime']:,.0f} × real time"
        )
    pairs = zip(found["inline"], found["ray"], strict=True)
    ratio = statistics.median(inline["unit_s"] / remote["unit_s"] for inline, remote in pairs)
    print(f"ray, relative to inline: {ratio:.2f}")
    print(json.dumps(medians | {"ratio": ratio}))


def extract(kind: str, dataset: DatasetConfig, plan: Plan, root: Path) -> dict[str, float]:
    """Extract all units; return the seconds to the first commit, and those of a unit after that."""
    layout = Layout(ConstantEncoder.layers, 768, plan.frames_per_unit, plan.utterances_per_slot)
    write_group(root, layout, plan.n_units, {"format_version": 1})
    job = Job(open_backend(root), layout, dataset, ConstantEncoder, MAX_BATCH_FRAMES, THREADS)
    began = time.perf_counter()
    resources = Resources(1, THREADS, "cpu")
    executor = open_executor(EngineConfig(kind), resources, partial(Worker, job), plan.n_units)
    tasks = [UnitTask(unit, unit, 1, plan.unit_rows(unit)) for unit in range(plan.n_units)]
    ended: list[float] = []
    audio_s: list[float] = []
    while len(ended) < plan.n_units:
        while tasks and executor.has_room():
            executor.submit(tasks.pop(0), 600.0)
        for outcome in executor.poll(1.0):
            assert outcome.report is not None, outcome.error
            ended.append(time.perf_counter())
            audio_s.append(outcome.report.audio_s)
    executor.close()
    spent_s = ended[-1] - ended[0]
    return {
        "start_s": ended[0] - began,
        "unit_s": spent_s / (plan.n_units - 1),
        "realtime": sum(audio_s[1:]) / spent_s,
    }


if __name__ == "__main__":
    main()
