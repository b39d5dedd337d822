"""Compare reads of stores of each dtype: frames per second, against float16.

    python benchmarks/bench_dtypes.py FOLDER [--minutes 20] [--rounds 7] [--cold]

The stores, with 12 layers of 768 features of utterances of 1 to 17 s, are written below FOLDER,
which must be on the disk to measure (or on a memory disk without `--cold`). The dtypes take turns,
round after round. `--cold` drops the files from the page cache before each pass.

one      `store.read` of one layer, in random order
all      `store.read` of all layers
many     `store.read_many` of one layer, 32 utterances at a time
sum      `store.weighted_sum` of all layers
loader   one epoch of `make_loader`, one layer, without workers
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from page_cache import drop_from_cache
from synthetic_store import speech_lengths, warm, write_store

import pipeline
from pipeline.store.format.codecs import CODECS
from pipeline.store.native.int8 import best_level

LAYER = 6
Pass = Callable[[pipeline.FeatureStore, list[int]], None]


def one(store: pipeline.FeatureStore, order: list[int]) -> None:
    for i in order:
        store.read(i, [LAYER])


def every(store: pipeline.FeatureStore, order: list[int]) -> None:
    for i in order:
        store.read(i)


def many(store: pipeline.FeatureStore, order: list[int]) -> None:
    for first in range(0, len(order), 32):
        store.read_many(order[first : first + 32], [LAYER])


def weighted(store: pipeline.FeatureStore, order: list[int]) -> None:
    for i in order:
        store.weighted_sum(i, [1 / 12] * 12)


def loader(store: pipeline.FeatureStore, order: list[int]) -> None:
    dataset = pipeline.FeatureDataset(store, [LAYER])
    for _ in pipeline.make_loader(dataset, max_frames_per_batch=16_000, shuffle=True, seed=0):
        pass


PASSES: dict[str, Pass] = {
    "one": one,
    "all": every,
    "many": many,
    "sum": weighted,
    "loader": loader,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--cold", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # as in the workers of a loader
    root = Path(tempfile.mkdtemp(dir=arguments.folder))
    try:
        lengths = speech_lengths(round(arguments.minutes * 3000))
        for codec in CODECS:
            write_store(root / codec.name, lengths, codec=codec)
        measure(root, int(lengths.sum()), arguments.rounds, arguments.cold)
    finally:
        shutil.rmtree(root, ignore_errors=True)


def measure(root: Path, n_frames: int, rounds: int, cold: bool) -> None:
    """Print frames per second of each dtype, and their ratio to float16's."""
    names = [codec.name for codec in CODECS]
    print(f"{n_frames:,} frames, {'cold' if cold else 'warm'}, C code: level {best_level()}")
    print(f"{'':8}" + "".join(f"{name:>24}" for name in names))
    order = np.random.default_rng(0)
    rows = {}
    warm(root)
    for what, run in PASSES.items():
        speeds: dict[str, list[float]] = {name: [] for name in names}
        for _ in range(rounds):
            for name in names:
                if cold:
                    drop_from_cache((root / name).rglob("*"))
                with pipeline.open_store(root / name) as store:
                    positions = order.permutation(len(store)).tolist()
                    start_s = time.perf_counter()
                    run(store, positions)
                    speeds[name].append(n_frames / (time.perf_counter() - start_s))
        medians = {name: statistics.median(values) for name, values in speeds.items()}
        ratios = {name: value / medians[names[0]] for name, value in medians.items()}
        rows[what] = {name: round(ratio, 3) for name, ratio in ratios.items()}
        cells = (f"{medians[name] / 1e6:12.2f} M/s {ratios[name]:6.2f}" for name in names)
        print(f"{what:8}" + "".join(f"{cell:>24}" for cell in cells))
    print(json.dumps({"bench": "dtypes", "cold": cold, "ratios": rows}))


if __name__ == "__main__":
    main()
