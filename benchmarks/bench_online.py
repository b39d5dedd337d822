"""Compare epoch 0 through `open_or_extract` with `strata extract`, and epoch 1 with `make_loader`.

    python benchmarks/bench_online.py AUDIO_FOLDER [--limit 40] [--rounds 3] [--threads 1]

extract   `strata extract engine=inline` in a process of its own, from its start to its end
epoch 0   `open_or_extract`, and a loop over the batches of all layers, until the loop ends
epoch 1   the next loop over the same loader: shuffled over the whole store
loader    the same over `open_store` and `make_loader`, in another order

The weights are random (seed 0). Both sides extract the same files into new stores with the same
threads, and take turns. The loop does nothing with the batches, so the difference is what following
the commits costs. A training step costs what it takes from the cores: give it others (--threads).
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import pipeline
from pipeline.feed.loader import FeatureLoader

MAX_FRAMES = 3000


def extract(overrides: Sequence[str], store: Path) -> float:
    """Run the command; return its seconds."""
    start_s = time.perf_counter()
    command = [sys.executable, "-m", "pipeline", "extract", f"store={store}", *overrides]
    subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - start_s


def epoch(loader: FeatureLoader) -> float:
    """Read an epoch; return its seconds."""
    start_s = time.perf_counter()
    n = sum(len(batch) for batch in loader)
    assert n, "no batches"
    return time.perf_counter() - start_s


def main() -> None:
    """Measure in turns and print medians and ranges."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--limit", type=int, default=40, help="files")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--frames-per-unit", type=int, default=2048)
    parser.add_argument("--model", default="hubert_base")
    args = parser.parse_args()
    overrides = [
        f"dataset.path={args.folder.resolve()}",
        f"dataset.limit={args.limit}",
        f"model={args.model}",
        "model.weights=random",
        "engine=inline",
        f"engine.threads={args.threads}",
        f"plan.frames_per_unit={args.frames_per_unit}",
    ]
    seconds: dict[str, list[float]] = {"extract": [], "epoch 0": [], "epoch 1": [], "loader": []}
    with tempfile.TemporaryDirectory() as scratch:
        for number in range(args.rounds):
            plain, online = Path(scratch, f"plain-{number}"), Path(scratch, f"online-{number}")
            seconds["extract"].append(extract(overrides, plain))
            start_s = time.perf_counter()
            dataset = pipeline.open_or_extract(online, *overrides)
            loader = pipeline.make_loader(dataset, max_frames_per_batch=MAX_FRAMES)
            epoch(loader)
            seconds["epoch 0"].append(time.perf_counter() - start_s)
            other = pipeline.make_loader(
                pipeline.FeatureDataset(pipeline.open_store(plain)), max_frames_per_batch=MAX_FRAMES
            )
            epoch(other)
            for _ in range(20):  # both are warm now, and take turns
                seconds["epoch 1"].append(epoch(loader))
                seconds["loader"].append(epoch(other))
    for name, found in seconds.items():
        low, high = min(found), max(found)
        print(f"{name:8} {statistics.median(found):8.3f} s  ({low:.3f} to {high:.3f})")
    for one, base in (("epoch 0", "extract"), ("epoch 1", "loader")):
        ratio = statistics.median(seconds[one]) / statistics.median(seconds[base])
        print(f"{one} / {base}: {ratio:.3f}")


if __name__ == "__main__":
    main()
