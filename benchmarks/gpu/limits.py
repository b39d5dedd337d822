"""Limits of the machine: matrix products, copies from the device, and synced writes."""

from __future__ import annotations

import os
import platform
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from pipeline.encoders.kernels.cpu import CpuKernels
from pipeline.encoders.wav2vec2.bundles import ModelSpec

DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
PRODUCT_SIZE = {"cpu": 4096, "cuda": 8192}
"""Rows and columns of the matrices whose product is the peak."""
WRITE_THREADS = (1, 2, 4, 8)


def describe_machine(device: str) -> dict[str, str]:
    """Name the card, the CPU, the memory and the versions."""
    found = {}
    if device == "cuda":
        card = torch.cuda.get_device_properties(0)
        found["card"] = f"{card.name}, {card.total_memory / 1e9:.0f} GB, CUDA {torch.version.cuda}"
    cpuinfo = Path("/proc/cpuinfo")
    names = [
        line.partition(":")[2].strip()
        for line in (cpuinfo.read_text().splitlines() if cpuinfo.exists() else [])
        if line.startswith("model name")
    ]
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    found["machine"] = (
        f"{names[0] if names else platform.machine()}, {usable_cpus()} CPUs, {memory / 1e9:.0f} GB"
    )
    found["versions"] = f"Python {platform.python_version()}, torch {torch.__version__}"
    return found


def usable_cpus() -> int:
    """Return the number of CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def synchronize(device: str) -> None:
    """Wait until the device has computed everything; nothing to do on a CPU."""
    if device == "cuda":
        torch.cuda.synchronize()


def has_fast_bf16(device: str) -> bool:
    """Return whether the device multiplies bf16 in hardware; without it, it is very slow."""
    return device == "cuda" or bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def product_tflops(device: str, precision: str, n: int) -> float:
    """Return the speed of large square products, in TFLOP/s.

    On a CPU the faster of torch's own product (MKL) and oneDNN's with packed weights: which of the
    two is faster depends on the make of the CPU.

    Args:
        device: "cpu" or "cuda".
        precision: "fp16", "bf16", "fp32" or, on CUDA, "tf32".
        n: Rows and columns of the matrices.
    """
    dtype = DTYPES.get(precision, torch.float32)
    a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
    products: list[Callable[[], object]] = [lambda: a @ b]
    if device == "cpu":
        packed = CpuKernels().linear(b.float(), None, dtype)
        products.append(lambda: packed(a))
    settings = torch.backends.cuda.matmul
    before = settings.fp32_precision
    settings.fp32_precision = "tf32" if precision == "tf32" else "ieee"
    try:
        seconds = [_seconds_of(product, device) for product in products]
    finally:
        settings.fp32_precision = before
    return 2 * n**3 / min(seconds) / 1e12


def _seconds_of(product: Callable[[], object], device: str) -> float:
    """Return the seconds of a call: a first one, then as many as fit into half a second."""
    n_calls, seconds = 1, 0.0
    for _ in range(2):
        began = time.perf_counter()
        for _ in range(n_calls):
            product()
        synchronize(device)
        seconds = (time.perf_counter() - began) / n_calls
        n_calls = max(1, min(50, int(0.5 / seconds)))
    return seconds


def gflop_per_second_of_audio(spec: ModelSpec) -> float:
    """Count the arithmetic of torchaudio's model on a clip of 10 s, in GFLOP per second."""
    model = spec.build("meta")
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        model.extract_features(torch.empty(1, 10 * spec.sample_rate_hz, device="meta"))
    return counter.get_total_flops() / 10 / 1e9


def copy_gb_per_s(n_bytes: int = 1 << 30) -> float:
    """Return the speed of copies from the CUDA device into pinned memory."""
    source = torch.empty(n_bytes, dtype=torch.uint8, device="cuda")
    target = torch.empty(n_bytes, dtype=torch.uint8, pin_memory=True)
    target.copy_(source, non_blocking=True)
    synchronize("cuda")
    began = time.perf_counter()
    for _ in range(3):
        target.copy_(source, non_blocking=True)
    synchronize("cuda")
    return 3 * n_bytes / (time.perf_counter() - began) / 1e9


def write_speeds(folder: Path, file_bytes: int, n_files: int, limit_s: float) -> dict[int, float]:
    """Measure synced writes of a unit's files with 1, 2, 4 and 8 threads, in MB/s.

    The numbers of threads take turns, for at most three rounds and about `limit_s` seconds.

    Args:
        folder: Where to write; the files are deleted.
        file_bytes: Bytes of a file (a shard).
        n_files: Number of files (layers).
        limit_s: No further round begins after this time.

    Returns:
        Median of the rounds for each number of threads.
    """
    data = np.random.default_rng(0).integers(0, 256, file_bytes, np.uint8).data
    runs: dict[int, list[float]] = {n: [] for n in WRITE_THREADS}
    start_s = time.perf_counter()
    for _ in range(3):
        for n_threads, speeds in runs.items():
            scratch = Path(tempfile.mkdtemp(dir=folder))
            began = time.perf_counter()
            with ThreadPoolExecutor(n_threads) as pool:
                list(
                    pool.map(lambda i, at=scratch: _write_synced(at / str(i), data), range(n_files))
                )
            speeds.append(file_bytes * n_files / (time.perf_counter() - began) / 1e6)
            shutil.rmtree(scratch)
        if time.perf_counter() - start_s > limit_s:
            break
    return {n: statistics.median(speeds) for n, speeds in runs.items()}


def _write_synced(path: Path, data: memoryview) -> None:
    with path.open("wb", buffering=0) as file:
        written = 0
        while written < len(data):
            written += file.write(data[written:])
        os.fsync(file.fileno())
