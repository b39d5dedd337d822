"""Compare decoding with plain `soundfile.read`, in many threads.

    python benchmarks/bench_decode.py AUDIO_FOLDER [--threads 1 2 4] [--rounds 5] [--busy]

Both decode every file of the folder; the methods take turns, round after round:

ours     strata's `decode`: checked, mixed to mono, resampled to 16 kHz, finite
plain    `soundfile.read(file, dtype="float32")`: neither mixed, resampled nor checked

`--busy` adds a Python thread that computes all the time, as a thread that launches kernels does:
then each return from C code waits for the interpreter's lock.
"""

from __future__ import annotations

import argparse
import json
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path

import soundfile

from pipeline.audio.decode import decode
from pipeline.extract.stages.decode import decoding_pool
from pipeline.sources.base import Segment

SAMPLE_RATE_HZ = 16_000
SUFFIXES = {".wav", ".flac", ".ogg", ".opus", ".mp3", ".aiff"}


def ours(file: str) -> None:
    decode(Segment(file, file), SAMPLE_RATE_HZ)


def plain(file: str) -> None:
    soundfile.read(file, dtype="float32")


METHODS: dict[str, Callable[[str], None]] = {"ours": ours, "plain": plain}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--busy", action="store_true", help="add a thread that computes in Python")
    arguments = parser.parse_args()
    files = sound_files(arguments.folder)
    audio_s = seconds(files)
    print(f"{len(files)} files, {audio_s:.0f} s of audio; × real time")
    print(f"{'threads':>8} {'ours':>8} {'plain':>8} {'ratio':>6}")
    rows = []
    for n_threads in arguments.threads:
        with busy_thread() if arguments.busy else nullcontext():
            speeds = decode_speeds(files, audio_s, n_threads, arguments.rounds)
        row = {name: statistics.median(values) for name, values in speeds.items()}
        ratio = statistics.median(
            a / b for a, b in zip(speeds["ours"], speeds["plain"], strict=True)
        )
        print(f"{n_threads:>8} {row['ours']:>8.0f} {row['plain']:>8.0f} {ratio:>6.2f}")
        rows.append({"threads": n_threads, **row, "ratio": ratio})
    print(json.dumps({"audio_s": audio_s, "busy": arguments.busy, "decode": rows}))


def sound_files(folder: Path) -> list[str]:
    """Return the sound files of a folder and its subfolders that soundfile opens, sorted."""
    found = [str(path) for path in sorted(folder.rglob("*")) if path.suffix in SUFFIXES]
    readable = []
    for file in found:
        try:
            n_samples = soundfile.info(file).frames
        except soundfile.LibsndfileError:
            continue
        if n_samples:
            readable.append(file)
    return readable


def seconds(files: Sequence[str]) -> float:
    """Return the seconds of audio that the headers state."""
    return sum(soundfile.info(file).duration for file in files)


def decode_speeds(
    files: Sequence[str],
    audio_s: float,
    n_threads: int,
    rounds: int,
    methods: Sequence[str] = ("ours", "plain"),
) -> dict[str, list[float]]:
    """Decode all files in threads, each method once a round, after one round of warming up.

    Returns:
        × real time of each round, by method.
    """
    speeds: dict[str, list[float]] = {name: [] for name in methods}
    with decoding_pool(n_threads) as pool:
        for number in range(rounds + 1):
            for name in methods:
                start_s = time.perf_counter()
                for _ in pool.map(METHODS[name], files):
                    pass
                if number > 0:
                    speeds[name].append(audio_s / (time.perf_counter() - start_s))
    return speeds


@contextmanager
def busy_thread() -> Iterator[None]:
    """Run a thread that computes in Python."""
    stop = threading.Event()

    def compute() -> None:
        while not stop.is_set():
            sum(range(1000))

    thread = threading.Thread(target=compute)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


if __name__ == "__main__":
    main()
