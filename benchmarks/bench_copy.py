"""Compare copies of a store, as it is and in other forms, with `cp` of the same files.

    python benchmarks/bench_copy.py [--frames 239616] [--rounds 5] [--folder DIR]

A store of 12 layers × frames × 768 float16 is copied many times; the methods take turns, in another
order in each round, and each finds the source in memory and the disk idle:

cp             `cp -r`, which leaves the bytes in memory
cp, synced     the same, then `sync` of every file
copy           `strata copy`: each piece is compared with its checksum while it is read, every file
               is synced, and a unit of the copy is read back
copy float32 … the same in another dtype; `layer 6`: one layer; `pooled`: without frames

MB/s are of the bytes of the source that are copied, so those of one layer are of a twelfth.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from synthetic_store import speech_lengths, warm, write_store

from pipeline.transforms.copy import CopySettings, copy_stores

N_LAYERS = 12


def cp(source: Path, out: Path, synced: bool) -> None:
    subprocess.run(["cp", "-r", str(source), str(out)], check=True)
    if synced:
        files = [str(path) for path in out.rglob("*") if path.is_file()]
        subprocess.run(["sync", *files], check=True)


def copy(source: Path, out: Path, settings: CopySettings) -> None:
    copy_stores(source, out, settings)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--frames", type=int, default=239_616)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="disk to write to")
    arguments = parser.parse_args()
    calls: dict[str, tuple[Callable[[Path, Path], None], float]] = {
        "cp": (partial(cp, synced=False), 1.0),
        "cp, synced": (partial(cp, synced=True), 1.0),
        "copy": (partial(copy, settings=CopySettings()), 1.0),
        "copy other units": (partial(copy, settings=CopySettings(frames_per_unit=30_000)), 1.0),
        "copy layer 6": (partial(copy, settings=CopySettings(layers=[6])), 1 / N_LAYERS),
        "copy pooled": (partial(copy, settings=CopySettings(keep=["pooled"])), 1.0),
    }
    for dtype in ("int8", "bfloat16", "float32"):
        calls[f"copy {dtype}"] = (partial(copy, settings=CopySettings(dtype=dtype)), 1.0)
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        source, out = Path(folder, "source"), Path(folder, "out")
        write_store(source, speech_lengths(arguments.frames), N_LAYERS)
        n_bytes = warm(source)
        seconds: dict[str, list[float]] = {name: [] for name in calls}
        order = random.Random(0)
        for _ in range(arguments.rounds):
            for name, (call, _) in order.sample(list(calls.items()), len(calls)):
                os.sync()
                warm(source)
                began = time.perf_counter()
                call(source, out)
                seconds[name].append(time.perf_counter() - began)
                shutil.rmtree(out)
    print(f"{n_bytes / 1e6:.0f} MB, medians of {arguments.rounds} alternating rounds")
    print(f"{'method':<18}{'s':>8}{'MB/s':>8}{'range':>16}{'of cp, synced':>15}")
    table = {}
    for name, runs in seconds.items():
        megabytes = n_bytes * calls[name][1] / 1e6
        speed = megabytes / statistics.median(runs)
        spread = f"{megabytes / max(runs):.0f}–{megabytes / min(runs):.0f}"
        base = statistics.median(a / b for a, b in zip(seconds["cp, synced"], runs, strict=True))
        print(
            f"{name:<18}{statistics.median(runs):>8.2f}{speed:>8.0f}{spread:>16}"
            f"{base * calls[name][1]:>15.2f}"
        )
        table[name] = {"seconds": statistics.median(runs), "mb_per_s": speed}
    print(json.dumps(table))


if __name__ == "__main__":
    main()
