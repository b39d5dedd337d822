"""Measure how the driver's work grows from 10⁴ to 10⁶ utterances: plan, restart, status, overhead.

The source is synthetic (real wav headers, read from memory), and no encoder runs: units are
committed by writing the index files that workers would write. Each size runs in a separate process,
to measure its peak memory. CPU seconds are printed beside wall-clock seconds, which grow with the
load of the machine.

`--files flac` plans a real folder instead: as many hard links to 64 files of noise, in 251 folders.
`--segments` plans a csv of segments of 1,000 recordings with text labels, in this process and on a
Ray cluster of this machine's CPUs; the memory is what planning adds to the driver's own.

    python benchmarks/bench_scale.py [--sizes 10000 1000000] [--files wav|flac|mp3] [--segments]
        [--work DIR]
"""

from __future__ import annotations

import argparse
import io
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
import wave
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import soundfile

from pipeline.config import Config, DatasetConfig, load_config
from pipeline.events import ObserverGroup
from pipeline.extract import run, store_setup
from pipeline.extract.driver import Driver, LeasedStore
from pipeline.extract.executors.base import Outcome
from pipeline.extract.messages import UnitReport, UnitTask
from pipeline.sources.base import Segment
from pipeline.store.backend.opening import open_backend
from pipeline.store.coordination.lease import Lease
from pipeline.store.coordination.log_observer import RunLogObserver
from pipeline.store.coordination.run_log import RunLog
from pipeline.store.documents import layout_of, read_attributes, read_plan
from pipeline.store.format.geometry import FrameGeometry
from pipeline.store.format.layout import index_key, ledger_key
from pipeline.store.format.records import FIELDS
from pipeline.store.index import compact, drop_cache
from pipeline.store.maintain.status import read_status
from pipeline.store.serialization import json_bytes, parquet_bytes

SPEAKERS = 251
LAYERS = 12


class SyntheticSource:
    """Source of `n` utterances of 1 to 17 s, each with a speaker."""

    is_shared = False
    skipped: tuple[str, ...] = ()
    skipped_columns: tuple[str, ...] = ()
    columns: tuple[Any, ...] = ()
    notes: tuple[str, ...] = ()
    config = DatasetConfig("synthetic")
    origin = "synthetic"

    def __init__(self, n: int) -> None:
        parts = [
            pa.array([f"speaker-{i % SPEAKERS}/utterance-{i:07d}" for i in range(start, stop)])
            for start, stop in pairwise([*range(0, n, 10_000), n])
        ]
        self._ids = pa.concat_arrays(parts)
        self._audio = [_wav(round(s * 16_000)) for s in np.linspace(1, 17, 64)]
        self.identity = {"kind": "synthetic", "n": n, "columns": []}
        self.fingerprint = f"synthetic-{n}"

    def __len__(self) -> int:
        return len(self._ids)

    def ids(self) -> pa.Array:
        """Return the ids in order."""
        return self._ids

    def segment(self, row: int) -> Segment:
        """Return one of 64 clips."""
        return Segment(f"{row}", data=self._audio[row * 37 % 64])

    def metadata(self, rows: Sequence[int]) -> pa.Table:
        """Return no columns."""
        return pa.table({})


def _wav(n_samples: int) -> bytes:
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16_000)
        file.writeframes(bytes(2 * n_samples))
    return buffer.getvalue()


class InstantExecutor:
    """Executor whose units are done at once, so that only the driver's own work is measured."""

    def __init__(self) -> None:
        self._task: UnitTask | None = None

    def has_room(self, exclusive: bool = False) -> bool:
        """Return whether it is idle."""
        return self._task is None

    def submit(self, task: UnitTask, limit_s: float) -> str:
        """Accept a unit."""
        self._task = task
        return "instant"

    def poll(self, timeout_s: float) -> list[Outcome]:
        """Report the unit as committed."""
        task, self._task = self._task, None
        assert task is not None
        n = len(task.rows)
        seconds = {"decode": 1.0, "encode": 2.0, "copy": 0.1, "write": 0.1}
        report = UnitReport(
            task.unit, task.slot, True, n, 0, 0, 0, 900.0, 1.0, 0, "host:1", seconds
        )
        return [Outcome(task, report=report)]

    def close(self) -> None:
        """Do nothing."""


@contextmanager
def clock(results: dict[str, Any], name: str) -> Iterator[None]:
    """Time a block into `results`: wall-clock and CPU seconds."""
    began, cpu = time.perf_counter(), time.process_time()
    yield
    results[f"{name}_s"] = round(time.perf_counter() - began, 3)
    results[f"{name}_cpu_s"] = round(time.process_time() - cpu, 3)


def measure_plan(config: Config, results: dict[str, Any]) -> None:
    """Plan; measure the time, and the memory beyond that of the imports."""
    before = peak_mb()
    with clock(results, "plan"):
        results["units"] = run.plan(config).units
    results["plan_mb"] = peak_mb() - before
    results["peak_mb"] = peak_mb()


def peak_mb() -> int:
    """Return the peak memory of this process, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def commit_all(root: Path) -> None:
    """Write claims and index files of all units as workers would, but without fsync."""
    plan = read_plan(root)
    assert plan is not None
    for folder in ("index", "ledger"):
        (root / folder).mkdir(exist_ok=True)
    for unit in range(plan.n_units):
        rows = plan.unit_rows(unit)
        n = len(rows)
        frames = rows["n_frames"].to_numpy().astype(np.int64)
        starts = unit * plan.frames_per_unit + np.cumsum(frames) - frames
        crcs = np.random.default_rng(unit).integers(0, 2**32, (n, LAYERS), np.uint32)
        columns = {
            **{name: rows[name] for name in ("id", "row", "unit", "position", "piece", "n_pieces")},
            "status": pa.array(["ok"] * n),
            "reason": pa.nulls(n, pa.string()),
            "slot": pa.array([unit] * n, pa.int32()),
            "frame_start": pa.array(starts),
            "n_frames": rows["n_frames"],
            "n_samples": rows["n_samples"],
            "source_rate_hz": pa.array([16_000] * n, pa.int32()),
            "flags": pa.array([[]] * n, pa.list_(pa.string())),
            "crc32c": pa.array(list(crcs), pa.list_(pa.uint32())),
        }
        table = pa.table([columns[item.name] for item in FIELDS], schema=pa.schema(FIELDS))
        (root / index_key(unit)).write_bytes(parquet_bytes(table.combine_chunks()))
        claim = {"slot": unit, "unit": unit, "attempt": 1, "run_id": "r", "worker": "w", "time": ""}
        (root / ledger_key(unit)).write_bytes(json_bytes(claim))


def measure(n: int) -> dict[str, Any]:
    """Measure one size; run in a separate process."""
    results: dict[str, Any] = {"utterances": n}
    source = SyntheticSource(n)
    run.open_source = lambda config, count_channels: source  # type: ignore[assignment]
    store_setup._checked = lambda *_: None  # type: ignore[assignment]
    run.check_space = lambda n_units, layout, root: None  # type: ignore[assignment]
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "store"
        config = configured(root)
        measure_plan(config, results)
        commit_all(root)
        run.extract(config)  # writes the Zarr documents and the compaction
        with clock(results, "restart"):
            run.extract(config)
        with clock(results, "status"):
            read_status(root)
        drop_cache(root)
        with clock(results, "status_no_cache"):
            read_status(root)
        with clock(results, "compact"):
            compact(root)
        results["overhead_ms"] = overhead_ms(root, config, min(results["units"], 2000))
    results["end_mb"] = peak_mb()
    return results


def measure_files(n: int, kind: str, work: Path | None) -> dict[str, Any]:
    """Measure the plan of a real folder; run in a separate process."""
    results: dict[str, Any] = {"utterances": n}
    run.check_space = lambda n_units, layout, root: None  # type: ignore[assignment]
    with tempfile.TemporaryDirectory(dir=work) as folder:
        clips = Path(folder) / "clips"
        link_files(clips, n, kind)
        measure_plan(configured(Path(folder) / "store", f"dataset.path={clips}"), results)
    return results


def link_files(folder: Path, n: int, kind: str) -> None:
    """Make a folder of `n` hard links to 64 clips of 1 to 3 s."""
    folder.mkdir()
    noise = np.random.default_rng(0).normal(0, 0.05, 48_000)
    sources = [folder / f"clip-{i:02d}.{kind}" for i in range(64)]
    for source, n_samples in zip(sources, np.linspace(16_000, 48_000, 64, dtype=int), strict=True):
        soundfile.write(source, noise[:n_samples], 16_000)
    for i in range(n - len(sources)):
        speaker = folder / f"speaker-{i % SPEAKERS:03d}"
        if i < SPEAKERS:
            speaker.mkdir()
        (speaker / f"utterance-{i:07d}.{kind}").hardlink_to(sources[i % 64])


def measure_segments(n: int, work: Path | None) -> dict[str, Any]:
    """Measure the plan of a csv of segments, inline and on a cluster; run in a separate process."""
    results: dict[str, Any] = {"utterances": n}
    with tempfile.TemporaryDirectory(dir=work) as folder:
        table = write_segments(Path(folder), n)
        columns = ("audio", "path"), ("id", "utt"), ("start", "start"), ("stop", "stop")
        options = [f"dataset.{name}_column={column}" for name, column in columns]
        options = ["dataset=manifest", f"dataset.path={table}", "model=tiny", *options]
        for engine in ("inline", "ray"):
            code = _PLAN.format(options=[*options, f"engine={engine}"])
            with own_cluster() if engine == "ray" else nullcontext():
                done = subprocess.run(
                    [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, check=True
                )
            found = json.loads(done.stdout.splitlines()[-1])
            results |= {f"{engine}_{name}": value for name, value in found.items()}
    return results


_PLAN = """
import json, threading, time
from pathlib import Path
from pipeline.config import load_config
from pipeline.extract import run
from pipeline.extract.resources import find_resources

def own_mb():
    text = Path("/proc/self/status").read_text()
    return int(text.split("RssAnon:")[1].split()[0]) // 1024

def watch():
    while True:
        peak[0] = max(peak[0], own_mb())
        time.sleep(0.02)

config = load_config({options!r})
find_resources(config.engine)  # connects to the cluster, if there is one
before, peak = own_mb(), [0]
threading.Thread(target=watch, daemon=True).start()
began, cpu = time.perf_counter(), time.process_time()
run.plan(config)
print(json.dumps(dict(
    plan_s=round(time.perf_counter() - began, 1),
    plan_cpu_s=round(time.process_time() - cpu, 1),
    plan_mb=peak[0] - before,
    kept_mb=own_mb() - before,
)))
"""


@contextmanager
def own_cluster() -> Iterator[None]:
    """Run a Ray head on this machine; RAY_ADDRESS names it."""
    import ray

    context = ray.init(address="local", include_dashboard=False, log_to_driver=False)
    os.environ["RAY_ADDRESS"] = context.address_info["gcs_address"]
    yield
    del os.environ["RAY_ADDRESS"]
    ray.shutdown()


def write_segments(folder: Path, n: int) -> Path:
    """Write a csv of `n` segments of 1,000 recordings of two minutes, all links to one file."""
    noise = np.random.default_rng(0).normal(0, 0.05, 120 * 16_000)
    soundfile.write(folder / "rec-000.flac", noise, 16_000)
    for i in range(1, 1000):
        (folder / f"rec-{i:03d}.flac").hardlink_to(folder / "rec-000.flac")
    table = folder / "list.csv"
    with table.open("w") as file:
        file.write("utt,path,start,stop,speaker,text\n")
        for i in range(n):
            recording, k = i * 1000 // n, i % 1000
            times = f"{k * 0.1:.2f},{k * 0.1 + 5:.2f}"
            text = f"the quick brown fox jumps over the lazy dog {i}"
            file.write(f"utterance-{i:07d},rec-{recording:03d}.flac,{times},s{i % 251},{text}\n")
    return table


def configured(root: Path, *more: str) -> Config:
    """Return the configuration to plan and extract."""
    frames = "plan.frames_per_unit=51200"
    return load_config(
        ["dataset=audiofolder", "model=tiny", f"store={root}", "engine=inline", frames, *more]
    )


def overhead_ms(root: Path, config: Config, n_units: int) -> float:
    """Measure the driver's own time per unit: claim, submit, record, log."""
    attributes = read_attributes(root)
    plan = read_plan(root)
    assert plan is not None
    with tempfile.TemporaryDirectory(dir=root.parent) as folder:
        fresh = Path(folder)
        with Lease(fresh, "bench") as lease:
            driver = Driver(
                config,
                LeasedStore(
                    open_backend(fresh),
                    layout_of(attributes),
                    FrameGeometry.from_attributes(attributes),
                    lease,
                    "bench",
                ),
                plan,
                ObserverGroup(RunLogObserver(RunLog(fresh, "bench"))),
                lambda n: InstantExecutor(),
            )
            (fresh / "ledger").mkdir()
            from pipeline.store.coordination.ledger import Ledger

            ledger = Ledger.open(fresh, plan.n_units)
            began = time.perf_counter()
            driver._extract(list(range(n_units)), InstantExecutor(), ledger)
            return round((time.perf_counter() - began) / n_units * 1000, 3)


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--files", choices=["wav", "flac", "mp3"], help="plan a real folder")
    parser.add_argument("--segments", action="store_true", help="plan a csv of segments")
    parser.add_argument("--work", type=Path, help="where to make that folder")
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        n, kind = options.one, options.files
        if options.segments:
            print(json.dumps(measure_segments(n, options.work)))
            return 0
        print(json.dumps(measure_files(n, kind, options.work) if kind else measure(n)))
        return 0
    rows = []
    for size in options.sizes:
        command = [sys.executable, __file__, *sys.argv[1:], "--one", str(size)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        rows.append(json.loads(done.stdout.splitlines()[-1]))
    print("| | " + " | ".join(f"{row['utterances']:,}" for row in rows) + " |")
    print("|---|" + "---|" * len(rows))
    for name in rows[0]:
        print(f"| {name} | " + " | ".join(f"{row[name]:,}" for row in rows) + " |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
