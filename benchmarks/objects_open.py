"""`bench_objects --open-utterances`: how long a large store in a bucket takes to open."""

from __future__ import annotations

import os
import statistics
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pipeline
from benchmarks.bench_open import PER_UNIT, write_index
from pipeline.store.backend.local import LocalBackend
from pipeline.store.backend.opening import open_backend
from pipeline.store.format.layout import INDEX_CACHE
from pipeline.store.index import refresh_cache
from tests.servers.proxy import start_proxy

_PUTS = 32


def measure_open(folder: Path, uri: str, n_utterances: int, rounds: int) -> dict[str, object]:
    """Open a store of so many utterances, with a unit for each hundred.

    Args:
        folder: For its files, before they go up.
        uri: Where to put it.
        n_utterances: Its utterances.
        rounds: How often to open it.

    Returns:
        Median seconds, and the requests of each kind, which a proxy counts in one more round.
    """
    write_index(folder, n_utterances)
    local, remote = LocalBackend(folder), open_backend(uri)
    keys = [key for key in local.list() if key != INDEX_CACHE]
    with ThreadPoolExecutor(_PUTS) as pool:
        list(pool.map(lambda key: remote.put(key, [local.read(key)]), keys))
    refresh_cache(remote)
    seconds = []
    for _ in range(rounds):
        start_s = time.perf_counter()
        n_found = len(pipeline.open_store(uri))
        seconds.append(time.perf_counter() - start_s)
        assert n_found == n_utterances
    requests = count_requests(uri)
    named = ", ".join(f"{n} {kind}" for kind, n in sorted(requests.items()))
    print(
        f"open {n_utterances:,} utterances in {-(-n_utterances // PER_UNIT):,} units: "
        f"{statistics.median(seconds):.2f} s ({min(seconds):.2f} … {max(seconds):.2f}), "
        f"{sum(requests.values())} requests ({named})"
    )
    return {"open_s": statistics.median(seconds), "utterances": n_utterances, **requests}


def count_requests(uri: str) -> Counter[str]:
    """Return how many requests of each kind opening a store makes."""
    before = os.environ["AWS_ENDPOINT_URL"]
    with start_proxy(before) as proxy:
        os.environ["AWS_ENDPOINT_URL"] = proxy.url
        try:
            pipeline.open_store(uri)
        finally:
            os.environ["AWS_ENDPOINT_URL"] = before
        return proxy.counts
