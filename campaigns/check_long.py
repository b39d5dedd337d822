"""Check that memory stays bounded for a recording of hours.

    python campaigns/check_long.py RECORDING [--hours 0.5 3] [--model tiny]

Repeats RECORDING (mono flac or wav) to files of the given lengths, extracts each file in a new
process with units of 20 minutes, verifies the store, and prints the peak resident memory and the
size of the decoded file: the memory must not grow with the size.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import soundfile

import pipeline


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recording", type=Path)
    parser.add_argument("--hours", type=float, nargs="+", default=[0.5, 3.0])
    parser.add_argument("--model", default="tiny")
    arguments = parser.parse_args()
    samples, rate_hz = soundfile.read(arguments.recording, dtype="float32")
    print(f"{'hours':>6} {'pieces':>7} {'frames':>9} {'decoded MB':>11} {'peak memory MB':>15}")
    for hours in arguments.hours:
        with tempfile.TemporaryDirectory() as scratch:
            folder, store = Path(scratch, "clips"), Path(scratch, "store")
            folder.mkdir()
            n_samples = round(hours * 3600 * rate_hz)
            with soundfile.SoundFile(folder / "long.flac", "w", rate_hz, 1) as file:
                for start in range(0, n_samples, len(samples)):
                    file.write(samples[: n_samples - start])
            peak_mb = extract(folder, store, arguments.model)
            opened = pipeline.open_store(store)
            decoded_mb = n_samples / rate_hz * opened.geometry.sample_rate_hz * 4 / 1e6
            print(
                f"{hours:>6g} {opened.record(0)['n_pieces']:>7} {opened.n_frames(0):>9} "
                f"{decoded_mb:>11.0f} {peak_mb:>15.0f}"
            )


def extract(folder: Path, store: Path, model: str) -> float:
    """Extract and verify; return the peak resident memory of the extraction in MB."""
    command = [sys.executable, "-m", "pipeline"]
    settings = [f"dataset.path={folder}", f"model={model}", "model.weights=random"]
    more = [f"store={store}", "engine=inline", "plan.frames_per_unit=59904"]
    process = subprocess.Popen(
        [*command, "extract", *settings, *more],
        stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"the extraction ended with status {status}")
    verified = subprocess.run(
        [*command, "verify", str(store), "--json"], check=True, capture_output=True, text=True
    )
    assert json.loads(verified.stdout)["ok"]
    return usage.ru_maxrss / 1024


if __name__ == "__main__":
    main()
