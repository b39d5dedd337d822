"""Extract one long recording as one piece and as many: the pieces must not cost more decoding.

    python benchmarks/bench_pieces.py RECORDING [--minutes 40] [--formats flac mp3 wav44]
                                      [--tree DIR] [--threads 1]

Repeats RECORDING (mono, 16 kHz) to a file of the given length, and extracts it with the model
`tiny`, units of 1/1, 1/10 and 1/40 of the recording, and `engine=inline`, in new processes. Prints
the wall-clock and CPU seconds of `strata extract`, the sum of its stage `decode`, and a checksum of
the features, which must not depend on the number of pieces. `--tree` runs another version of
strata, which takes turns with this one.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import soundfile
import torch
import torchaudio

import pipeline
from pipeline.store.coordination.run_log import read_log

FORMATS = {"flac": ("flac", 16_000), "mp3": ("mp3", 16_000), "wav44": ("wav", 44_100)}
PIECES = (1, 10, 40)
THIS_TREE = Path(__file__).resolve().parents[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recording", type=Path)
    parser.add_argument("--minutes", type=float, default=40)
    parser.add_argument("--formats", nargs="+", default=list(FORMATS), choices=FORMATS)
    parser.add_argument("--tree", type=Path, help="source tree of another version")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    samples, rate_hz = soundfile.read(arguments.recording, dtype="float32")
    samples = np.resize(samples, round(arguments.minutes * 60 * rate_hz))
    trees = [arguments.tree, THIS_TREE] if arguments.tree else [THIS_TREE]
    print(f"{'file':>6} {'pieces':>7} {'wall s':>7} {'CPU s':>7} {'decode s':>9}  features")
    for name in arguments.formats:
        suffix, target_hz = FORMATS[name]
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch, "clips")
            folder.mkdir()
            sound = torchaudio.functional.resample(torch.from_numpy(samples), rate_hz, target_hz)
            soundfile.write(folder / f"long.{suffix}", sound.numpy(), target_hz)
            for n_pieces in PIECES:
                frames_per_unit = round(arguments.minutes * 3000 / n_pieces * 1.02)
                for i, tree in enumerate(trees):
                    store = Path(scratch, f"store-{n_pieces}-{i}")
                    wall_s, cpu_s = extract(tree, folder, store, frames_per_unit, arguments.threads)
                    print(f"{name:>6} {describe(store, wall_s, cpu_s)}  {tree.name}", flush=True)


def extract(
    tree: Path, folder: Path, store: Path, frames_per_unit: int, threads: int
) -> tuple[float, float]:
    """Run `strata extract` of a source tree; return its wall-clock and CPU seconds."""
    command = [sys.executable, "-m", "pipeline", "extract", f"dataset.path={folder}", "model=tiny"]
    command += ["model.weights=random", f"store={store}", "engine=inline"]
    command += [f"plan.frames_per_unit={frames_per_unit}", f"engine.threads={threads}"]
    start_s, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    environment = {**os.environ, "PYTHONPATH": str(tree)}
    subprocess.run(command, env=environment, cwd=tree, check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu_s = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
    return time.perf_counter() - start_s, cpu_s


def describe(store: Path, wall_s: float, cpu_s: float) -> str:
    """Return a line of the table."""
    opened = pipeline.open_store(store)
    digest = hashlib.sha256(opened.read(0).numpy().tobytes()).hexdigest()[:12]
    reports = [entry["report"] for entry in read_log(store) if "report" in entry]
    decode_s = sum(report["seconds"]["decode"] for report in reports)
    n_pieces = opened.record(0)["n_pieces"]
    return f"{n_pieces:>7} {wall_s:>7.1f} {cpu_s:>7.1f} {decode_s:>9.1f}  {digest}"


if __name__ == "__main__":
    main()
