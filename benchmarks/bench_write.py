"""Compare writing a unit with a plain write and with the Zarr libraries.

    python benchmarks/bench_write.py [--frames 19968] [--rounds 5] [--folder DIR]

One unit of 12 layers × frames × 768 float16 is written many times; the methods take turns:

plain          one file per layer: write, fsync. The upper bound.
ours           strata's commit of the unit: shards with their index, pooled means, index file; each
               synced, renamed, and its folder synced. Checksums and means are computed before.
zarr-python    the same array (same shards and inner chunks), one write per layer; not synced
tensorstore    the same, through tensorstore; not synced by request
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import tensorstore
import zarr

from pipeline.store.documents import write_group
from pipeline.store.format.layout import FRAMES, Layout
from pipeline.store.format.records import Record, records_table
from pipeline.store.write.buffer import UnitBuffer
from pipeline.store.write.slot import commit_unit

LAYERS = tuple(range(1, 13))
DIM = 768


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--frames", type=int, default=19_968)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="disk to write to")
    arguments = parser.parse_args()
    layout = Layout(LAYERS, DIM, arguments.frames, 64)
    buffer = UnitBuffer(layout)
    buffer.start(arguments.frames)
    rng = np.random.default_rng(0)
    for layer in buffer.frames:
        layer[:] = rng.standard_normal((arguments.frames, DIM), np.float32)
    record = Record("all", 0, 0, "ok", frame_start=0, n_frames=arguments.frames)
    checksums = buffer.seal(0, 0, arguments.frames)
    record = Record(**{**record.__dict__, "crc32c": checksums})
    index = records_table([record], 0, 0, pa.table({}))

    def plain(folder: Path) -> None:
        for i, layer in enumerate(buffer.frames):
            with (folder / str(i)).open("wb", buffering=0) as file:
                file.write(layer.data.cast("B"))
                os.fsync(file.fileno())

    def ours(folder: Path) -> None:
        write_group(folder, layout, 1, {"format_version": 1})
        assert commit_unit(folder, buffer, 0, 0, index).won

    def zarr_python(folder: Path) -> None:
        write_group(folder, layout, 1, {"format_version": 1})
        array = zarr.open_array(folder / FRAMES, mode="r+")
        for i, layer in enumerate(buffer.frames):
            array[i] = layer

    def by_tensorstore(folder: Path) -> None:
        write_group(folder, layout, 1, {"format_version": 1})
        kvstore = {"driver": "file", "path": f"{folder / FRAMES}/"}
        array = tensorstore.open({"driver": "zarr3", "kvstore": kvstore}).result()
        writes = [array[i].write(layer) for i, layer in enumerate(buffer.frames)]
        for write in writes:
            write.result()

    methods: dict[str, Callable[[Path], None]] = {
        "plain": plain,
        "ours": ours,
        "tensorstore": by_tensorstore,
        "zarr-python": zarr_python,
    }
    seconds: dict[str, list[float]] = {name: [] for name in methods}
    for _ in range(arguments.rounds):
        for name, method in methods.items():
            folder = Path(tempfile.mkdtemp(dir=arguments.folder))
            began = time.perf_counter()
            method(folder)
            seconds[name].append(time.perf_counter() - began)
            shutil.rmtree(folder)
    n_bytes = buffer.frames.nbytes
    print(f"{n_bytes / 1e6:.0f} MB, medians of {arguments.rounds} alternating rounds")
    print(f"{'method':<14}{'MB/s':>8}{'range':>16}{'of plain':>10}{'× zarr-python':>15}")
    table = {}
    for name, runs in seconds.items():
        speed = n_bytes / 1e6 / statistics.median(runs)
        spread = f"{n_bytes / 1e6 / max(runs):.0f}–{n_bytes / 1e6 / min(runs):.0f}"
        of_plain = paired(seconds["plain"], runs)
        of_zarr = paired(seconds["zarr-python"], runs)
        print(f"{name:<14}{speed:>8.0f}{spread:>16}{of_plain:>10.2f}{of_zarr:>15.1f}")
        table[name] = {"mb_per_s": speed, "of_plain": of_plain, "of_zarr_python": of_zarr}
    print(json.dumps(table))


def paired(baseline: list[float], runs: list[float]) -> float:
    return statistics.median(a / b for a, b in zip(baseline, runs, strict=True))


if __name__ == "__main__":
    main()
