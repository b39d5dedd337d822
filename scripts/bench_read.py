"""Random reads of utterances against np.memmap, zarr-python, tensorstore, zarrs and others.

    python scripts/bench_read.py [--gigabytes 2.2] [--rounds 5] [--reads 200] [--cold]

Writes a synthetic store of 12 layers of 768 features, and the same features for each peer that is
installed: HDF5 (h5py, one dataset per utterance), one file per utterance (torch.load), lhotse
(`NumpyHdf5Writer`, float16). Then alternates them, round by round, on the same random utterances:
one layer, all layers, one second of one layer. Each read ends in memory of its own, as a trainer
needs it; np.memmap copies the same bytes from shards that stay mapped, and is what the others are
divided by. `--cold` drops the page cache before each pass, where the system permits it. Prints
medians, spread and ratios, and one JSON line.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from synthetic_store import speech_lengths, warm, write_store

import pipeline

DIM, N_LAYERS, SECOND = 768, 12, 50

Read = Callable[[int, slice, int, int], object]
"""Reads an utterance: its number, layers (as positions), first frame, one past the last."""


def main() -> None:
    """Runs the benchmark."""
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
        peers = make_peers(store, options.folder)
        check(peers, store)
        warm(options.folder)
        results = measure(peers, store, options)
    finally:
        shutil.rmtree(options.folder, ignore_errors=True)
    print(json.dumps({"bench": "read", "rounds": options.rounds, **results}))


def make_peers(store: pipeline.FeatureStore, folder: Path) -> dict[str, Read]:
    """All that can be read from, by name; the store first, np.memmap second."""
    root = folder / "store" / "features.zarr" / "frames"
    records = [store.record(i) for i in range(len(store))]
    starts = [record["frame_start"] for record in records]
    lengths = store.frame_counts.tolist()
    capacity = store.attributes["frames_per_unit"]

    def strata(i: int, layers: slice, first: int, last: int) -> object:
        return store.read(i, store.layers[layers], first, last)

    maps = {}

    def memmap(i: int, layers: slice, first: int, last: int) -> object:
        slot, at = divmod(starts[i], capacity)
        axes = range(N_LAYERS)[layers]
        out = np.empty((len(axes), last - first, DIM), np.float16)
        for k, axis in enumerate(axes):
            if (axis, slot) not in maps:
                raw = np.memmap(root / "c" / str(axis) / str(slot) / "0", np.float16, "r")
                maps[axis, slot] = np.asarray(raw[: capacity * DIM].reshape(capacity, DIM))
            out[k] = maps[axis, slot][at + first : at + last]
        return torch.from_numpy(out)

    def of_array(array: object) -> Read:
        def read(i: int, layers: slice, first: int, last: int) -> object:
            return torch.from_numpy(np.asarray(array[layers, starts[i] + first : starts[i] + last]))

        return read

    import zarr

    peers: dict[str, Read] = {"strata": strata, "np.memmap": memmap}
    peers["zarr-python"] = of_array(zarr.open_array(root, mode="r"))
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


def other_formats(
    store: pipeline.FeatureStore, folder: Path, lengths: list[int]
) -> dict[str, Read]:
    """The same features in other formats, as far as their libraries are installed."""
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
    """Makes sure that all read the same."""
    for name, read in peers.items():
        for layers in (slice(5, 6), slice(None)):
            wanted = store.read(3, store.layers[layers], 10, 40)
            if not torch.equal(read(3, layers, 10, 40), wanted):
                raise AssertionError(f"{name} reads something else")


def measure(
    peers: dict[str, Read], store: pipeline.FeatureStore, options: argparse.Namespace
) -> dict:
    """Rates of each peer for each kind of read, alternating."""
    random = np.random.default_rng(0)
    lengths = store.frame_counts
    long = np.flatnonzero(lengths > SECOND)
    chosen = long[random.integers(0, len(long), options.reads)].tolist()
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
        for _ in range(options.rounds):
            for name, read in peers.items():
                if options.cold:
                    drop_caches()
                began = time.perf_counter()
                for i, first, last in reads:
                    read(i, layers, first, last)
                seconds[name].append(time.perf_counter() - began)
        results[kind] = show(kind, seconds, n_bytes, len(reads))
    return results


def show(kind: str, seconds: dict[str, list[float]], n_bytes: int, n_reads: int) -> dict:
    """Prints a table; returns its numbers."""
    print(f"\n{kind}, {n_reads} random reads of {n_bytes / n_reads / 1e6:.2f} MB")
    bare = seconds["np.memmap"]
    ours = statistics.median(seconds["strata"])
    table = {}
    for name, times in seconds.items():
        middle = statistics.median(times)
        ratios = [a / b for a, b in zip(bare, times, strict=True)]
        table[name] = {
            "mb_per_s": n_bytes / middle / 1e6,
            "of_memmap": statistics.median(ratios),
            "strata_is_faster_by": middle / ours,
            "us_per_read": middle / n_reads * 1e6,
        }
        print(
            f"  {name:16s} {n_bytes / middle / 1e6:7,.0f} MB/s "
            f"({n_bytes / max(times) / 1e6:,.0f} … {n_bytes / min(times) / 1e6:,.0f})  "
            f"{statistics.median(ratios):5.2f} of memmap "
            f"({min(ratios):.2f} … {max(ratios):.2f})   strata is {middle / ours:6.1f} × as fast"
        )
    return table


def drop_caches() -> None:
    """Empties the page cache; ends the program where that is not permitted."""
    os.sync()
    try:
        Path("/proc/sys/vm/drop_caches").write_text("1")
    except OSError as error:
        sys.exit(f"the page cache cannot be dropped here ({error}); run without --cold")


if __name__ == "__main__":
    main()
