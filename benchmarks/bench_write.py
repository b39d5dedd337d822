"""Compare writing a unit with plain writes and with the Zarr libraries; time what a unit costs.

    python benchmarks/bench_write.py [--frames 19968] [--rounds 5] [--folder DIR] [--threads 1 2 4]

One unit of 12 layers × frames × 768 float16 is written many times; the methods take turns, in
another order in each round, and each finds the disk idle:

plain, n       one file per layer, from n threads: write, fsync. The best one is the upper bound.
ours, n        strata's commit of the unit: shards with their index, pooled means, index file; each
               synced, renamed, and its folder synced. Checksums and means are computed before.
stage          strata's write stage: the same with checksums and means, as a worker runs it
zarr-python    the same array (same shards and inner chunks), one write per layer; not synced
tensorstore    the same, through tensorstore; not synced by request

Then the time of a unit without data is printed: a claim in the ledger, the check of the lease, the
commit of 12 tiny shards, a line of the log; and how many files and syncs these are. Last, the speed
of the checksums of utterances from 1 and 2 threads, by the package that Strata uses and by
google-crc32c, which zarr-python uses.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from unittest import mock

import google_crc32c
import numpy as np
import pyarrow as pa
import tensorstore
import torch
import zarr
from crc32c import crc32c

from pipeline.config import DatasetConfig
from pipeline.extract.messages import Job, UnitTask
from pipeline.extract.stages.decode import Utterance
from pipeline.extract.stages.write import WriteStage
from pipeline.store.backend.opening import open_backend
from pipeline.store.coordination.lease import Lease
from pipeline.store.coordination.ledger import Ledger
from pipeline.store.coordination.run_log import RunLog, now
from pipeline.store.documents import write_group
from pipeline.store.format.layout import FRAMES, Layout
from pipeline.store.format.records import Record, records_table
from pipeline.store.write.buffer import UnitBuffer
from pipeline.store.write.slot import SlotWriter

LAYERS = tuple(range(1, 13))
DIM = 768
CLIP_FRAMES = 624


class Methods:
    """Ways to write the same unit into an empty folder."""

    def __init__(self, n_frames: int) -> None:
        self.layout = Layout(LAYERS, DIM, n_frames, 64)
        self.buffer = UnitBuffer(self.layout)
        self.buffer.start(n_frames)
        rng = np.random.default_rng(0)
        for layer in self.buffer.frames:
            layer[:] = rng.standard_normal((n_frames, DIM), np.float32)
        checksums = self.buffer.seal(0, 0, n_frames)
        record = Record("all", 0, 0, "ok", frame_start=0, n_frames=n_frames, crc32c=checksums)
        self.index = records_table([record], 0, 0, pa.table({}))

    def plain(self, folder: Path, n_threads: int) -> None:
        def write(axis: int) -> None:
            with (folder / str(axis)).open("wb", buffering=0) as file:
                file.write(self.buffer.frames[axis].data.cast("B"))
                os.fsync(file.fileno())

        with ThreadPoolExecutor(n_threads) as threads:
            list(threads.map(write, range(len(LAYERS))))

    def ours(self, folder: Path, n_threads: int) -> None:
        write_group(folder, self.layout, 1, {"format_version": 1})
        with ThreadPoolExecutor(n_threads) as threads:
            writer = SlotWriter(folder, self.buffer, 0, 0, run=threads.map)
            layers = [slice(axis, axis + 1) for axis in range(len(LAYERS))]
            list(threads.map(partial(writer.write, 0, self.layout.frames_per_unit), layers))
            writer.complete()
            assert writer.commit(self.index).won

    def stage(self, folder: Path) -> None:
        write_group(folder, self.layout, 1, {"format_version": 1})
        dataset = DatasetConfig("audiofolder")
        job = Job(open_backend(folder), self.layout, dataset, lambda: None, 1, os.cpu_count() or 1)
        stage = WriteStage(job, torch.device("cpu"))
        stage._free.put(self.buffer)
        unit = stage.begin(UnitTask(0, 0, 1, pa.table({})))
        n_frames = self.layout.frames_per_unit
        for i, start in enumerate(range(0, n_frames, CLIP_FRAMES)):
            stop = min(n_frames, start + CLIP_FRAMES)
            unit.add(
                Utterance(Record(str(i), i, i, "ok"), start=start, n_frames=stop - start), None
            )
        unit.finish(n_frames)
        unit.wait()
        assert unit.commit(self.index).won
        stage.close()

    def zarr_python(self, folder: Path) -> None:
        write_group(folder, self.layout, 1, {"format_version": 1})
        array = zarr.open_array(folder / FRAMES, mode="r+")
        for i, layer in enumerate(self.buffer.frames):
            array[i] = layer

    def tensorstore(self, folder: Path) -> None:
        write_group(folder, self.layout, 1, {"format_version": 1})
        kvstore = {"driver": "file", "path": f"{folder / FRAMES}/"}
        array = tensorstore.open({"driver": "zarr3", "kvstore": kvstore}).result()
        writes = [array[i].write(layer) for i, layer in enumerate(self.buffer.frames)]
        for write in writes:
            write.result()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--frames", type=int, default=19_968)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="disk to write to")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2, 4, 8])
    arguments = parser.parse_args()
    methods = Methods(arguments.frames)
    calls: dict[str, Callable[[Path], None]] = {}
    for n in arguments.threads:
        calls[f"plain, {n}"] = partial(methods.plain, n_threads=n)
        calls[f"ours, {n}"] = partial(methods.ours, n_threads=n)
    calls |= {"stage": methods.stage, "tensorstore": methods.tensorstore}
    calls["zarr-python"] = methods.zarr_python
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    order = random.Random(0)
    for _ in range(arguments.rounds):
        for name, call in order.sample(list(calls.items()), len(calls)):
            folder = Path(tempfile.mkdtemp(dir=arguments.folder))
            began = time.perf_counter()
            call(folder)
            seconds[name].append(time.perf_counter() - began)
            shutil.rmtree(folder)
            os.sync()
    table = show(seconds, methods.buffer.frames.nbytes)
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        table["empty unit"] = empty_units(Path(folder))
    table["checksums"] = checksum_speeds(methods.buffer.frames)
    print(json.dumps(table))


def show(seconds: dict[str, list[float]], n_bytes: int) -> dict[str, dict[str, float]]:
    plain = [name for name in seconds if name.startswith("plain")]
    best = min(plain, key=lambda name: statistics.median(seconds[name]))
    n_rounds = len(seconds[best])
    print(f"{n_bytes / 1e6:.0f} MB, medians of {n_rounds} alternating rounds; best plain: {best}")
    print(f"{'method':<14}{'MB/s':>8}{'range':>16}{'of best plain':>15}{'× zarr-python':>15}")
    table = {}
    for name, runs in seconds.items():
        speed = n_bytes / 1e6 / statistics.median(runs)
        spread = f"{n_bytes / 1e6 / max(runs):.0f}–{n_bytes / 1e6 / min(runs):.0f}"
        of_plain = paired(seconds[best], runs)
        of_zarr = paired(seconds["zarr-python"], runs)
        print(f"{name:<14}{speed:>8.0f}{spread:>16}{of_plain:>15.2f}{of_zarr:>15.1f}")
        table[name] = {"mb_per_s": speed, "of_plain": of_plain, "of_zarr_python": of_zarr}
    return table


def paired(baseline: list[float], runs: list[float]) -> float:
    return statistics.median(a / b for a, b in zip(baseline, runs, strict=True))


def empty_units(root: Path, n_units: int = 30) -> dict[str, float]:
    """Time the protocol around units whose data are tiny, in milliseconds per unit."""
    layout = Layout(LAYERS, 8, 256, 4)
    write_group(root, layout, n_units, {"format_version": 1})
    buffer = UnitBuffer(layout)
    buffer.start(0)
    index = records_table([Record("x", 0, 0, "quarantined", "empty")], 0, 0, pa.table({}))
    ledger, log, syncs = Ledger.open(root, n_units), RunLog(root, "run"), []
    spent: dict[str, list[float]] = {"ledger": [], "lease": [], "commit": [], "log": []}
    fsync = os.fsync

    def count(descriptor: int) -> None:
        syncs.append(descriptor)
        fsync(descriptor)

    def timed(name: str, act: Callable[[], object]) -> None:
        began = time.perf_counter()
        act()
        spent[name].append(1000 * (time.perf_counter() - began))

    def commit(unit: int) -> None:
        with SlotWriter(root, buffer, unit, unit, run=threads.map) as writer:
            writer.write(0, 256)
            writer.complete()
            assert writer.commit(index).won

    with ThreadPoolExecutor(4) as threads, Lease(root, "run") as lease:
        n_before = sum(path.is_file() for path in root.rglob("*"))
        with mock.patch.object(os, "fsync", count):
            for unit in range(n_units):
                timed("ledger", partial(ledger.claim, unit, "run", "bench", now()))
                timed("lease", lease.check)
                timed("commit", partial(commit, unit))
                timed("log", partial(log.write, "unit_committed", report={}))
        n_files = sum(path.is_file() for path in root.rglob("*")) - n_before
    medians = {f"{name}_ms": statistics.median(values) for name, values in spent.items()}
    counts = {"syncs": len(syncs) / n_units, "files": n_files / n_units}
    listed = ", ".join(f"{name.removesuffix('_ms')} {ms:.2f}" for name, ms in medians.items())
    print(
        f"a unit without data: {sum(medians.values()):.1f} ms ({listed}); "
        f"{counts['syncs']:.1f} syncs and {counts['files']:.1f} files"
    )
    return medians | counts


def checksum_speeds(frames: np.ndarray, rounds: int = 5) -> dict[str, float]:
    """Measure the checksums of the layers of utterances, `[n_layers, n_frames, dim]`, in GB/s.

    Threads help only if the package lets go of the interpreter's lock.
    """
    parts = [
        layer[start : start + CLIP_FRAMES].reshape(-1).view(np.uint8)
        for layer in frames
        for start in range(0, frames.shape[1], CLIP_FRAMES)
    ]
    assert crc32c(parts[0]) == google_crc32c.value(parts[0])
    packages = {"crc32c": crc32c, "google-crc32c": google_crc32c.value}
    found: dict[str, list[float]] = {}
    for _ in range(rounds):
        for name, checksum in packages.items():
            for n_threads in (1, 2):
                with ThreadPoolExecutor(n_threads) as threads:
                    began = time.perf_counter()
                    list(threads.map(checksum, parts))
                    speed = frames.nbytes / 1e9 / (time.perf_counter() - began)
                found.setdefault(f"{name}, {n_threads}", []).append(speed)
    medians = {name: statistics.median(speeds) for name, speeds in found.items()}
    listed = "; ".join(f"{name}: {speed:.1f}" for name, speed in medians.items())
    print(f"checksums of {parts[0].nbytes / 1e6:.1f} MB in GB/s, by threads: {listed}")
    return medians


if __name__ == "__main__":
    main()
