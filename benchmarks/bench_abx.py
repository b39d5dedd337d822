"""Time ABX against fastabx, on the same random items, and compare the errors.

    OMP_NUM_THREADS=1 python -m benchmarks.bench_abx [--items 8000] [--peer-python PYTHON]

fastabx needs Python 3.12 or newer, so it may have an environment of its own: `--peer-python` is the
interpreter that has it. Both compare all items, without sampling, one thread each, in alternating
rounds. The peer's time does not include the start of its process nor the reading of its files.
Prints medians, ratios, the errors of both, and one JSON line.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from pipeline.probing.abx.cells import ACROSS, WITHIN, Items, plan_blocks
from pipeline.probing.abx.errors import MinimalPairs, abx_errors, index_cells, unit_frames
from pipeline.probing.abx.warping import Float32, IntArray

_PEER = """
import sys, time, torch
torch.set_num_threads(1)
from fastabx.dataset import Dataset
from fastabx import zerospeech_abx
item, root, mode = sys.argv[1:]
options = dict(max_size_group=None, max_x_across=None, speaker=mode, frequency=50, progress=False)
build, start = Dataset.from_item, time.perf_counter()
def timed(*args, **kwargs):
    global start
    data = build(*args, **kwargs)
    start = time.perf_counter()
    return data
Dataset.from_item = staticmethod(timed)
score = zerospeech_abx(item, root, **options)
print(time.perf_counter() - start, score)
"""


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--items", type=int, default=8_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dim", type=int, default=768)
    parser.add_argument("--peer-python", help="interpreter that has fastabx")
    args = parser.parse_args()
    torch.set_num_threads(1)
    items, frames, bounds = random_items(args.items, args.dim)
    print(f"{args.items:,} items of {len(frames):,} frames of {args.dim} features")
    results: dict[str, object] = {"items": args.items, "dim": args.dim}
    with tempfile.TemporaryDirectory() as folder:
        if args.peer_python:
            write_peer(Path(folder), items, frames, bounds)
        for mode in (WITHIN, ACROSS):
            ours, peer = [], []
            for _ in range(args.rounds):
                ours.append(time_ours(items, frames, bounds, mode))
                if args.peer_python:
                    peer.append(time_peer(args.peer_python, Path(folder), mode))
            seconds, error = statistics.median(item[0] for item in ours), ours[0][1]
            line = f"{mode:7}: {seconds:6.2f} s, error {error:.7f}"
            results[mode] = {"seconds": seconds, "error": error}
            if peer:
                other, other_error = statistics.median(item[0] for item in peer), peer[0][1]
                line += f"; fastabx {other:6.2f} s, error {other_error:.7f}"
                line += f"; {other / seconds:.2f} times as fast"
                results[f"{mode}_fastabx"] = {"seconds": other, "error": other_error}
            print(line, flush=True)
    print(json.dumps(results))


def random_items(n: int, dim: int) -> tuple[Items, Float32, IntArray]:
    """Return items of 12 classes, 60 contexts and 8 speakers, their frames, and their bounds."""
    random = np.random.default_rng(0)
    label, context, speaker = (random.integers(0, k, n) for k in (12, 60, 8))
    lengths = random.integers(2, 9, n)
    bounds = np.append(0, lengths.cumsum())
    frames = random.standard_normal((int(bounds[-1]), dim)).astype(np.float32)
    shown = random.standard_normal((12, dim))[label] + random.standard_normal((8, dim))[speaker]
    frames += 0.1 * np.repeat(shown, lengths, axis=0).astype(np.float32)
    return Items(label, context, speaker), frames, bounds


def time_ours(items: Items, frames: Float32, bounds: IntArray, mode: str) -> tuple[float, float]:
    """Return the seconds and the error."""
    start = time.perf_counter()
    blocks, unit = plan_blocks(items, mode, len(items), seed=0), unit_frames(frames)

    def read(which: IntArray) -> tuple[Float32, IntArray]:
        parts = [unit[bounds[i] : bounds[i + 1]] for i in which.tolist()]
        return np.concatenate(parts), np.cumsum([0, *map(len, parts)])

    cells = index_cells(items, blocks)
    errors = abx_errors(items, blocks, cells, np.diff(bounds), read, most_frames=len(frames))
    score = MinimalPairs(cells, errors).score
    return time.perf_counter() - start, score


def write_peer(folder: Path, items: Items, frames: Float32, bounds: IntArray) -> None:
    """Write the items and their frames as fastabx reads them."""
    (folder / "features").mkdir()
    torch.save(torch.from_numpy(frames), folder / "features" / "all.pt")
    lines = ["#file onset offset #phone prev-phone next-phone speaker"]
    for i, (label, context, speaker) in enumerate(
        zip(items.label, items.context, items.speaker, strict=True)
    ):
        times = f"{bounds[i] / 50:.4f} {bounds[i + 1] / 50:.4f}"
        lines.append(f"all {times} p{label} c{context} c s{speaker}")
    (folder / "all.item").write_text("\n".join(lines) + "\n")


def time_peer(python: str, folder: Path, mode: str) -> tuple[float, float]:
    """Return the seconds and the error of fastabx."""
    command = [python, "-c", _PEER, str(folder / "all.item"), str(folder / "features"), mode]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"fastabx failed:\n{done.stderr[-2000:]}")
    seconds, error = done.stdout.split()[-2:]
    return float(seconds), float(error)


if __name__ == "__main__":
    main()
