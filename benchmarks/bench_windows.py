"""Measure the encoder on one window, for windows of several lengths.

    python benchmarks/bench_windows.py [--models hubert_base wavlm_base_plus]
        [--seconds 10 30 45 60 120] [--precision fp32] [--threads 2] [--rounds 3]

Attention takes as many operations as the window has pairs of frames, so long windows are slower.
Prints times real time, medians of rounds, and the peak memory of the process, libraries and model
included; each in a process of its own. Noise, random weights, all layers.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import statistics
import time
import warnings

import torch
from gpu.limits import usable_cpus

from pipeline.encoders.loading import load_encoder


def measure(
    model: str, window_s: float, precision: str, threads: int, rounds: int
) -> tuple[float, float]:
    """Return times real time, and the peak memory in GB."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(threads)
    encoder = load_encoder(
        model, weights="random", precision=precision, max_window_s=window_s, context_s=0
    )
    rate_hz = encoder.geometry.sample_rate_hz
    waveform = torch.randn(round(window_s * rate_hz), generator=torch.Generator().manual_seed(0))

    def encode(samples: torch.Tensor) -> float:
        began = time.perf_counter()
        for features in encoder.encode_batch([samples]):
            del features
        return time.perf_counter() - began

    encode(waveform[:rate_hz])
    speeds = [window_s / encode(waveform) for _ in range(rounds)]
    peak_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return statistics.median(speeds), peak_kb * 1024 / 1e9


def main() -> None:
    """Print two rows for each model."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=["hubert_base", "wavlm_base_plus"])
    parser.add_argument("--seconds", nargs="+", type=float, default=[10, 30, 45, 60, 120])
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--threads", type=int, default=usable_cpus())
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    shared = arguments.precision, arguments.threads, arguments.rounds
    print("| window s | " + " | ".join(f"{s:g}" for s in arguments.seconds) + " |")
    for model in arguments.models:
        found = []
        for window_s in arguments.seconds:
            with multiprocessing.get_context("spawn").Pool(1) as process:
                found.append(process.apply(measure, (model, window_s, *shared)))
        for name, row in zip(("× real time", "peak GB"), zip(*found, strict=True), strict=True):
            print(f"| {model}, {name} | " + " | ".join(f"{value:.1f}" for value in row) + " |")


if __name__ == "__main__":
    main()
