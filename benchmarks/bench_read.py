"""Compare random reads of utterances with np.memmap, zarr-python, tensorstore, zarrs and others.

    python benchmarks/bench_read.py [--gigabytes 2.2] [--rounds 5] [--reads 200] [--cold]
    python benchmarks/bench_read.py --after-epoch [--gigabytes 2.2] [--rounds 5] [--reads 200]

The store is synthetic: 12 layers of 768 features. The same features are written for each peer of
`read_peers.py` that is installed. The methods alternate, round by round, on the same random
utterances: one layer, all layers, one second of one layer, one frame. `verified` is strata with
`verify=True`, which reads the whole utterance for its checksum. Each read ends in newly allocated
memory, as a trainer needs it. np.memmap copies the same bytes from shards that stay mapped, and is
the baseline.

`--after-epoch` compares reads while the page cache holds the store as it was written, and after the
store was dropped from it and read by a shuffled epoch of all layers. The baseline is np.memmap over
a copy of the shards, which stays in the page cache as it was written.

`--cold` drops the files from the page cache before each pass, maps the shards again, and reads a
quarter of the utterances once. It compares only the store, np.memmap and zarr-python, and prints
the share of the bytes that came from the disk. Prints medians, spread and ratios, in wall-clock and
in CPU time (more reliable on a busy machine), and one JSON line.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import statistics
import time
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from page_cache import drop_from_cache
from read_peers import DIM, N_LAYERS, Read, other_formats
from synthetic_store import speech_lengths, warm, write_store

import pipeline

SECOND = 50


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gigabytes", type=float, default=2.2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--reads", type=int, default=200)
    parser.add_argument("--cold", action="store_true")
    parser.add_argument("--after-epoch", action="store_true")
    parser.add_argument("--folder", type=Path, default=Path("/tmp/strata-bench-read"))
    options = parser.parse_args()
    torch.set_num_threads(1)  # its other threads spin for a while after each operation of a peer
    shutil.rmtree(options.folder, ignore_errors=True)
    try:
        root = options.folder / "store"
        n_frames = int(options.gigabytes * 1e9 / (N_LAYERS * DIM * 2))
        write_store(root, speech_lengths(n_frames), N_LAYERS, DIM)
        store = pipeline.open_store(root)
        if options.after_epoch:
            results = measure_after_epoch(store, options)
        else:
            peers = make_peers(store, options.folder, options.cold)
            check(peers, store)
            warm(options.folder)
            results = measure(peers, store, options)
    finally:
        shutil.rmtree(options.folder, ignore_errors=True)
    kind = "after_epoch" if options.after_epoch else "cold" if options.cold else "warm"
    bench = {"bench": "read", "kind": kind, "rounds": options.rounds}
    print(json.dumps(bench | results))


def make_peers(store: pipeline.FeatureStore, folder: Path, cold: bool) -> dict[str, Read]:
    """Return the readers to compare, by name: the store first, np.memmap second."""
    root = folder / "store" / "features.zarr" / "frames"
    records = [store.record(i) for i in range(len(store))]
    starts = [record["frame_start"] for record in records]
    capacity = store.attributes["frames_per_unit"]

    def of_array(array: object) -> Read:
        def read(i: int, layers: slice, first: int, last: int) -> object:
            return torch.from_numpy(np.asarray(array[layers, starts[i] + first : starts[i] + last]))

        return read

    import zarr

    location = folder / "store"
    peers: dict[str, Read] = {"strata": Stored(location)}
    peers["np.memmap"] = Mapped(root, starts, capacity)
    peers["verified"] = Stored(location, verify=True)
    peers["zarr-python"] = of_array(zarr.open_array(root, mode="r"))
    if cold:
        return peers
    if find_spec("zarrs"):

        def rust(i: int, layers: slice, first: int, last: int) -> object:
            with zarr.config.set({"codec_pipeline.path": "zarrs.ZarrsCodecPipeline"}):
                array = (
                    zarr.open_array(root, mode="r") if "zarrs" not in opened else opened["zarrs"]
                )
                opened["zarrs"] = array
                return torch.from_numpy(
                    np.asarray(array[layers, starts[i] + first : starts[i] + last])
                )

        opened: dict[str, object] = {}
        peers["zarrs"] = rust
    if find_spec("tensorstore"):
        import tensorstore

        spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(root)}}
        array = tensorstore.open(spec, open=True, read=True).result()

        def google(i: int, layers: slice, first: int, last: int) -> object:
            wanted = array[layers, starts[i] + first : starts[i] + last]
            return torch.from_numpy(wanted.read().result())

        peers["tensorstore"] = google
    return peers | other_formats(store, folder, capacity)


class Stored:
    """Reader of the store."""

    def __init__(self, location: Path, verify: bool = False) -> None:
        self._location, self._verify = location, verify
        self._open()

    def __call__(self, i: int, layers: slice, first: int, last: int) -> object:
        """Read an utterance; see `Read`."""
        return self._store.read(i, self._store.layers[layers], first, last)

    def _open(self) -> None:
        self._store = pipeline.open_store(self._location, verify=self._verify)

    def reopen(self) -> None:
        """Close the files and open the store again: what is mapped stays in the page cache."""
        self._store.close()
        self._open()


class Mapped:
    """Reader that copies from shards that stay mapped."""

    def __init__(self, root: Path, starts: list[int], capacity: int) -> None:
        self._root, self._starts, self._capacity = root, starts, capacity
        self.maps: dict[tuple[int, int], np.ndarray] = {}

    def __call__(self, i: int, layers: slice, first: int, last: int) -> object:
        """Read an utterance; see `Read`."""
        slot, at = divmod(self._starts[i], self._capacity)
        axes = range(N_LAYERS)[layers]
        out = np.empty((len(axes), last - first, DIM), np.float16)
        for k, axis in enumerate(axes):
            if (axis, slot) not in self.maps:
                self.maps[axis, slot] = self._map(axis, slot)
            out[k] = self.maps[axis, slot][at + first : at + last]
        return torch.from_numpy(out)

    def reopen(self) -> None:
        """Drop the maps."""
        self.maps.clear()

    def _map(self, axis: int, slot: int) -> np.ndarray:
        raw = np.memmap(self._root / "c" / str(axis) / str(slot) / "0", np.float16, "r")
        return np.asarray(raw[: self._capacity * DIM].reshape(self._capacity, DIM))


def check(peers: dict[str, Read], store: pipeline.FeatureStore) -> None:
    """Check that all readers return the same values."""
    for name, read in peers.items():
        for layers in (slice(5, 6), slice(None)):
            wanted = store.read(3, store.layers[layers], 10, 40)
            if not torch.equal(read(3, layers, 10, 40), wanted):
                raise AssertionError(f"{name} returns other values")


def measure(
    peers: dict[str, Read], store: pipeline.FeatureStore, options: argparse.Namespace
) -> dict:
    """Measure each reader for each kind of read, alternating."""
    kinds = kinds_of_reads(store, options.reads, repeated=not options.cold)
    results = {}
    for kind, (layers, reads) in kinds.items():
        n_layers = len(range(N_LAYERS)[layers])
        n_bytes = sum(last - first for _, first, last in reads) * n_layers * DIM * 2
        for read in peers.values():  # warm: maps, caches, allocators
            for i, first, last in reads[: len(reads) // 4]:
                read(i, layers, first, last)
        seconds: dict[str, list[float]] = {name: [] for name in peers}
        cpu: dict[str, list[float]] = {name: [] for name in peers}
        from_disk: dict[str, list[float]] = {name: [] for name in peers}
        for _ in range(options.rounds):
            for name, read in peers.items():
                if options.cold:
                    store.close()
                    for other in peers.values():
                        if isinstance(other, Stored | Mapped):
                            other.reopen()
                    drop_from_cache(options.folder.rglob("*"))
                before, busy, began = disk_bytes(), time.process_time(), time.perf_counter()
                for i, first, last in reads:
                    read(i, layers, first, last)
                seconds[name].append(time.perf_counter() - began)
                cpu[name].append(time.process_time() - busy)
                from_disk[name].append((disk_bytes() - before) / n_bytes)
        results[kind] = show(kind, seconds, cpu, n_bytes, len(reads))
        if options.cold:
            for name, shares in from_disk.items():
                results[kind][name]["from_disk"] = statistics.median(shares)
                print(
                    f"  {name:16s} {statistics.median(shares):.0%} of the bytes came from the disk"
                )
    return results


Kind = tuple[slice, list[tuple[int, int, int]]]
"""Layers, and the reads: utterance, first frame, one past the last."""


def kinds_of_reads(
    store: pipeline.FeatureStore, n_reads: int, repeated: bool = True
) -> dict[str, Kind]:
    """Return the kinds of reads to compare, of the same random utterances."""
    random = np.random.default_rng(0)
    lengths = store.frame_counts
    long = np.flatnonzero(lengths > SECOND)
    n_reads = n_reads if repeated else min(n_reads, len(long) // 4)
    chosen = random.choice(long, n_reads, replace=repeated).tolist()
    starts = [int(random.integers(0, lengths[i] - SECOND)) for i in chosen]
    parts = list(zip(chosen, starts, strict=True))
    return {
        "one layer": (slice(5, 6), [(i, 0, int(lengths[i])) for i in chosen]),
        "all layers": (slice(None), [(i, 0, int(lengths[i])) for i in chosen[: n_reads // 4]]),
        "one second": (slice(5, 6), [(i, first, first + SECOND) for i, first in parts]),
        "one frame": (slice(5, 6), [(i, first, first + 1) for i, first in parts]),
    }


def measure_after_epoch(store: pipeline.FeatureStore, options: argparse.Namespace) -> dict:
    """Measure reads before and after a cold shuffled epoch; see the head of this file."""
    root, copy = options.folder / "store", options.folder / "copy"
    shutil.copytree(root / "features.zarr" / "frames", copy)
    warm(copy)
    starts = [store.record(i)["frame_start"] for i in range(len(store))]
    baseline = Mapped(copy, starts, store.attributes["frames_per_unit"])
    kinds = kinds_of_reads(store, options.reads)
    written = shares(Stored(root), baseline, kinds, options.rounds)
    store.close()
    drop_from_cache(root.rglob("*"))
    store = pipeline.open_store(root)
    began = time.perf_counter()
    for _ in pipeline.make_loader(pipeline.FeatureDataset(store), max_frames_per_batch=16_000):
        pass
    seconds = time.perf_counter() - began
    n_bytes = int(store.frame_counts.sum()) * N_LAYERS * DIM * 2
    print(f"cold shuffled epoch of all layers: {n_bytes / seconds / 1e6:,.0f} MB/s")
    after = shares(Stored(root), baseline, kinds, options.rounds)
    print(f"{'':12s}{'as written':>12s}{'after epoch':>12s}   of np.memmap as written")
    for kind in kinds:
        print(f"{kind:12s}{written[kind]:12.2f}{after[kind]:12.2f}")
    return {"as_written": written, "after_epoch": after, "epoch_mb_per_s": n_bytes / seconds / 1e6}


def shares(
    strata: Stored, baseline: Mapped, kinds: dict[str, Kind], rounds: int
) -> dict[str, float]:
    """Return the speed of the store's reads as a share of the baseline's, for each kind."""

    def seconds(read: Read, layers: slice, reads: list[tuple[int, int, int]]) -> float:
        began = time.perf_counter()
        for i, first, last in reads:
            read(i, layers, first, last)
        return time.perf_counter() - began

    found = {}
    for kind, (layers, reads) in kinds.items():
        for read in (strata, baseline):
            seconds(read, layers, reads)
        found[kind] = statistics.median(
            seconds(baseline, layers, reads) / seconds(strata, layers, reads) for _ in range(rounds)
        )
    return found


Times = dict[str, list[float]]


def show(kind: str, seconds: Times, cpu: Times, n_bytes: int, n_reads: int) -> dict:
    """Print a table; return its numbers."""
    print(f"\n{kind}, {n_reads} random reads of {n_bytes / n_reads / 1e6:.3f} MB")
    bare = seconds["np.memmap"]
    ours = statistics.median(seconds["strata"])
    table = {}
    for name, times in seconds.items():
        middle = statistics.median(times)
        ratios = [a / b for a, b in zip(bare, times, strict=True)]
        in_cpu_time = statistics.median(cpu["np.memmap"]) / statistics.median(cpu[name])
        table[name] = {
            "mb_per_s": n_bytes / middle / 1e6,
            "of_memmap": statistics.median(ratios),
            "of_memmap_in_cpu_time": in_cpu_time,
            "strata_is_faster_by": middle / ours,
            "us_per_read": middle / n_reads * 1e6,
        }
        print(
            f"  {name:16s} {n_bytes / middle / 1e6:7,.0f} MB/s "
            f"({n_bytes / max(times) / 1e6:,.0f} … {n_bytes / min(times) / 1e6:,.0f})  "
            f"{statistics.median(ratios):5.2f} of memmap "
            f"({min(ratios):.2f} … {max(ratios):.2f}; CPU {in_cpu_time:.2f})   "
            f"{middle / n_reads * 1e6:8,.1f} µs   strata is {middle / ours:6.1f} × as fast"
        )
    return table


def disk_bytes() -> int:
    """Return the bytes that this process has read from disks, read-ahead included."""
    return int(re.search(r"^read_bytes: (\d+)", Path("/proc/self/io").read_text(), re.M)[1])


if __name__ == "__main__":
    main()
