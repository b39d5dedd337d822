"""Measure how long opening a store of a million utterances takes, its memory, and a lookup by id.

    python benchmarks/bench_open.py [--utterances 1000000] [--stores 1] [--folder /tmp/...]

The index is synthetic (ids of 36 characters, three carried columns, twelve checksums each), with a
file for each 100 utterances and a cache of them. The store is opened in a separate process, to
measure its peak memory; then a copy of it, of which the cache proves nothing before the checksums
of the copied files are compared (`copied_s`); then without its cache (`uncached_s`). With
`--stores N` the utterances are in N stores, which are opened as one; `apart_s` and
`apart_resident_mb` are of the same stores, each opened by itself. Prints a table and one JSON line.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa

from pipeline.store import index
from pipeline.store.documents import write_group
from pipeline.store.format.identity import make_identity
from pipeline.store.format.layout import FORMAT_VERSION, Layout, index_key
from pipeline.store.format.records import FIELDS, OK
from pipeline.store.serialization import parquet_bytes

PER_UNIT = 100
FRAMES = 590
PROBE = """
import json, re, sys, time
def status(name):
    return int(re.search(name + r":\\s+(\\d+)", open("/proc/self/status").read())[1]) / 1024
import torch, zarr, pyarrow, pipeline.store.read.opening as reader
resident = status("VmRSS")
began = time.perf_counter()
how, *paths = sys.argv[1:]
store = reader.open_store(paths if how == "joined" else paths[0])
others = [reader.open_store(path) for path in paths[1:]] if how == "apart" else []
opened = time.perf_counter() - began
peak, after = status("VmHWM") - resident, status("VmRSS") - resident
names = store.metadata["id"]
began = time.perf_counter()
store.position(names[len(store) // 2].as_py())
first = time.perf_counter() - began
wanted = [names[i].as_py() for i in range(0, len(store), len(store) // 1000)]
began = time.perf_counter()
for name in wanted:
    store.position(name)
print(json.dumps({
    "open_s": opened, "peak_mb": peak, "resident_mb": after, "first_lookup_s": first,
    "lookup_us": (time.perf_counter() - began) / len(wanted) * 1e6, "utterances": len(store),
    "resident_with_lookup_mb": status("VmRSS") - resident, "imports_mb": resident}))
"""


def write_index(root: Path, n: int, first: int = 0) -> None:
    """Write a store that has an index and no features; its utterances are numbered from `first`."""
    layout = Layout(tuple(range(1, 13)), 768, 59_904, PER_UNIT)
    column = {"name": "label", "type": "int64", "class_names": ["a", "b"]}
    write_group(
        root,
        layout,
        n // PER_UNIT + 1,
        {
            "format_version": FORMAT_VERSION,
            "layers": list(layout.layers),
            "feature_dim": layout.dim,
            "frames_per_unit": layout.frames_per_unit,
            "utterances_per_slot": layout.utterances_per_slot,
            "frame_rate_hz": 50.0,
            "sample_rate_hz": 16_000,
            "identity": make_identity({"columns": [column]}, {}, {}),
            "provenance": {},
        },
    )
    row = np.arange(n)
    unit, position = row // PER_UNIT, row % PER_UNIT
    crc = np.random.default_rng(0).integers(0, 2**32, 12 * n, np.uint32)
    values = {
        "id": [
            f"speaker-{i * 7919 % 1000:04d}/clip-{first + i * 104729 % n:09d}.flac"
            for i in range(n)
        ],
        "row": row,
        "unit": unit,
        "position": position,
        "status": pa.repeat(OK, n),
        "reason": pa.nulls(n, pa.string()),
        "piece": np.zeros(n),
        "n_pieces": np.ones(n),
        "slot": unit,
        "frame_start": unit * layout.frames_per_unit + position * FRAMES,
        "n_frames": np.full(n, FRAMES),
        "n_samples": np.full(n, FRAMES * 320 + 80),
        "source_rate_hz": np.full(n, 16_000),
        "flags": pa.ListArray.from_arrays(pa.array(np.zeros(n + 1), pa.int32()), pa.array([""])),
        "crc32c": pa.ListArray.from_arrays(pa.array(np.arange(n + 1) * 12, pa.int32()), crc),
    }
    table = pa.Table.from_arrays(
        [pa.array(values[item.name]).cast(item.type) for item in FIELDS], schema=pa.schema(FIELDS)
    )
    table = table.append_column("label", pa.array(row % 2))
    table = table.append_column("speaker", pa.array([f"speaker-{i % 1000}" for i in range(n)]))
    table = table.append_column("score", pa.array(row / 7))
    for number in range(unit[-1] + 1):
        rows = table.slice(number * PER_UNIT, PER_UNIT)
        (root / index_key(number)).write_bytes(parquet_bytes(rows))
    index.compact(root)


def probe(how: str, stores: list[Path]) -> dict[str, float]:
    """Open stores in a new process: `joined` or `apart`."""
    command = [sys.executable, "-c", PROBE, how, *map(str, stores)]
    found: dict[str, float] = json.loads(subprocess.check_output(command).splitlines()[-1])
    return found


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--utterances", type=int, default=1_000_000)
    parser.add_argument("--stores", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, default=Path("/tmp/strata-bench-open"))
    options = parser.parse_args()
    shutil.rmtree(options.folder, ignore_errors=True)
    try:
        stores = [options.folder / f"store-{number}" for number in range(options.stores)]
        share = options.utterances // options.stores
        for number, store in enumerate(stores):
            write_index(store, share, number * share)
        how = "joined" if options.stores > 1 else "apart"
        rounds = []
        for _ in range(options.rounds):
            found = probe(how, stores)
            if how == "joined":
                apart = probe("apart", stores)
                found |= {"apart_s": apart["open_s"], "apart_resident_mb": apart["resident_mb"]}
            rounds.append(found)
        copy = options.folder.with_name(options.folder.name + "-copy")
        shutil.rmtree(copy, ignore_errors=True)
        options.folder.rename(copy)
        shutil.copytree(copy, options.folder)
        shutil.rmtree(copy)
        for name in ("copied_s", "uncached_s"):
            for item in rounds:
                item[name] = probe(how, stores)["open_s"]
            for store in stores:
                index.drop_cache(store)
    finally:
        shutil.rmtree(options.folder, ignore_errors=True)
    median = {key: statistics.median(item[key] for item in rounds) for key in rounds[0]}
    for key, value in median.items():
        seen = [item[key] for item in rounds]
        print(f"{key:24s} {value:12.3f}   ({min(seen):.3f} … {max(seen):.3f})")
    print(json.dumps({"bench": "open", "rounds": options.rounds, **median}))


if __name__ == "__main__":
    main()
