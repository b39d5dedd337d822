"""Compare the attention in C with torch's on a CPU, with the sizes of a model.

    python benchmarks/bench_attention.py [--model hubert_base] [--dtypes fp32 bf16]
        [--seconds 2 5 10 20 30] [--threads 2] [--rounds 9]

For batches of clips of one length, about 20 s together: speed of both, as a share of the machine's
peak (the faster of MKL and oneDNN on 4096³, in the same run), and the ratio. A model of WavLM's
kind has its position bias with a gate for each query. Medians of alternating rounds; random inputs.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from unittest import mock

import torch
from bench_products import compare
from gpu.limits import product_tflops, usable_cpus
from torch import Tensor

from pipeline.encoders.kernels.base import Pack
from pipeline.encoders.kernels.cpu import CpuKernels
from pipeline.encoders.kernels.native import attention as native
from pipeline.encoders.settings import PRECISIONS
from pipeline.encoders.wav2vec2.bundles import find_model

FRAMES_PER_S, BATCH_S = 50, 20


def inputs(n_frames: int, n_heads: int, dtype: torch.dtype, is_gated: bool) -> tuple[object, ...]:
    """Arguments of `attention` for a batch of clips of `n_frames`."""
    random = torch.Generator().manual_seed(0)
    pack = Pack([n_frames] * max(1, BATCH_S * FRAMES_PER_S // n_frames), "cpu", 32)
    width = 3 * n_heads * native.HEAD_DIM
    projected = torch.randn(pack.n_rows, width, generator=random).to(dtype)
    if not is_gated:
        return projected, pack, n_heads
    by_distance = torch.randn(n_heads, 2 * n_frames - 1, generator=random)
    table = by_distance.unfold(1, n_frames, 1).flip(1).contiguous()
    gates = 2 + torch.randn(pack.n_rows, n_heads, generator=random)

    def bias(n: int) -> Tensor:
        return table[:, :n, :n]

    return projected, pack, n_heads, gates, bias


def ways(arguments: tuple[object, ...]) -> dict[str, Callable[[], object]]:
    """Return calls that attend in C and by torch."""
    kernels = CpuKernels()

    def with_torch() -> object:
        with mock.patch.object(native, "is_available", return_value=False):
            return kernels.attention(*arguments)

    return {"in C": lambda: kernels.attention(*arguments), "torch": with_torch}


def main() -> None:
    """Print a table for each dtype."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="hubert_base", help="as in `strata models`")
    parser.add_argument("--dtypes", nargs="+", choices=("fp32", "bf16"), default=["fp32", "bf16"])
    parser.add_argument("--seconds", nargs="+", type=float, default=[2, 5, 10, 20, 30])
    parser.add_argument("--threads", type=int, default=usable_cpus())
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--product-size", type=int, default=4096, help="of the peak")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    spec = find_model(arguments.model)
    n_heads = spec.params["encoder_num_heads"]
    for name in arguments.dtypes:
        dtype = PRECISIONS[name]
        if not native.is_available(dtype, spec.dim // n_heads):
            print(f"{arguments.model} in {name}: there is no attention in C on this machine")
            continue
        with torch.inference_mode():
            peak = 1e12 * product_tflops("cpu", name, arguments.product_size)
            print(f"{arguments.model}, {name}, {arguments.threads} threads, ", end="")
            print(f"peak {peak / 1e9:.0f} GFLOP/s")
            print(f"{'clips of, s':>12}{'in C':>8}{'torch':>8}{'ratio':>8}")
            for clip_s in arguments.seconds:
                n_frames = round(clip_s * FRAMES_PER_S)
                given = inputs(n_frames, n_heads, dtype, spec.kind == "wavlm")
                n_clips = max(1, BATCH_S * FRAMES_PER_S // n_frames)
                shares = [
                    4 * n_clips * n_frames**2 * spec.dim / time_s / peak
                    for time_s in compare(ways(given), arguments.rounds).values()
                ]
                print(f"{clip_s:12g}{shares[0]:8.2f}{shares[1]:8.2f}{shares[0] / shares[1]:8.2f}")


if __name__ == "__main__":
    main()
