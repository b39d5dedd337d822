"""Plan small folders in many new processes, whose threads all use the decoders for the first time.

cffi makes the types of libsndfile when they are first used, and since 2.0 without a lock
(python-cffi#271): a plan of 299 ogg files ended once in 13 runs. Every process here is a fork of
one that has imported everything and used nothing, which is what a new process is to the libraries,
and takes a tenth of the time; `--new` starts them anew instead. `--without-guard` leaves out the
first use in one thread, which the product makes.
"""

from __future__ import annotations

import argparse
import collections
import itertools
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

CONTAINERS = ("ogg", "flac", "mp3", "wav", "opus", "aiff")
MAKE = """
import sys, numpy, soundfile
for i, path in enumerate(sys.argv[1:]):
    kind = path.rpartition(".")[2].upper()
    kind, subtype = ("OGG", "OPUS") if kind == "OPUS" else (kind, None)
    noise = numpy.random.default_rng(i).standard_normal(3_000 + 100 * i) * 0.1
    soundfile.write(path, noise, 16_000, format=kind, subtype=subtype)
"""


def main() -> int:
    """Run the campaign; return 1 if a process died or a plan was wrong."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--plans", type=int, default=500)
    parser.add_argument("--files", type=int, default=48, help="in each folder")
    parser.add_argument("--new", action="store_true", help="start each process anew")
    parser.add_argument("--without-guard", action="store_true", help="see how it fails")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        return _plan(options.child, options.files, options.without_guard)
    ends: collections.Counter[str] = collections.Counter()
    start_s = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="strata-first-use-") as home:
        folders = [_make_folder(Path(home) / kind, kind, options.files) for kind in CONTAINERS]
        for i, folder in zip(range(options.plans), itertools.cycle(folders), strict=False):
            code = _run(folder, options)
            end = "right" if code == 0 else "wrong" if code > 0 else signal.Signals(-code).name
            ends[f"{folder.name}: {end}"] += 1
            if i % 100 == 99:
                print(f"{i + 1} of {options.plans} plans", file=sys.stderr)
    for end, n in sorted(ends.items()):
        print(f"{end:20}{n:6}")
    n_failed = sum(n for end, n in ends.items() if not end.endswith("right"))
    print(f"{options.plans} plans, {n_failed} failed, {time.monotonic() - start_s:.0f} s")
    return min(1, n_failed)


def _make_folder(folder: Path, container: str, n_files: int) -> Path:
    """Write short clips, in another process: this one must not use the libraries."""
    folder.mkdir()
    names = [str(folder / f"{i:03d}.{container}") for i in range(n_files)]
    subprocess.run([sys.executable, "-c", MAKE, *names], check=True)
    return folder


def _run(folder: Path, options: argparse.Namespace) -> int:
    """Plan a folder in a new process; return its exit code, or minus its signal."""
    if options.new:
        flags = ["--without-guard"] if options.without_guard else []
        command = [sys.executable, __file__, f"--child={folder}", f"--files={options.files}"]
        return subprocess.run([*command, *flags], stderr=subprocess.DEVNULL).returncode
    _imported()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
            code = _plan(folder, options.files, options.without_guard)
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def _imported() -> None:
    """Import all that a plan needs."""
    from pipeline.encoders.wav2vec2 import geometry
    from pipeline.extract.planning import scan
    from pipeline.sources import opening

    assert geometry, (scan, opening)


def _plan(folder: Path, n_files: int, without_guard: bool) -> int:
    """Read all headers, each by another thread; return 0 if every length is right."""
    from pipeline.audio.backends import soundfile
    from pipeline.config import DatasetConfig
    from pipeline.encoders.wav2vec2.geometry import GEOMETRY
    from pipeline.extract.planning import scan
    from pipeline.sources.opening import open_source

    soundfile._is_prepared = without_guard
    scan.SCAN_CHUNK = 1  # so that a few files keep all threads busy
    sys.setswitchinterval(1e-6)
    rows = scan.scan(open_source(DatasetConfig("audiofolder", path=str(folder))), GEOMETRY)
    n_samples = rows["n_samples"].to_numpy()
    return int(not np.all(np.abs(n_samples - (3_000 + 100 * np.arange(n_files))) < 1_200))


if __name__ == "__main__":
    sys.exit(main())
