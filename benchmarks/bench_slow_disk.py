"""Compare extraction to a slow disk in float16 and in int8: the bytes are the limit there.

    sudo .venv/bin/python benchmarks/bench_slow_disk.py [--mb-per-s 40] [--units 6] [--rounds 3]
    python benchmarks/bench_slow_disk.py --folder FOLDER_ON_A_SLOW_DISK

Without --folder the disk is an ext4 file system in a file, mounted through a loop device whose
writes the kernel holds to a rate (root, and the blkio controller of cgroups version 1). The encoder
is a free one: noise in the shapes of HuBERT base, 12 layers of 768 features. Everything else is a
whole run as `strata extract` makes it, from files to a committed store. `plain` writes as many
bytes as the store of float16 into a file and syncs it; that is what the disk takes. The methods
take turns, and each finds the disk idle.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from bench_memory import write_clips
from noise_encoder import register_noise

from pipeline.config import load_config
from pipeline.extract import run

LIMIT = Path("/sys/fs/cgroup/blkio/blkio.throttle.write_bps_device")
BLOCK = 1 << 20
METHODS = ("plain", "float16", "int8")


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, help="on a slow disk, in place of a throttled one")
    parser.add_argument("--mb-per-s", type=int, default=40, help="what the throttled disk takes")
    parser.add_argument("--units", type=int, default=6)
    parser.add_argument("--frames", type=int, default=9_216, help="frames per unit")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    register_noise()
    found: list[dict[str, dict[str, float]]] = []
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        clips = scratch / "clips"
        write_clips(clips, arguments.units * arguments.frames / 50 - 20)
        disk = arguments.folder
        if disk is None:
            disk = stack.enter_context(slow_disk(scratch, arguments.mb_per_s))
        n_bytes = arguments.units * arguments.frames * 12 * 768 * 2
        for _ in range(arguments.rounds):
            one: dict[str, dict[str, float]] = {}
            for name in METHODS:
                one[name] = measure(name, clips, disk, n_bytes, arguments.frames)
            found.append(one)
    report(found)


def measure(name: str, clips: Path, disk: Path, n_bytes: int, n_frames: int) -> dict[str, float]:
    """Return seconds, MB/s on the disk, and × real time of one method."""
    out, audio_s = disk / "out", 0.0
    os.sync()
    began = time.perf_counter()
    if name == "plain":
        with out.open("wb", buffering=0) as file:
            for _block in range(n_bytes // BLOCK):
                file.write(bytes(BLOCK))
            os.fsync(file.fileno())
        written = n_bytes
    else:
        overrides = [f"dataset.path={clips}", f"store={out}", f"extract.dtype={name}"]
        overrides += ["model=hf", "model.source=noise", "model.name=noise", "engine=inline"]
        overrides += [f"plan.frames_per_unit={n_frames}", f"engine.threads={os.cpu_count()}"]
        audio_s = run.extract(load_config(overrides)).audio_seconds
        written = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    spent_s = time.perf_counter() - began
    shutil.rmtree(out) if out.is_dir() else out.unlink()
    return {"s": spent_s, "mb_per_s": written / 1e6 / spent_s, "realtime": audio_s / spent_s}


def report(found: list[dict[str, dict[str, float]]]) -> None:
    print(f"{'':8} {'MB/s':>6} {'range':>12} {'of plain':>9} {'× real time':>12}")
    ratios = {}
    for name in METHODS:
        rates = [one[name]["mb_per_s"] for one in found]
        realtime = statistics.median(one[name]["realtime"] for one in found)
        ratios[name] = statistics.median(
            one[name]["mb_per_s"] / one["plain"]["mb_per_s"] for one in found
        )
        spread = f"{min(rates):.1f}–{max(rates):.1f}"
        print(
            f"{name:8} {statistics.median(rates):6.1f} {spread:>12} {ratios[name]:9.2f} "
            + (f"{realtime:12.1f}" if realtime else f"{'–':>12}")
        )
    faster = statistics.median(one["float16"]["s"] / one["int8"]["s"] for one in found)
    print(f"int8 is {faster:.2f} times as fast as float16")
    print(json.dumps({"bench": "slow disk", "of_plain": ratios, "int8": faster, "rounds": found}))


@contextmanager
def slow_disk(scratch: Path, mb_per_s: int) -> Iterator[Path]:
    """Mount a file system whose writes the kernel holds to a rate, as root."""
    if not LIMIT.exists() or os.geteuid():
        sys.exit(f"a throttled disk needs root and {LIMIT}; give --folder on a slow disk instead")
    image, mount = scratch / "disk", scratch / "mount"
    mount.mkdir()
    with image.open("wb") as file:
        file.truncate(8 << 30)
    subprocess.run(["mkfs.ext4", "-q", "-F", image], check=True)
    with ExitStack() as stack:
        loop = ["losetup", "--find", "--show", image]
        device = subprocess.run(loop, check=True, capture_output=True, text=True).stdout.strip()
        stack.callback(subprocess.run, ["losetup", "--detach", device], check=True)
        number = Path("/sys/class/block", Path(device).name, "dev").read_text().strip()
        subprocess.run(["mount", device, mount], check=True)
        stack.callback(subprocess.run, ["umount", mount], check=True)
        LIMIT.write_text(f"{number} {mb_per_s * 1_000_000}\n")
        stack.callback(LIMIT.write_text, f"{number} 0\n")
        yield mount


if __name__ == "__main__":
    main()
