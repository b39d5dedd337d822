"""Time speaker verification against the tools that are usual for it, and compare their values.

    OMP_NUM_THREADS=1 python -m benchmarks.bench_sv [--trials 37720] [--draws 100] [--rounds 5]

Random vectors of speakers, as many as VoxCeleb1 test has, one thread. Four parts, each with a peer
that takes turns with `strata sweep task=sv` in alternating rounds:

- the score of every trial: a loop of `torch.nn.CosineSimilarity`, pair by pair, as recipes for
  VoxCeleb score a list of trials;
- the equal error rate of the list: `sklearn.metrics.roc_curve`, `interp1d` and `brentq`;
- the minimum detection cost of the list: the least cost on the points of `roc_curve`;
- both of bootstrap samples of speakers: the same, sample by sample, with the weights of the trials.

Peer and Strata must give the same values, or the benchmark fails. Prints medians, ratios and one
JSON line.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from scipy.interpolate import interp1d
from scipy.optimize import brentq
from sklearn.metrics import roc_curve

from pipeline.probing.evaluation import FloatArray
from pipeline.probing.splits.trials import Trials, draw_trials
from pipeline.probing.tasks.verification import P_TARGET, Detection, cosines

METRICS = ("eer", "min_dcf")


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--speakers", type=int, default=40)
    parser.add_argument("--utterances", type=int, default=4_708)
    parser.add_argument("--dim", type=int, default=768)
    parser.add_argument("--trials", type=int, default=37_720)
    parser.add_argument("--draws", type=int, default=100, help="bootstrap samples")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    vectors, speakers = random_vectors(options.speakers, options.utterances, options.dim)
    names = [f"s{number}" for number in speakers.tolist()]
    trials = draw_trials(np.arange(options.utterances), names, options.trials, seed=0)
    scores = scores_of(vectors, trials)
    pairs, kinds = speakers[trials.pairs], trials.is_target
    random = np.random.default_rng(1)
    n = options.speakers
    draws = random.multinomial(n, np.full(n, 1 / n), size=options.draws).astype(np.float64)
    weights = [weights_of(pairs, draw) for draw in draws]

    def ours(metric: str, groups: FloatArray) -> Callable[[], FloatArray]:
        return lambda: Detection(scores, kinds, pairs, metric).scores(groups)

    def peer(metric: str, of_trials: Sequence[FloatArray | None]) -> Callable[[], FloatArray]:
        function = roc_eer if metric == "eer" else roc_min_dcf
        return lambda: np.array([function(kinds, scores, some) for some in of_trials])

    parts: dict[str, tuple[Callable[[], FloatArray], Callable[[], FloatArray], float]] = {
        "scores": (
            lambda: scores_of(vectors, trials),
            lambda: pair_by_pair(torch.from_numpy(vectors), trials),
            1e-5,  # the peer computes in float32
        ),
        **{name: (ours(name, np.ones((1, n))), peer(name, [None]), 1e-9) for name in METRICS},
        **{
            f"{name}, bootstrap": (ours(name, draws), peer(name, weights), 1e-9) for name in METRICS
        },
    }
    print(f"{len(trials):,} trials of {n} speakers, {options.draws} samples in a bootstrap")
    result: dict[str, Any] = {"bench": "sv", "trials": len(trials), "draws": options.draws}
    for name, (run, run_peer, tolerance) in parts.items():
        seconds, found = zip(*(timed([run, run_peer]) for _ in range(options.rounds)), strict=True)
        ours_s, peer_s = (statistics.median(column) for column in zip(*seconds, strict=True))
        worst = float(np.abs(found[0][0] - found[0][1]).max())
        if not worst <= tolerance:
            raise SystemExit(f"{name}: values differ by {worst:g}; expected at most {tolerance:g}")
        print(
            f"{name:20} {ours_s * 1e3:9.2f} ms, peer {peer_s * 1e3:10.2f} ms: "
            f"{peer_s / ours_s:6.1f} times as fast, values within {worst:.0e}",
            flush=True,
        )
        result[name] = {"ms": ours_s * 1e3, "peer_ms": peer_s * 1e3, "difference": worst}
    print(json.dumps(result))
    return result


def random_vectors(n_speakers: int, n: int, dim: int) -> tuple[np.ndarray, np.ndarray]:
    """Return float32 vectors [n, dim] around a centre per speaker, and the speakers, int64 [n]."""
    random = np.random.default_rng(0)
    speakers = random.integers(n_speakers, size=n)
    centres = random.standard_normal((n_speakers, dim), dtype=np.float32)
    noise = random.standard_normal((n, dim), dtype=np.float32)
    return 0.2 * centres[speakers] + noise, speakers


def scores_of(vectors: np.ndarray, trials: Trials) -> FloatArray:
    """Return the score of each trial as the task computes it: unit vectors, then products."""
    exact = vectors.astype(np.float64)
    return cosines(exact / np.linalg.norm(exact, axis=1, keepdims=True), trials)


def pair_by_pair(vectors: torch.Tensor, trials: Trials) -> FloatArray:
    """Return the score of each trial, one call per trial."""
    cosine = torch.nn.CosineSimilarity(dim=-1, eps=1e-6)
    found = [cosine(vectors[i][None], vectors[j][None])[0].item() for i, j in trials.pairs.tolist()]
    return np.array(found)


def weights_of(pairs: np.ndarray, draw: FloatArray) -> FloatArray:
    """Return the weight of each trial: how often its speaker or both of its speakers are drawn."""
    left, right = pairs.T
    return np.where(left == right, draw[left], draw[left] * draw[right])


def roc_eer(kinds: np.ndarray, scores: FloatArray, weights: FloatArray | None) -> float:
    """Return the equal error rate on the ROC curve, between its points linearly."""
    false_alarms, hits, _ = roc_curve(kinds, scores, sample_weight=weights)
    curve = interp1d(false_alarms, hits)
    return float(brentq(lambda rate: 1.0 - rate - curve(rate), 0.0, 1.0))


def roc_min_dcf(kinds: np.ndarray, scores: FloatArray, weights: FloatArray | None) -> float:
    """Return the least detection cost on the points of the ROC curve, 1 for blind decisions."""
    false_alarms, hits, _ = roc_curve(kinds, scores, sample_weight=weights)
    cost = P_TARGET * (1.0 - hits) + (1.0 - P_TARGET) * false_alarms
    return float(cost.min() / min(P_TARGET, 1.0 - P_TARGET))


def timed(functions: Sequence[Callable[[], FloatArray]]) -> tuple[list[float], list[FloatArray]]:
    """Return the seconds and the result of each function."""
    seconds, results = [], []
    for function in functions:
        start = time.perf_counter()
        results.append(function())
        seconds.append(time.perf_counter() - start)
    return seconds, results


if __name__ == "__main__":
    main()
