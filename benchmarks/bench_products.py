"""Compare the two implementations of a linear map on CPUs, with the sizes of a model.

    python benchmarks/bench_products.py [--rows 1000] [--threads 1] [--rounds 5] [--dtype fp32]

For each product of HuBERT base: its speed by oneDNN with packed weights and by `F.linear`, with the
GELU that follows it, as a share of the machine's peak: the faster of the two on 4096³, in the same
run. Medians of alternating rounds. `is_packing_faster` in `pipeline/encoders/kernels/cpu.py`
chooses between them by the kind of CPU.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch

from pipeline.encoders.kernels.cpu import PackedLinear, can_pack
from pipeline.encoders.kernels.reference import PlainLinear
from pipeline.encoders.settings import PRECISIONS

CHUNK_ROWS = 128  # of the front end
PRODUCTS = [  # rows per frame, in, out, with GELU; rows None: those of the batch
    ("convolution 1", 32, 1024, 512, False),
    ("convolution 1, last tap", 32, 512, 512, True),
    ("convolution 4", 4, 1024, 512, False),
    ("convolution 6", 1, 1024, 512, True),
    ("query, key, value", None, 768, 2304, False),
    ("attention output", None, 768, 768, False),
    ("inner", None, 768, 3072, True),
    ("outer", None, 3072, 768, False),
]


def seconds(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def compare(calls: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median seconds of each call, in alternating rounds after a first one."""
    runs = [{name: seconds(call) for name, call in calls.items()} for _ in range(rounds + 1)][1:]
    return {name: statistics.median(run[name] for run in runs) for name in calls}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1000, help="frames of a batch")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--dtype", default="fp32", choices=("fp32", "bf16"))
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    dtype = PRECISIONS[arguments.dtype]
    kinds = {"oneDNN": PackedLinear, "F.linear": PlainLinear}
    if not can_pack(torch.device("cpu"), dtype):
        raise SystemExit(f"oneDNN has no fused products in {arguments.dtype} on this machine")

    def timed(rows: int, n_in: int, n_out: int, gelu: bool) -> dict[str, float]:
        x, weight, bias = (
            torch.randn(rows, n_in).to(dtype),
            torch.randn(n_out, n_in),
            torch.ones(n_out),
        )
        maps = {name: kind(weight, bias, dtype) for name, kind in kinds.items()}
        calls = {name: lambda m=m: m(x, gelu=gelu) for name, m in maps.items()}
        return compare(calls, arguments.rounds)

    with torch.inference_mode():
        peak = 2 * 4096**3 / min(timed(4096, 4096, 4096, False).values())
        print(f"{torch.backends.cpu.get_cpu_capability()}, {arguments.threads} threads, ", end="")
        print(f"{arguments.dtype}, peak {peak / 1e9:.0f} GFLOP/s")
        print(f"{'product':26}" + "".join(f"{name:>10}" for name in kinds))
        for name, per_frame, n_in, n_out, gelu in PRODUCTS:
            rows = per_frame * CHUNK_ROWS if per_frame else arguments.rows
            found = timed(rows, n_in, n_out, gelu)
            shares = (2 * rows * n_in * n_out / time_s / peak for time_s in found.values())
            print(
                f"{name + (' + GELU' if gelu else ''):26}" + "".join(f"{s:10.2f}" for s in shares)
            )


if __name__ == "__main__":
    main()
