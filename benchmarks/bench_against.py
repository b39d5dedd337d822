"""Compare the speed of two versions of Strata on the same machine, in one run.

    python benchmarks/bench_against.py OLD_TREE AUDIO_FOLDER [--rounds 5] [--only JOB ...]

OLD_TREE is a checkout of the version to compare with (`git worktree add OLD_TREE REVISION`). Every
job runs in a process of its own, with the old and the new version in turn, and uses only what both
versions offer: the command's configuration, `open_store`, `make_loader` and `sweep`. The table
gives the median time of each and the median of the paired ratios new / old; above 1 is slower.

extract-fp32, extract-bf16   HuBERT base on the first clips of the folder, store written
read-one, read-all           random utterances of a warm store: one layer, all layers
read-many                    batches of 32 utterances by `read_many`, one layer
feed-0, feed-2               shuffled epochs of one layer, without and with 2 loader workers
open                         opening a store of 20,000 utterances
sweep                        26 heads on the pooled features of 300 utterances, report included
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

NEW_TREE = Path(__file__).resolve().parents[1]
LAYER = 6


def extract(folder: Path, audio: str, clips: str, precision: str) -> float:
    """Seconds of a run, from the plan to the last commit, without start-up."""
    from pipeline.config import load_config
    from pipeline.extract import run

    store = folder / f"extract-{os.getpid()}"
    settings = [
        "dataset=audiofolder",
        f"dataset.path={audio}",
        f"dataset.limit={clips}",
        "model=hubert_base",
        "model.weights=random",
        f"extract.precision={precision}",
        "engine=inline",
        "engine.threads=2",
        f"store={store}",
    ]
    try:
        return float(run.extract(load_config(settings)).wall_seconds)
    finally:
        shutil.rmtree(store, ignore_errors=True)


def read(folder: Path, n_reads: str, layers: str) -> float:
    """Seconds of `n_reads` reads of random utterances, after one warm pass."""
    import pipeline

    store = pipeline.open_store(folder / "store")
    order = random.Random(0).choices(range(len(store)), k=int(n_reads))
    wanted = None if layers == "all" else [LAYER]
    for position in order:
        store.read(position, wanted)
    began = time.perf_counter()
    for position in order:
        store.read(position, wanted)
    return time.perf_counter() - began


def read_many(folder: Path, n_batches: str) -> float:
    """Seconds of `n_batches` batches of 32 random utterances, one layer, after one warm pass."""
    import pipeline

    store = pipeline.open_store(folder / "store")
    draw = random.Random(0)
    batches = [draw.sample(range(len(store)), 32) for _ in range(int(n_batches))]
    for batch in batches:
        store.read_many(batch, [LAYER])
    began = time.perf_counter()
    for batch in batches:
        store.read_many(batch, [LAYER])
    return time.perf_counter() - began


def feed(folder: Path, n_workers: str) -> float:
    """Seconds of thirty shuffled epochs, after a first one."""
    import pipeline

    dataset = pipeline.FeatureDataset(pipeline.open_store(folder / "store"), layers=[LAYER])
    loader = pipeline.make_loader(
        dataset, max_frames_per_batch=8000, shuffle=True, seed=0, num_workers=int(n_workers)
    )
    for _ in loader:
        pass
    began = time.perf_counter()
    for _ in range(30):
        for _ in loader:
            pass
    return time.perf_counter() - began


def open_(folder: Path) -> float:
    """Seconds of opening the store of many utterances, the best of 5."""
    import pipeline

    times = []
    for _ in range(5):
        began = time.perf_counter()
        pipeline.open_store(folder / "many").read(0)
        times.append(time.perf_counter() - began)
    return min(times)


def sweep(folder: Path) -> float:
    """Seconds of `strata sweep` on the store, from the command line, without start-up."""
    from typer.testing import CliRunner

    from pipeline.cli import app as module

    app = getattr(module, "app", module)
    out = folder / f"sweep-{os.getpid()}"
    arguments = ["sweep", str(folder / "labelled"), "task=ks", "labels=[word]"]
    arguments += ["task.speaker_independent=false"]
    arguments += ["seeds=[0]", "task.lrs=[1e-2,1e-3]", "task.steps=160", "task.patience=160"]
    began = time.perf_counter()
    with contextlib.redirect_stderr(io.StringIO()):
        done = CliRunner().invoke(app, [*arguments, f"out={out}", "--json"])
    seconds = time.perf_counter() - began
    shutil.rmtree(out, ignore_errors=True)
    if done.exit_code:
        raise SystemExit(done.output)
    return seconds


JOBS: dict[str, tuple[Callable[..., float], tuple[str, ...]]] = {
    "extract-fp32": (extract, ("AUDIO", "CLIPS", "fp32")),
    "extract-bf16": (extract, ("AUDIO", "CLIPS", "bf16")),
    "read-one": (read, ("20000", "one")),
    "read-all": (read, ("4000", "all")),
    "read-many": (read_many, ("300",)),
    "feed-0": (feed, ("0",)),
    "feed-2": (feed, ("2",)),
    "open": (open_, ()),
    "sweep": (sweep, ()),
}


def noise(row: int, layer: int, n_frames: int, dim: int) -> np.ndarray:
    """Return the features of an utterance of the store that is read: noise."""
    generator = np.random.default_rng([row, layer])
    return generator.standard_normal((n_frames, dim), np.float32).astype(np.float16)


def labelled(row: int, layer: int, n_frames: int, dim: int) -> np.ndarray:
    """Return the features of an utterance of the store that is swept: ten classes and noise."""
    mean = np.random.default_rng([row % 10, layer]).standard_normal(dim)
    deviations = np.random.default_rng([row, layer, 1]).standard_normal((n_frames, dim))
    return (0.3 * mean + deviations).astype(np.float16)


def prepare(folder: Path, jobs: Sequence[str]) -> None:
    """Write the stores that the jobs read, with the new version."""
    from tests.helpers.feature_stores import make_store

    settings = {"layers": tuple(range(1, 13)), "frames_per_unit": 20_480}
    if any(job.startswith(("read", "feed")) for job in jobs):
        lengths = np.random.default_rng(0).integers(25, 800, 800).tolist()
        make_store(folder / "store", lengths, dim=192, features=noise, **settings)
    if "open" in jobs:
        make_store(folder / "many", [1] * 20_000, layers=(1,), dim=2, frames_per_unit=5_120)
    if "sweep" in jobs:
        columns = pa.table({"word": [f"word-{i % 10}" for i in range(300)]})
        settings |= {"features": labelled, "columns": columns}
        make_store(folder / "labelled", [4] * 300, dim=768, **settings)


def measure(tree: Path, folder: Path, job: str, arguments: list[str]) -> float:
    """Run one job with one version, in a process of its own."""
    child = [sys.executable, str(Path(__file__).resolve()), "--child", str(folder), job]
    done = subprocess.run(
        [*child, *arguments],
        env={**os.environ, "PYTHONPATH": str(tree), "OMP_NUM_THREADS": "2"},
        capture_output=True,
        text=True,
        cwd=folder,
    )
    if done.returncode:
        raise SystemExit(f"{job} with {tree} failed:\n{done.stdout}\n{done.stderr}")
    answer = json.loads(done.stdout.splitlines()[-1])
    if not answer["package"].startswith(str(tree)):
        raise SystemExit(f"{job} ran {answer['package']}, not {tree}")
    return float(answer["seconds"])


def child(folder: str, job: str, *arguments: str) -> None:
    """Run one job in this process and print its seconds."""
    import pipeline

    seconds = JOBS[job][0](Path(folder), *arguments)
    print(json.dumps({"seconds": seconds, "package": pipeline.__file__}), flush=True)
    os._exit(0)  # without the exit handlers: version 0.1.0 could abort there


def main() -> None:
    """Alternate the versions, round after round, and print the table."""
    if sys.argv[1:2] == ["--child"]:
        child(*sys.argv[2:])
        return
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("old_tree", type=Path)
    parser.add_argument("audio", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--clips", type=int, default=12)
    parser.add_argument("--only", nargs="+", choices=JOBS, default=list(JOBS))
    given = parser.parse_args()
    old_tree, audio = given.old_tree.resolve(), given.audio.resolve()
    sys.path.insert(0, str(NEW_TREE))
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        prepare(folder, given.only)
        print(f"{'job':14} {'old s':>8} {'new s':>8} {'new/old':>8}  of each round")
        for job in given.only:
            names = {"AUDIO": str(audio), "CLIPS": str(given.clips)}
            arguments = [names.get(item, item) for item in JOBS[job][1]]
            pairs = []
            for number in range(given.rounds):
                trees = [old_tree, NEW_TREE] if number % 2 == 0 else [NEW_TREE, old_tree]
                times = {tree: measure(tree, folder, job, arguments) for tree in trees}
                pairs.append((times[old_tree], times[NEW_TREE]))
            ratios = [new / old for old, new in pairs]
            medians = [statistics.median(column) for column in zip(*pairs, strict=True)]
            each = " ".join(f"{ratio:.2f}" for ratio in ratios)
            print(
                f"{job:14} {medians[0]:8.3f} {medians[1]:8.3f} {statistics.median(ratios):8.3f}  "
                f"{each}",
                flush=True,
            )


if __name__ == "__main__":
    main()
