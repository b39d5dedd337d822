"""Compare epochs through make_loader with a sequential read of the same bytes, and the encoder.

    python benchmarks/bench_feed.py [--gigabytes 2.2] [--rounds 5] [--encoder]
    python benchmarks/bench_feed.py --cold [--gigabytes 2.2] [--rounds 5]

The store is synthetic: 12 layers of 768 features. The methods alternate, round by round, with a
warm page cache: a sequential read of the same bytes through np.memmap into one buffer, and shuffled
epochs of one layer and of all, with 0, 1 and 2 workers. The first epoch of each loader is left out,
because it faults in memory that later ones reuse. `--encoder` adds the frames per second of HuBERT
base on this machine (random weights cost as much as trained ones). `--cold` drops the files from
the page cache before each pass, and compares first epochs, with and without shuffle windows of four
units, with plain sequential reads of the same files; the start of workers counts. Prints medians
with their spread and ratios, and one JSON line.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import time
from pathlib import Path

import numpy as np
import torch
from page_cache import drop_from_cache
from synthetic_store import speech_lengths, warm, write_store

import pipeline

DIM, N_LAYERS = 768, 12


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gigabytes", type=float, default=2.2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--frames", type=int, default=16_000, help="padded frames of a batch")
    parser.add_argument("--cold", action="store_true", help="first epochs, from the disk")
    parser.add_argument("--encoder", action="store_true", help="time the encoder as well")
    parser.add_argument("--folder", type=Path, default=Path("/tmp/strata-bench-feed"))
    options = parser.parse_args()
    shutil.rmtree(options.folder, ignore_errors=True)
    try:
        n_frames = int(options.gigabytes * 1e9 / (N_LAYERS * DIM * 2))
        write_store(options.folder, speech_lengths(n_frames), N_LAYERS, DIM)
        n_bytes = warm(options.folder)
        print(f"store of {n_bytes / 1e9:.2f} GB, {options.rounds} rounds, medians (min … max)")
        if options.cold:
            results = measure_cold(options.folder, options.frames, options.rounds)
        else:
            results = {
                "one layer": measure(options.folder, [6], options.frames, options.rounds),
                "all layers": measure(options.folder, None, options.frames // 4, options.rounds),
            }
    finally:
        shutil.rmtree(options.folder, ignore_errors=True)
    if options.encoder and not options.cold:
        rate = encoder_frames_per_s()
        results["encoder_frames_per_s"] = rate
        for name in ("one layer", "all layers"):
            for workers in (0, 1, 2):
                ratio = results[name][f"{workers} workers"]["frames_per_s"] / rate
                print(
                    f"{name}, {workers} workers: {ratio:,.0f} × the encoder ({rate:.0f} frames/s)"
                )
    print(json.dumps({"bench": "feed", "rounds": options.rounds, "gb": n_bytes / 1e9, **results}))


def measure(root: Path, layers: list[int] | None, frames: int, rounds: int) -> dict:
    """Measure the sequential read and each loader, alternating."""
    store = pipeline.open_store(root)
    dataset = pipeline.FeatureDataset(store, layers, ["label"])
    loaders = {
        f"{n} workers": pipeline.make_loader(dataset, max_frames_per_batch=frames, num_workers=n)
        for n in (0, 1, 2)
    }
    for loader in loaders.values():
        epoch(loader)
    n_frames = int(store.frame_counts.sum())
    epochs = N_LAYERS // len(dataset.layers)  # all measurements take about as long
    bare: list[float] = []
    seconds: dict[str, list[float]] = {name: [] for name in loaders}
    ratios: dict[str, list[float]] = {name: [] for name in loaders}
    cpu: dict[str, list[float]] = {name: [] for name in loaders}
    padding = 0.0
    for _ in range(rounds):
        for name, loader in loaders.items():
            bare.append(sum(sequential(store, layers) for _ in range(epochs)) / epochs)
            began = time.perf_counter()
            for _ in range(epochs):
                busy, n_batches, padded = epoch(loader)
            seconds[name].append((time.perf_counter() - began) / epochs)
            ratios[name].append(bare[-1] / seconds[name][-1])
            cpu[name].append(busy / n_batches * 1e3)
            padding = 1 - n_frames / padded
    seconds["memmap"], ratios["memmap"] = bare, [1.0]
    n_bytes = n_frames * len(dataset.layers) * DIM * 2
    result: dict = {"padding": padding}
    print(f"\n{len(dataset.layers)} layers, batches of {frames} frames, {padding:.1%} padding")
    for name, times in seconds.items():
        middle = statistics.median(times)
        line = {
            "gb_per_s": n_bytes / middle / 1e9,
            "frames_per_s": n_frames / middle,
            "ratio": statistics.median(ratios[name]),
            "own_cpu_ms_per_batch": statistics.median(cpu.get(name, [0.0])),
        }
        result[name] = line
        print(
            f"  {name:10s} {line['gb_per_s']:5.2f} GB/s ({n_bytes / max(times) / 1e9:.2f} … "
            f"{n_bytes / min(times) / 1e9:.2f})  {line['frames_per_s']:12,.0f} frames/s  "
            f"{line['ratio']:.2f} of memmap ({min(ratios[name]):.2f} … {max(ratios[name]):.2f})  "
            f"{line['own_cpu_ms_per_batch']:6.2f} ms CPU a batch in this process"
        )
    return result


def measure_cold(root: Path, frames: int, rounds: int) -> dict:
    """Measure first epochs from the disk, and plain reads of the same files, alternating."""
    results: dict = {}
    for name, layers, workers, window in (
        ("one layer, 0 workers, windows", [6], 0, 4),
        ("one layer, 0 workers", [6], 0, None),
        ("all layers, 0 workers, windows", None, 0, 4),
        ("all layers, 2 workers, windows", None, 2, 4),
        ("all layers, 2 workers", None, 2, None),
    ):
        plain: list[float] = []
        fed: list[float] = []
        for _ in range(rounds):
            with pipeline.open_store(root) as store:
                n_bytes = int(store.frame_counts.sum()) * len(store.axes(layers)) * DIM * 2
                files = [
                    path
                    for axis in store.axes(layers)
                    for path in sorted((root / "features.zarr/frames/c" / str(axis)).glob("*/0"))
                ]
                drop_from_cache(files)
                began = time.perf_counter()
                n_read = sum(read_plainly(path) for path in files)
                plain.append(n_read / (time.perf_counter() - began))
                drop_from_cache(files)
                began = time.perf_counter()
                dataset = pipeline.FeatureDataset(store, layers)
                size = frames if layers else frames // 4
                epoch(
                    pipeline.make_loader(
                        dataset,
                        max_frames_per_batch=size,
                        num_workers=workers,
                        window_units=window,
                    )
                )
                fed.append(n_bytes / (time.perf_counter() - began))
        ratio = statistics.median(a / b for a, b in zip(fed, plain, strict=True))
        results[name] = {
            "gb_per_s": statistics.median(fed) / 1e9,
            "disk_gb_per_s": statistics.median(plain) / 1e9,
            "ratio": ratio,
        }
        speed, disk = statistics.median(fed) / 1e9, statistics.median(plain) / 1e9
        print(
            f"  {name:32s} {speed:5.2f} GB/s ({min(fed) / 1e9:.2f} … {max(fed) / 1e9:.2f})  "
            f"{ratio:.2f} of plain reads, {disk:.2f}"
        )
    return results


def read_plainly(path: Path) -> int:
    """Read a file by large reads; return its bytes."""
    buffer = bytearray(16 << 20)
    with path.open("rb", buffering=0) as file:
        return sum(iter(lambda: file.readinto(buffer), 0))


def epoch(loader: pipeline.FeatureLoader) -> tuple[float, int, int]:
    """Run one epoch; return CPU seconds of this process, batches and padded frames."""
    busy = time.process_time()
    n_batches = padded = 0
    for batch in loader:
        n_batches += 1
        padded += batch.features.shape[0] * batch.features.shape[2]
    return time.process_time() - busy, n_batches, padded


def sequential(store: pipeline.FeatureStore, layers: list[int] | None) -> float:
    """Return the seconds to copy the frames of all shards, one after the other, to one buffer."""
    per_slot = store.attributes["frames_per_unit"]
    used = np.bincount(store.slots, weights=store.frame_counts).astype(int)
    buffer = np.empty((8192, DIM), np.float16)
    root = store.root / "features.zarr" / "frames" / "c"
    began = time.perf_counter()
    for axis in store.axes(layers):
        for slot, n in enumerate(used):
            shard = np.memmap(root / str(axis) / str(slot) / "0", np.float16, "r")
            frames = shard[: per_slot * DIM].reshape(per_slot, DIM)
            for start in range(0, n, len(buffer)):
                some = frames[start : min(start + len(buffer), n)]
                np.copyto(buffer[: len(some)], some)
    return time.perf_counter() - began


def encoder_frames_per_s() -> float:
    """Return the frames per second of HuBERT base on ten-second clips, in fp32."""
    encoder = pipeline.load_encoder("hubert_base", weights="random")
    clips = [torch.randn(160_000) for _ in range(4)]
    encoder(clips[:1])
    began = time.perf_counter()
    frames = sum(features.shape[1] for features in encoder(clips))
    return frames / (time.perf_counter() - began)


if __name__ == "__main__":
    main()
