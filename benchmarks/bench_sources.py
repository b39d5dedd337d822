"""Plan and decode parts of long recordings, and clips in tar files, against files of their own.

    python benchmarks/bench_sources.py AUDIO_FOLDER [--form segments|tar] [--minutes 60]
                                       [--segments 500] [--formats flac wav mp3 ogg]
                                       [--threads 2] [--rounds 3] [--cpu]
    python benchmarks/bench_sources.py --samples 1000000
    python benchmarks/bench_sources.py AUDIO_FOLDER --parquet 20000 [--rounds 3] [--cold]

Joins the clips of AUDIO_FOLDER, repeated, to one recording of each format; lists its segments as
Kaldi does, and cuts them into files (of flac for mp3 and ogg, whose cuts would be encoded again).
With `--form tar` the cut files are compared with the same files in four shards of WebDataset. Both
are planned and decoded as by `strata extract`, without an encoder; they take turns. The floor is
reading the bytes of all files. Prints medians of seconds, and the ratios to files.

With `--samples` it indexes a WebDataset of so many tiny samples (audio, text and JSON) in shards of
10,000, and prints the time and the memory above that of the imports.

With `--parquet` it writes a repository with so many rows, as `datasets` does, and plans it as
dataset=parquet, as dataset=hub and through `load_dataset`, each in a fresh process with an empty
cache. `--cold` removes the files from the page cache before each run.
"""

from __future__ import annotations

import argparse
import io
import itertools
import json
import os
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import soundfile
from page_cache import drop_from_cache

from pipeline.audio.decode import decode
from pipeline.config import DatasetConfig
from pipeline.encoders.wav2vec2.geometry import GEOMETRY
from pipeline.encoders.windows import Windowing
from pipeline.extract.messages import UnitTask
from pipeline.extract.planning.planner import plan_source
from pipeline.extract.stages.decode import Decoder
from pipeline.sources.opening import open_source

RATE_HZ = 16_000
FORMATS = ("flac", "wav", "mp3", "ogg")
LOSSLESS = ("flac", "wav")
BLOCK = RATE_HZ  # libsndfile may crash when a long vorbis file is written at once


N_SHARDS = 4
SHARD_SAMPLES = 10_000
INDEX = """
import sys, time
from pathlib import Path
from pipeline.config import DatasetConfig
from pipeline.sources.opening import open_source
def in_mb(key):  # not by getrusage, whose peak is also that of the parent process
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(key)).split()[1]) / 1e3
before, start_s = in_mb("VmRSS"), time.perf_counter()
source = open_source(DatasetConfig("webdataset", sys.argv[1]))
taken_s, after, peak = time.perf_counter() - start_s, in_mb("VmRSS"), in_mb("VmHWM")
print(f"{len(source):,} samples: {taken_s:.1f} s, {after - before:.0f} MB, "
      f"at the peak {peak - before:.0f} MB")
"""


class NoEncoder:
    """What planning and decoding need of an encoder."""

    geometry = GEOMETRY
    windows = Windowing(GEOMETRY, max_window_s=40.0, context_s=5.0)

    def utterance_stats(self, utterance: object) -> None:
        """Return nothing: no segment is long."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--form", default="segments", choices=["segments", "tar"])
    parser.add_argument("--samples", type=int, help="of the index of a WebDataset")
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--segments", type=int, default=500)
    parser.add_argument("--formats", nargs="+", default=list(FORMATS), choices=FORMATS)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cpu", action="store_true", help="CPU time, for a busy machine")
    parser.add_argument("--parquet", type=int, metavar="ROWS")
    parser.add_argument("--cold", action="store_true")
    arguments = parser.parse_args()
    if arguments.parquet is not None:
        bench_parquet(arguments.folder, arguments.parquet, arguments.rounds, arguments.cold)
        return
    if arguments.samples:
        measure_index(arguments.samples)
        return
    if arguments.folder is None:
        parser.error("give AUDIO_FOLDER, or --samples")
    sound = joined(arguments.folder, round(arguments.minutes * 60) * RATE_HZ)
    form = arguments.form
    print(
        f"{arguments.segments} parts of {arguments.minutes:g} minutes, medians in seconds ({form})"
    )
    print(
        f"{'':6}{'plan':>8}{'of files':>9}{'ratio':>7}{'decode':>8}{'of files':>9}{'ratio':>7}",
        end="",
    )
    print(f"{'bytes':>8}")
    for suffix in arguments.formats:
        with tempfile.TemporaryDirectory() as scratch:
            parts = write_both(Path(scratch), suffix, sound, arguments.segments)
            if form == "tar":
                parts = {"tar": write_shards(Path(scratch)), "files": parts["files"]}
            clock = time.process_time if arguments.cpu else time.perf_counter
            seconds = measure(parts, arguments.threads, arguments.rounds, clock)
        line = f"{suffix:6}"
        for stage in ("plan", "decode"):
            ours, files = (seconds[kind, stage] for kind in (form, "files"))
            line += f"{ours:8.2f}{files:9.2f}{ours / files:7.2f}"
        print(f"{line}{seconds[form, 'bytes']:8.2f}", flush=True)


def joined(folder: Path, n_samples: int) -> np.ndarray:
    """Join the clips of a folder, repeated up to a length: float32 `[n_samples]`, 16 kHz."""
    files = sorted(path for path in folder.rglob("*") if path.suffix in (".flac", ".wav"))
    parts, n = [], 0
    while n < n_samples:
        for file in files:
            samples, rate_hz = soundfile.read(file, dtype="float32", always_2d=True)
            if rate_hz == RATE_HZ:
                parts.append(samples[:, 0])
                n += len(samples)
        if not parts:
            raise SystemExit(f"{folder} has no wav or flac of 16 kHz")
    return np.concatenate(parts)[:n_samples]


def write_both(
    scratch: Path, suffix: str, sound: np.ndarray, n_segments: int
) -> dict[str, DatasetConfig]:
    """Write the recording with a list of its segments, and the segments as files."""
    data, cuts = scratch / "data", scratch / "cuts"
    data.mkdir()
    cuts.mkdir()
    recording = data / f"long.{suffix}"
    with soundfile.SoundFile(recording, "w", RATE_HZ, 1) as file:
        for start in range(0, len(sound), BLOCK):
            file.write(sound[start : start + BLOCK])
    (data / "wav.scp").write_text(f"long {recording}\n")
    bounds = np.linspace(0, len(sound), n_segments + 1).astype(int)
    cut_suffix = suffix if suffix in LOSSLESS else "flac"
    lines = []
    for i, (start, stop) in enumerate(itertools.pairwise(bounds)):
        lines.append(f"{i:06d} long {start / RATE_HZ:.6f} {stop / RATE_HZ:.6f}\n")
        soundfile.write(cuts / f"{i:06d}.{cut_suffix}", sound[start:stop], RATE_HZ)
    (data / "segments").write_text("".join(lines))
    return {
        "segments": DatasetConfig("kaldi", str(data)),
        "files": DatasetConfig("audiofolder", str(cuts)),
    }


def write_shards(scratch: Path) -> DatasetConfig:
    """Pack the cut files, with a text each, into shards."""
    files = sorted((scratch / "cuts").iterdir())
    for number in range(N_SHARDS):
        with tarfile.open(scratch / f"x-{number}.tar", "w") as shard:
            for file in files[
                number * len(files) // N_SHARDS : (number + 1) * len(files) // N_SHARDS
            ]:
                shard.add(file, file.name)
                text = tarfile.TarInfo(f"{file.stem}.txt")
                text.size = len(file.stem)
                shard.addfile(text, io.BytesIO(file.stem.encode()))
    return DatasetConfig("webdataset", f"{scratch}/x-{{0..{N_SHARDS - 1}}}.tar")


def measure_index(n_samples: int) -> None:
    """Index tiny samples in a process of its own."""
    with tempfile.TemporaryDirectory() as scratch:
        for number, start in enumerate(range(0, n_samples, SHARD_SAMPLES)):
            with (Path(scratch) / f"x-{number:05d}.tar").open("wb") as shard:
                for i in range(start, min(start + SHARD_SAMPLES, n_samples)):
                    words = f"the words of utterance {i} are these ones"
                    facts = f'{{"speaker": "s{i % 1000:04d}", "n": {i}, "score": {i / 7:.3f}}}'
                    for name, data in (("flac", bytes(100)), ("txt", words), ("json", facts)):
                        shard.write(member(f"{i:010d}.{name}", data))
                shard.write(bytes(1024))
        command = [sys.executable, "-c", INDEX, scratch]
        print(subprocess.run(command, check=True, capture_output=True, text=True).stdout, end="")


def member(name: str, data: bytes | str) -> bytes:
    """Return a member of a tar; `tarfile` takes several minutes for millions."""
    content = data.encode() if isinstance(data, str) else data
    head = bytearray(512)
    head[: len(name)] = name.encode()
    head[100:136] = b"0000644\0" + 2 * b"0000000\0" + f"{len(content):011o}\0".encode()
    head[136:157] = b"00000000000\0" + 8 * b" " + b"0"
    head[257:265] = b"ustar\x0000"
    head[148:156] = f"{sum(head):06o}\0 ".encode()
    return bytes(head) + content + bytes(-len(content) % 512)


def measure(
    parts: dict[str, DatasetConfig], n_threads: int, rounds: int, clock: Callable[[], float]
) -> dict[tuple[str, str], float]:
    """Time each stage of both, in turns after a first round."""
    runs: dict[tuple[str, str], list[float]] = {}
    for number in range(rounds + 1):
        for kind, config in parts.items():
            for stage, call in stages(config, n_threads):
                start_s = clock()
                call()
                if number:
                    runs.setdefault((kind, stage), []).append(clock() - start_s)
    return {key: statistics.median(values) for key, values in runs.items()}


def stages(config: DatasetConfig, n_threads: int) -> Sequence[tuple[str, Callable[[], object]]]:
    """Return the stages of one run: reading the bytes, planning, decoding all units."""
    source = open_source(config)
    plan = plan_source(source, NoEncoder.windows, None)
    tasks = [UnitTask(u, u, 1, plan.unit_rows(u)) for u in range(plan.n_units)]

    def read() -> None:
        for path in sorted({str(source.segment(row).path) for row in range(len(source))}):
            Path(path).read_bytes()

    def decode_all() -> None:
        decoder = Decoder(source.config, source.segment, decode, NoEncoder(), n_threads)
        for task, following in zip(tasks, [*tasks[1:], None], strict=True):
            decoder.begin(task)
            if following is not None:
                decoder.begin(following)
            items = decoder.take(task)
            assert all(item.is_ok for item in items), "a segment was quarantined"
        decoder.close()

    def plan_again() -> None:
        plan_source(open_source(config), NoEncoder.windows, None)

    return [("bytes", read), ("plan", plan_again), ("decode", decode_all)]


ROWS_PER_FILE = 3500  # 500 MB of read speech, as on the hub
ROWS_PER_GROUP = 100
PLAN_PARQUET = """
import json, sys, time
from pathlib import Path
from pipeline.config import DatasetConfig
from pipeline.encoders.wav2vec2.geometry import GEOMETRY
from pipeline.extract.planning.scan import scan
from pipeline.sources import hub
from pipeline.sources.opening import open_source

def status(key):
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(key)).split()[1]) / 1e3

way, repository = sys.argv[1:]
config = DatasetConfig("hub", name=repository, split="train")
if way == "dataset=parquet":
    config = DatasetConfig("parquet", repository)
before_mb, start_s = status("VmRSS"), time.perf_counter()
with hub.quiet():
    source = hub.open_hub(config) if way == "load_dataset" else open_source(config)
opened_s = time.perf_counter()
rows = scan(source, GEOMETRY)
print(json.dumps({
    "open_s": opened_s - start_s,
    "plan_s": time.perf_counter() - start_s,
    "peak_mb": status("VmHWM") - before_mb,
    "samples": sum(rows["n_samples"].to_pylist()),
}))
"""
"""Opens and scans a repository in a fresh process, in one of the ways."""
WAYS = ("dataset=parquet", "dataset=hub", "load_dataset")


def bench_parquet(folder: Path, n_rows: int, rounds: int, cold: bool) -> None:
    """Print seconds, peak memory and bytes written for each way to plan a repository."""
    runs: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    with tempfile.TemporaryDirectory() as scratch:
        files = write_repository(folder, Path(scratch) / "repo", n_rows)
        n_bytes = sum(file.stat().st_size for file in files)
        print(f"{n_rows:,} rows, {n_bytes / 1e9:.2f} GB of Parquet in files of {ROWS_PER_FILE:,}")
        for _ in range(rounds):
            for way, found in runs.items():
                if cold:
                    drop_from_cache(files)
                found.append(plan_repository(way, files[0].parents[1]))
    assert len({run["samples"] for found in runs.values() for run in found}) == 1
    print(f"{'':17}{'open s':>8}{'plan s':>8}{'to load':>9}{'peak MB':>9}{'written MB':>12}")
    loaded_s = statistics.median(run["open_s"] for run in runs["load_dataset"])
    for way, found in runs.items():
        keys = ("open_s", "plan_s", "peak_mb", "written_mb")
        opened, planned, peak, written = (
            statistics.median(run[key] for run in found) for key in keys
        )
        ratio = f"{planned / loaded_s:9.3f}"
        print(f"{way:17}{opened:8.2f}{planned:8.2f}{ratio}{peak:9.0f}{written:12.1f}", flush=True)


def write_repository(folder: Path, repository: Path, n_rows: int) -> list[Path]:
    """Write the clips of a folder, repeated under other names, as `datasets` writes them."""
    clips = [path.read_bytes() for path in sorted(folder.rglob("*.flac"))]
    features = datasets.Features({"audio": datasets.Audio(), "number": datasets.Value("int64")})
    starts = range(0, n_rows, ROWS_PER_FILE)
    files = []
    for i, start in enumerate(starts):
        path = repository / f"data/train-{i:05}-of-{len(starts):05}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        schema = features.arrow_schema
        plain = {"audio.bytes": "none", "audio.path": "snappy", "number": "snappy"}
        with pq.ParquetWriter(
            path,
            schema,
            compression=plain,
            use_dictionary=["audio.path", "number"],
            column_encoding={"audio.bytes": "PLAIN"},
            use_content_defined_chunking=datasets.config.DEFAULT_CDC_OPTIONS,
            write_page_index=True,
        ) as writer:
            stop = min(start + ROWS_PER_FILE, n_rows)
            for first in range(start, stop, ROWS_PER_GROUP):
                numbers = range(first, min(first + ROWS_PER_GROUP, stop))
                audio = [{"bytes": clips[n % len(clips)], "path": f"{n}.flac"} for n in numbers]
                columns = {"audio": pa.array(audio, schema.field("audio").type), "number": numbers}
                writer.write_table(pa.table(columns, schema=schema))
        files.append(path)
    return files


def plan_repository(way: str, repository: Path) -> dict[str, float]:
    """Plan a repository in a fresh process with an empty cache of `datasets`."""
    with tempfile.TemporaryDirectory() as cache:
        environment = {**os.environ, "HF_DATASETS_CACHE": cache, "HF_HUB_OFFLINE": "1"}
        command = [sys.executable, "-c", PLAN_PARQUET, way, str(repository)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        written = sum(path.stat().st_size for path in Path(cache).rglob("*") if path.is_file())
        return {**json.loads(done.stdout), "written_mb": written / 1e6}


if __name__ == "__main__":
    main()
