"""Compare the exports of a store, in each format, with a plain copy of as many bytes.

    python benchmarks/bench_export.py [--gigabytes 1.1] [--rounds 3]

The store is synthetic: 12 layers of 768 features in float16. Exported are all layers, one layer,
and the pooled means. The baseline copies the shards of the same layers, block by block, with the
file writer that the exports use, and syncs each; it writes as many bytes in large files, and
verifies nothing. All methods alternate, round by round, after a copy that is not counted; the store
is in the page cache. Prints megabytes written per second, their ratio to the copy, and CPU seconds
per gigabyte, which say more on a busy machine.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import time
from pathlib import Path

from synthetic_store import speech_lengths, warm, write_store

import pipeline
from pipeline.files import PartialFile, publish
from pipeline.transforms.export.run import FORMATS

DIM, N_LAYERS = 768, 12
BLOCK = 256 << 10  # stays in the CPU's cache; larger ones are slower
COPY = "copy"


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gigabytes", type=float, default=1.1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=Path("/tmp/strata-bench-export"))
    options = parser.parse_args()
    shutil.rmtree(options.folder, ignore_errors=True)
    rates: dict[str, dict[str, list[float]]] = {}
    cpu: dict[str, dict[str, list[float]]] = {}
    try:
        root = options.folder / "store"
        n_frames = int(options.gigabytes * 1e9 / (N_LAYERS * DIM * 2))
        write_store(root, speech_lengths(n_frames), N_LAYERS, DIM)
        store = pipeline.open_store(root)
        print(f"{len(store)} utterances, {n_frames * N_LAYERS * DIM * 2 / 1e9:.2f} GB")
        warm(root)
        measure(root, options.folder / "out", COPY, "all layers", store)
        for _ in range(options.rounds):
            for content in ("all layers", "one layer", "pooled"):
                for method in (COPY, *FORMATS):
                    if content == "pooled" and method == COPY:
                        continue
                    rate, used = measure(root, options.folder / "out", method, content, store)
                    rates.setdefault(content, {}).setdefault(method, []).append(rate)
                    cpu.setdefault(content, {}).setdefault(method, []).append(used)
    finally:
        shutil.rmtree(options.folder, ignore_errors=True)
    for content, by_method in rates.items():
        base = statistics.median(by_method.get(COPY, [float("nan")]))
        for method, values in by_method.items():
            middle = statistics.median(values)
            used = statistics.median(cpu[content][method])
            print(
                f"{content:10}  {method:12} {middle:6.0f} MB/s ({min(values):.0f} to "
                f"{max(values):.0f})  {middle / base:5.2f} of the copy  {used:5.2f} CPU s/GB"
            )
    print(
        json.dumps(
            {"bench": "export", "rounds": options.rounds, "mb_per_s": rates, "cpu_s_per_gb": cpu}
        )
    )


def measure(
    root: Path, out: Path, method: str, content: str, store: pipeline.FeatureStore
) -> tuple[float, float]:
    """Return the megabytes per second of one export or copy, and its CPU seconds per gigabyte."""
    shutil.rmtree(out, ignore_errors=True)
    os.sync()
    layers = [store.layers[len(store.layers) // 2]] if content == "one layer" else None
    start_s, start_cpu_s = time.perf_counter(), time.process_time()
    if method == COPY:
        n_bytes = copy(root / "features.zarr" / "frames" / "c", out, store, layers)
    else:
        pooled = content == "pooled"
        n_bytes = pipeline.export(root, out, method, layers=layers, pooled=pooled).bytes
    rate = n_bytes / 1e6 / (time.perf_counter() - start_s)
    used = (time.process_time() - start_cpu_s) / (n_bytes / 1e9)
    shutil.rmtree(out, ignore_errors=True)
    return rate, used


def copy(shards: Path, out: Path, store: pipeline.FeatureStore, layers: list[int] | None) -> int:
    """Copy the shards of layers; return the number of bytes."""
    n_bytes = 0
    for layer in layers or store.layers:
        for path in sorted((shards / str(store.layers.index(layer))).glob("*/0")):
            partial = PartialFile(out / "-".join(path.relative_to(shards).parts))
            at = 0
            with path.open("rb", buffering=0) as source:
                while block := source.read(BLOCK):
                    partial.write(block, at)
                    at += len(block)
            publish([partial], out)
            n_bytes += at
    return n_bytes


if __name__ == "__main__":
    main()
