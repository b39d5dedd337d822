"""Compare k-means of `strata tokenize` with scikit-learn's and faiss's, on the same frames.

    python benchmarks/bench_tokenize.py STORE --layer 9 --k 100 500 [--rounds 3] [--hubert]
    python benchmarks/bench_tokenize.py --frames 100000 --dim 768 --k 500

Frames are those of a layer of a store, or else drawn from 1,000 gaussians. All methods get them as
they are stored, use as many threads, and take turns, round after round: this project;
MiniBatchKMeans of scikit-learn with its defaults, and with --hubert the settings of HuBERT's own
script (`learn_kmeans.py`: batches of 10,000, 20 initialisations, at least 100 batches); and faiss,
if it is installed, with 25 iterations over all frames. The inertia is the mean squared distance of
all frames from their nearest centroid, computed in the same way for all.

With a store it also prints the inertia of codebooks that were trained on samples of single frames
and on samples of slices of 8 frames, of equal size, over seeds; and the speed of the assignment to
centroids, as a share of that of the matrix product alone. Prints medians and one JSON line.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from functools import partial

import numpy as np
import torch
from sklearn.cluster import MiniBatchKMeans
from threadpoolctl import threadpool_limits

import pipeline
from pipeline.threads import in_order, single_threaded
from pipeline.tokens.frames import LayerSource, sample
from pipeline.tokens.kmeans import BLOCK_FRAMES, KMeansSettings, train
from pipeline.tokens.nearest import ROWS, Quantizer

try:
    import faiss
except ImportError:
    faiss = None

HUBERT = {
    "batch_size": 10_000,
    "max_iter": 100,
    "tol": 0.0,
    "max_no_improvement": 100,
    "n_init": 20,
    "reassignment_ratio": 0.0,
}
N_GAUSSIANS = 1000


class InMemory:
    """Frames in memory, in random order."""

    def __init__(self, values: np.ndarray) -> None:
        self.values = torch.from_numpy(values)

    def __len__(self) -> int:
        return len(self.values)

    def read(self, start: int, stop: int) -> torch.Tensor:
        """Return frames [start, stop)."""
        return self.values[start:stop]


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("store", nargs="?")
    parser.add_argument("--layer", type=int, default=9)
    parser.add_argument("--k", type=int, nargs="+", default=[100, 500])
    parser.add_argument("--frames", type=int, default=100_000, help="without a store")
    parser.add_argument("--dim", type=int, default=768, help="without a store")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--hubert", action="store_true", help="also with HuBERT's settings")
    options = parser.parse_args()
    values = frames_of(options) if options.store else gaussians(options.frames, options.dim)
    values = np.random.default_rng(0).permutation(values)
    print(f"{len(values):,} frames of {values.shape[1]} features, {options.threads} threads")
    results: dict[str, object] = {}
    for k in options.k:
        found = compare(values, k, options)
        if options.store:
            found["sampling"] = sampling(options, values, k)
        found["assignment"] = assignment(values, k, options.threads)
        results[str(k)] = found
    shape = {"frames": len(values), "dim": values.shape[1], "threads": options.threads}
    print(json.dumps({"bench": "tokenize", **shape, "rounds": options.rounds, "k": results}))


def frames_of(options: argparse.Namespace) -> np.ndarray:
    """Return all frames of a layer, as they are read."""
    store = pipeline.open_store(options.store)
    return np.concatenate(
        [item[0].numpy() for item in store.read_many(slice(None), [options.layer])]
    )


def gaussians(n_frames: int, dim: int) -> np.ndarray:
    """Return frames around as many centres as there are gaussians, float16."""
    random = np.random.default_rng(1)
    centres = random.normal(0, 0.5, (N_GAUSSIANS, dim)).astype(np.float32)
    noise = random.standard_normal((n_frames, dim), np.float32)
    return (centres[random.integers(N_GAUSSIANS, size=n_frames)] + noise).astype(np.float16)


def compare(values: np.ndarray, k: int, options: argparse.Namespace) -> dict:
    """Train with each method in turn; print and return seconds and inertias."""
    methods = {
        "strata": partial(ours, values, k, options.threads),
        "MiniBatchKMeans": partial(minibatch, values, k, options.threads, {}),
    }
    if options.hubert:
        methods["MiniBatchKMeans, HuBERT's settings"] = partial(
            minibatch, values, k, options.threads, HUBERT
        )
    if faiss is not None:
        methods["faiss"] = partial(by_faiss, values, k, options.threads)
    seconds: dict[str, list[float]] = {name: [] for name in methods}
    inertias: dict[str, list[float]] = {name: [] for name in methods}
    for seed in range(options.rounds):
        for name, method in methods.items():
            start_s = time.perf_counter()
            centroids = method(seed)
            seconds[name].append(time.perf_counter() - start_s)
            inertias[name].append(inertia(values, centroids))
    found = {}
    for name in methods:
        found[name] = {
            "seconds": statistics.median(seconds[name]),
            "inertia": statistics.median(inertias[name]),
        }
        print(
            f"k={k:5} {name:36} {found[name]['seconds']:8.2f} s ({min(seconds[name]):.2f} to "
            f"{max(seconds[name]):.2f})  inertia {found[name]['inertia']:.5g}  "
            f"{found[name]['inertia'] / found['strata']['inertia'] - 1:+.2%}"
        )
    return found


def ours(values: np.ndarray, k: int, n_threads: int, seed: int) -> np.ndarray:
    """Train with this project."""
    return train(InMemory(values), KMeansSettings(k, seed), n_threads=n_threads).centroids


def minibatch(values: np.ndarray, k: int, n_threads: int, settings: dict, seed: int) -> np.ndarray:
    """Train with scikit-learn, which takes float32."""
    with threadpool_limits(n_threads):
        model = MiniBatchKMeans(k, random_state=seed, **({"n_init": "auto"} | settings))
        return model.fit(values.astype(np.float32)).cluster_centers_.astype(np.float32)


def by_faiss(values: np.ndarray, k: int, n_threads: int, seed: int) -> np.ndarray:
    """Train with faiss, on all frames."""
    faiss.omp_set_num_threads(n_threads)
    model = faiss.Kmeans(
        values.shape[1], k, niter=25, seed=seed + 1, max_points_per_centroid=len(values)
    )
    model.train(values.astype(np.float32))
    return model.centroids


def inertia(values: np.ndarray, centroids: np.ndarray) -> float:
    """Return the mean squared distance of all frames from their nearest centroid."""
    quantizer = Quantizer(torch.from_numpy(np.ascontiguousarray(centroids)))
    return quantizer.assign(torch.from_numpy(values))[1] / len(values)


def sampling(options: argparse.Namespace, values: np.ndarray, k: int) -> dict:
    """Train on samples of single frames and of slices; compare inertias over all frames."""
    source = LayerSource.of(pipeline.open_store(options.store), options.layer, None)
    n_sample = len(values) // 4
    found: dict[str, list[float]] = {"frames": [], "slices": []}
    for seed in range(options.rounds):
        rows = np.random.default_rng(seed).choice(len(values), n_sample, replace=False)
        slices = sample(source, n_sample, seed, options.threads)
        for name, frames in (("frames", InMemory(values[rows])), ("slices", slices)):
            result = train(frames, KMeansSettings(k, seed), n_threads=options.threads)
            found[name].append(inertia(values, result.centroids))
    one, other = (statistics.mean(found[name]) for name in ("frames", "slices"))
    print(
        f"k={k:5} trained on {n_sample:,} frames: inertia {one:.5g} (single frames), {other:.5g} "
        f"(slices of 8, {other / one - 1:+.2%})"
    )
    return {"n_sample": n_sample, **found}


def assignment(values: np.ndarray, k: int, n_threads: int) -> dict:
    """Time the assignment of all frames, and the matrix product that it needs alone."""
    centroids = torch.from_numpy(values[:k].astype(np.float32))
    quantizer = Quantizer(centroids)
    frames = torch.from_numpy(values)
    block = frames[:ROWS].float()

    def product(n_rows: int) -> None:
        for _ in range(n_rows // ROWS):
            torch.mm(block, centroids.T)

    starts = range(0, len(values), BLOCK_FRAMES)
    work = {
        "assignment": [partial(quantizer.assign, frames[at : at + BLOCK_FRAMES]) for at in starts],
        "product": [partial(product, BLOCK_FRAMES) for _ in starts],
    }
    speeds: dict[str, list[float]] = {name: [] for name in work}
    with single_threaded(n_threads) as pool:
        for _ in range(3):
            for name, calls in work.items():
                start_s = time.perf_counter()
                list(in_order(pool, calls, n_threads + 1))
                speeds[name].append(len(values) / (time.perf_counter() - start_s))
    fast, peak = (statistics.median(speeds[name]) for name in ("assignment", "product"))
    flops = 2 * k * values.shape[1] * fast / 1e9
    print(
        f"k={k:5} assignment {fast:,.0f} frames/s, {flops:.0f} GFLOPS, {fast / peak:.0%} of the "
        "matrix product alone"
    )
    return {"frames_per_s": fast, "share_of_product": fast / peak}


if __name__ == "__main__":
    main()
