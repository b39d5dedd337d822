"""Compare epochs of single frames with a sequential read, and their mixing with a permutation.

    python benchmarks/bench_frames.py [--gigabytes 3.3] [--rounds 5] [--memory 500MB]

The stores are synthetic, with 768 features: one of a single layer, and one of 12. The methods
alternate, round by round, with a warm page cache: a sequential read of the same bytes through
np.memmap into one buffer, and epochs of `make_frame_loader` with each shuffle and one thread that
reads ahead. With `--cold` files are dropped from the page cache before each pass.
The first epoch of each loader is left out, because it faults in memory that later ones reuse. Peak
memory is that of an epoch, above what the process had before.

Mixing is shown by the pairs of frames in a batch that are of one utterance, and by the number of
different utterances, both relative to what a permutation of all frames gives on average; and by the
distance of neighbouring frames in the order of the epoch, relative to that of a permutation, which
is a third of the epoch. Prints medians with their spread, and one JSON line.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import time
from pathlib import Path

import numpy as np
from bench_feed import DIM, N_LAYERS, sequential
from page_cache import drop_from_cache
from synthetic_store import speech_lengths, warm, write_store

import pipeline

SHUFFLES = ("reservoir", "units", False)


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gigabytes", type=float, default=3.3)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--frames", type=int, default=4096, help="frames of a batch")
    parser.add_argument("--memory", default="500MB")
    parser.add_argument("--threads", type=int, default=1, help="that read ahead")
    parser.add_argument("--cold", action="store_true", help="drop files from the page cache")
    parser.add_argument("--folder", type=Path, default=Path("/tmp/strata-bench-frames"))
    options = parser.parse_args()
    results = {}
    for n_layers in (1, N_LAYERS):
        shutil.rmtree(options.folder, ignore_errors=True)
        try:
            n_frames = int(options.gigabytes * 1e9 / (n_layers * DIM * 2))
            write_store(options.folder, speech_lengths(n_frames), n_layers, DIM)
            results[str(n_layers)] = measure(options)
        finally:
            shutil.rmtree(options.folder, ignore_errors=True)
    print(json.dumps({"bench": "frames", "rounds": options.rounds, **results}))


def measure(options: argparse.Namespace) -> dict:
    """Measure the sequential read and each loader, alternating."""
    store = pipeline.open_store(options.folder)
    dataset = pipeline.FeatureDataset(store)
    n_layers = len(dataset.layers)
    frames = options.frames if n_layers == 1 else options.frames // 8
    loaders = {
        str(shuffle): pipeline.make_frame_loader(
            dataset,
            frames_per_batch=frames,
            shuffle=shuffle,
            memory=options.memory,
            num_workers=options.threads,
        )
        for shuffle in SHUFFLES
    }
    n_frames = int(store.frame_counts.sum())
    n_bytes = n_frames * n_layers * DIM * 2
    print(
        f"\n{n_bytes / 1e9:.2f} GB, {n_layers} layers, {n_frames:,} frames in batches of {frames}, "
        f"{options.rounds} rounds, medians (min … max)"
    )
    warm(options.folder)
    result: dict = {
        name: {"peak_mb": peak_bytes(loader) / 1e6, **mixing(loader, store)}
        for name, loader in loaders.items()
    }
    bare: list[float] = []
    ratios: dict[str, list[float]] = {name: [] for name in loaders}
    seconds: dict[str, list[float]] = {name: [] for name in loaders}
    for _ in range(options.rounds):
        for name, loader in loaders.items():
            if options.cold:
                drop_from_cache(options.folder.rglob("*"))
            bare.append(sequential(store, None))
            if options.cold:
                drop_from_cache(options.folder.rglob("*"))
            seconds[name].append(epoch(loader))
            ratios[name].append(bare[-1] / seconds[name][-1])
    print(f"  memmap     {n_bytes / statistics.median(bare) / 1e9:5.2f} GB/s")
    for name, times in seconds.items():
        line = result[name]
        line["gb_per_s"] = n_bytes / statistics.median(times) / 1e9
        line["ratio"] = statistics.median(ratios[name])
        print(
            f"  {name:10s} {line['gb_per_s']:5.2f} GB/s, {line['ratio']:.2f} of memmap "
            f"({min(ratios[name]):.2f} … {max(ratios[name]):.2f}), peak {line['peak_mb']:,.0f} MB; "
            f"pairs of one utterance {line['pairs']:.1f} ×, different utterances "
            f"{line['utterances']:.2f} ×, distance of neighbours {line['distance']:.2f} ×"
        )
    return result


def epoch(loader: pipeline.FrameLoader) -> float:
    """Return the seconds of one epoch."""
    began = time.perf_counter()
    for _batch in loader:
        pass
    return time.perf_counter() - began


def peak_bytes(loader: pipeline.FrameLoader) -> int:
    """Return by how much the memory of the process grows in an epoch, at most (Linux).

    Maps of shards are left out: they are the page cache.
    """
    before = status_bytes("RssAnon")
    return max(status_bytes("RssAnon") for _batch in loader) - before


def status_bytes(name: str) -> int:
    """Return a number of bytes that Linux has about this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    (line,) = (line for line in lines if line.startswith(f"{name}:"))
    return int(line.split()[1]) * 1024


def mixing(loader: pipeline.FrameLoader, store: pipeline.FeatureStore) -> dict[str, float]:
    """Return statistics of an epoch relative to their expectation for a permutation."""
    counts = store.frame_counts
    n = int(counts.sum())
    starts = np.cumsum(counts) - counts
    pairs, distinct, expected_pairs, expected_distinct = 0.0, 0, 0.0, 0.0
    share = float((counts * (counts - 1)).sum()) / (n * (n - 1))  # of pairs of one utterance
    places = np.empty(n, np.int64)
    at = 0
    for batch in loader:
        utterance, frame = batch.utterances.numpy(), batch.frames.numpy()
        size = len(utterance)
        _, of_each = np.unique(utterance, return_counts=True)
        pairs += float((of_each * (of_each - 1)).sum()) / 2
        distinct += len(of_each)
        expected_pairs += share * size * (size - 1) / 2
        expected_distinct += float((1 - absent(n, counts, size)).sum())
        places[starts[utterance] + frame] = np.arange(at, at + size)
        at += size
    is_neighbour = np.ones(n - 1, bool)
    is_neighbour[starts[1:] - 1] = False
    distance = np.abs(np.diff(places))[is_neighbour].mean()
    return {
        "pairs": pairs / expected_pairs,
        "utterances": distinct / expected_distinct,
        "distance": distance / (n / 3),
    }


def absent(n: int, counts: np.ndarray, size: int) -> np.ndarray:
    """Return the probability that a batch has no frame of an utterance, for each (hypergeometric).

    It is the product over i < count of 1 - size / (n - i), whose factors hardly differ.
    """
    return np.exp(counts * np.log1p(-size / (n - counts / 2)))


if __name__ == "__main__":
    main()
