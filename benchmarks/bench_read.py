"""Compare random reads of utterances with np.memmap, zarr-python, tensorstore, zarrs and others.

    python benchmarks/bench_read.py [--gigabytes 2.2] [--rounds 5] [--reads 200] [--cold]

The store is synthetic: 12 layers of 768 features. The same features are written for each peer that
is installed: HDF5 (h5py, one dataset per utterance), one file per utterance (torch.load), lhotse
(`NumpyHdf5Writer`, float16). The methods alternate, round by round, on the same random utterances:
one layer, all layers, one second of one layer. `verified` is strata with `verify=True`, which reads
the whole utterance for its checksum. Each read ends in newly allocated memory, as a trainer needs
it. np.memmap copies the same bytes from shards that stay mapped, and is the baseline.

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
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from page_cache import drop_from_cache
from synthetic_store import speech_lengths, warm, write_store

import pipeline

DIM, N_LAYERS, SECOND = 768, 12, 50

Read = Callable[[int, slice, int, int], object]
"""Reads an utterance: its number, layers (as positions), first frame, one past the last."""


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gigabytes", type=float, default=2.2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--reads", type=int, default=200)
    parser.add_argument("--cold", action="store_true")
    parser.add_argument("--folder", type=Path, default=Path("/tmp/strata-bench-read"))
    options = parser.parse_args()
    shutil.rmtree(options.folder, ignore_errors=True)
    try:
        root = options.folder / "store"
        n_frames = int(options.gigabytes * 1e9 / (N_LAYERS * DIM * 2))
        write_store(root, speech_lengths(n_frames), N_LAYERS, DIM)
        store = pipeline.open_store(root)
        peers = make_peers(store, options.folder, options.cold)
        check(peers, store)
        warm(options.folder)
        results = measure(peers, store, options)
    finally:
        shutil.rmtree(options.folder, ignore_errors=True)
    bench = {"bench": "read", "cold": options.cold, "rounds": options.rounds}
    print(json.dumps(bench | results))


def make_peers(store: pipeline.FeatureStore, folder: Path, cold: bool) -> dict[str, Read]:
    """Return the readers to compare, by name: the store first, np.memmap second."""
    root = folder / "store" / "features.zarr" / "frames"
    records = [store.record(i) for i in range(len(store))]
    starts = [record["frame_start"] for record in records]
    lengths = store.frame_counts.tolist()
    capacity = store.attributes["frames_per_unit"]

    def strata(i: int, layers: slice, first: int, last: int) -> object:
        return store.read(i, store.layers[layers], first, last)

    def verified(i: int, layers: slice, first: int, last: int) -> object:
        return store.read(i, store.layers[layers], first, last, verify=True)

    def of_array(array: object) -> Read:
        def read(i: int, layers: slice, first: int, last: int) -> object:
            return torch.from_numpy(np.asarray(array[layers, starts[i] + first : starts[i] + last]))

        return read

    import zarr

    peers: dict[str, Read] = {"strata": strata, "np.memmap": Mapped(root, starts, capacity)}
    peers["verified"] = verified
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
    return peers | other_formats(store, folder, lengths)


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

    def _map(self, axis: int, slot: int) -> np.ndarray:
        raw = np.memmap(self._root / "c" / str(axis) / str(slot) / "0", np.float16, "r")
        return np.asarray(raw[: self._capacity * DIM].reshape(self._capacity, DIM))


def other_formats(
    store: pipeline.FeatureStore, folder: Path, lengths: list[int]
) -> dict[str, Read]:
    """Write the features in other formats whose libraries are installed; return their readers."""
    peers: dict[str, Read] = {}
    files = folder / "files"
    files.mkdir()
    for i in range(len(store)):
        torch.save(store.read(i), files / f"{i}.pt")

    def load(i: int, layers: slice, first: int, last: int) -> object:
        return torch.load(files / f"{i}.pt")[layers, first:last].clone()

    peers["torch.load"] = load

    def load_mapped(i: int, layers: slice, first: int, last: int) -> object:
        return torch.load(files / f"{i}.pt", mmap=True)[layers, first:last].clone()

    peers["torch.load mmap"] = load_mapped
    if find_spec("h5py"):
        import h5py

        with h5py.File(folder / "features.h5", "w") as file:
            for i in range(len(store)):
                file.create_dataset(str(i), data=store.read(i).numpy())
        opened = h5py.File(folder / "features.h5", "r")

        def hdf5(i: int, layers: slice, first: int, last: int) -> object:
            return torch.from_numpy(opened[str(i)][layers, first:last])

        peers["h5py"] = hdf5
    if find_spec("lhotse") and find_spec("h5py"):
        from lhotse import NumpyHdf5Reader, NumpyHdf5Writer

        with NumpyHdf5Writer(folder / "lhotse.h5") as writer:
            keys = [
                writer.write(str(i), store.read(i).transpose(0, 1).contiguous().numpy())
                for i in range(len(store))
            ]
        reader = NumpyHdf5Reader(writer.storage_path)

        def lhotse(i: int, layers: slice, first: int, last: int) -> object:
            frames = reader.read(keys[i], left_offset_frames=first, right_offset_frames=last)
            return torch.from_numpy(np.ascontiguousarray(frames[:, layers].transpose(1, 0, 2)))

        peers["lhotse"] = lhotse
    return peers


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
    random = np.random.default_rng(0)
    lengths = store.frame_counts
    long = np.flatnonzero(lengths > SECOND)
    n_reads = min(options.reads, len(long) // 4) if options.cold else options.reads
    chosen = random.choice(long, n_reads, replace=not options.cold).tolist()
    kinds = {
        "one layer": (slice(5, 6), [(i, 0, int(lengths[i])) for i in chosen]),
        "all layers": (slice(None), [(i, 0, int(lengths[i])) for i in chosen[: len(chosen) // 4]]),
        "one second": (
            slice(5, 6),
            [(i, s := int(random.integers(0, lengths[i] - SECOND)), s + SECOND) for i in chosen],
        ),
    }
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
                    peers["np.memmap"].maps.clear()
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


Times = dict[str, list[float]]


def show(kind: str, seconds: Times, cpu: Times, n_bytes: int, n_reads: int) -> dict:
    """Print a table; return its numbers."""
    print(f"\n{kind}, {n_reads} random reads of {n_bytes / n_reads / 1e6:.2f} MB")
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
            f"strata is {middle / ours:6.1f} × as fast"
        )
    return table


def disk_bytes() -> int:
    """Return the bytes that this process has read from disks, read-ahead included."""
    return int(re.search(r"^read_bytes: (\d+)", Path("/proc/self/io").read_text(), re.M)[1])


if __name__ == "__main__":
    main()
