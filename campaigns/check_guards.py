"""Mutation test of the encoder's guards: does a test fail when a guard is removed?

    python campaigns/check_guards.py [--only NAME]

Works on a copy of the package and of its tests. The tests must pass first. Then one guard at a time
is replaced by a line without it, and the tests must fail. Exits 1 if they pass without some guard.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
TESTS = (
    "encoders/test_encoder.py",
    "encoders/test_long_audio.py",
    "encoders/test_frontend.py",
    "encoders/test_positional_convolution.py",
    "encoders/test_precision.py",
    "extract/test_worker.py",
)


class Guard(NamedTuple):
    """One guard: the trap, and the line with and without the guard."""

    trap: str
    file: str
    line: str
    without: str


GUARDS = (
    Guard(
        "GroupNorm and waveform normalisation over the batch",
        "encoders/wav2vec2/frontend.py",
        "parts = [compute_moments(clip) if",
        "parts = [compute_moments(torch.cat(list(waveforms))) if",
    ),
    Guard(
        "GroupNorm of a window instead of its file",
        "encoders/clips.py",
        "[waveform[low:high]], stats=[stats], precision",
        "[waveform[low:high]], stats=None, precision",
    ),
    Guard(
        "waveform not centred for normalisation",
        "encoders/wav2vec2/frontend.py",
        "FoldedStatistics(moments.mean * spec.normalize_waveform, gain)",
        "FoldedStatistics(moments.mean * 0.0, gain)",
    ),
    Guard(
        "DC offset fed to the folded GroupNorm",
        "encoders/wav2vec2/frontend.py",
        "        shift = moments.mean\n",
        "        shift = moments.mean * 0.0\n",
    ),
    Guard(
        "DC offset subtracted in float32",
        "encoders/wav2vec2/frontend.py",
        "(rows.double() - shift)",
        "(rows - shift.float())",
    ),
    Guard(
        "exact zeros scaled by their variance",
        "encoders/wav2vec2/frontend.py",
        "(moments.variance + _SILENCE_VARIANCE).rsqrt()",
        "moments.variance.rsqrt()",
    ),
    Guard(
        "gain of the waveform forgotten in the folded GroupNorm",
        "encoders/wav2vec2/frontend.py",
        "variance.clamp_min(0.0) * gain[:, None] ** 2",
        "variance.clamp_min(0.0)",
    ),
    Guard(
        "last frame sees the neighbour's samples",
        "encoders/wav2vec2/frontend.py",
        "gap=2 if self._sums_on_device else 1",
        "gap=0",
    ),
    Guard(
        "samples rounded to the precision before the first convolution",
        "encoders/wav2vec2/frontend.py",
        "return high, (x - high.float()).to(dtype)",
        "return high, torch.zeros_like(high)",
    ),
    Guard(
        "clip shorter than a frame without its zeros",
        "encoders/wav2vec2/moments.py",
        "missing = max(0, RECEPTIVE_FIELD_SAMPLES - self._n_samples)",
        "missing = 0",
    ),
    Guard(
        "positional convolution over the neighbour, by FFT",
        "encoders/kernels/fft.py",
        "n_blocks += -(-count // step) + 1",
        "n_blocks += -(-count // step)",
    ),
    Guard(
        "positional convolution over the neighbour, as a Toeplitz product",
        "encoders/kernels/toeplitz.py",
        "lengths = n_blocks * BLOCK_FRAMES + self._margin",
        "lengths = n_blocks * BLOCK_FRAMES",
    ),
    Guard(
        "attention over the neighbours",
        "encoders/kernels/cpu.py",
        "for span in find_spans(pack.counts, n_heads):",
        "for span in find_spans((pack.n_frames,), n_heads):",
    ),
    Guard(
        "WavLM without its position bias",
        "encoders/wav2vec2/transformer.py",
        "_PositionBias(layers[0].attention, dtype) if is_wavlm else None",
        "None",
    ),
    Guard(
        "WavLM's position bias without its gate",
        "encoders/kernels/cpu.py",
        "mask = (gate * table[",
        "mask = (torch.ones_like(gate) * table[",
    ),
    Guard(
        "residual stream in the precision of the products",
        "encoders/wav2vec2/transformer.py",
        "            x = x.to(self._wide)\n",
        "",
    ),
    Guard(
        "batch that overflows stored unchanged",
        "extract/stages/encode.py",
        "        if not received.fits(self._codec):\n",
        "        if False:\n",
    ),
    Guard(
        "utterance that overflows stored unchanged",
        "extract/stages/encode.py",
        "            if not _fits(kept, self._codec):\n",
        "            if False:\n",
    ),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", help="only guards whose trap contains this text")
    only = parser.parse_args().only or ""
    untested = []
    with tempfile.TemporaryDirectory() as scratch:
        copy = Path(scratch)
        for name in ("pipeline", "tests", "conf", "scripts", "benchmarks", "campaigns", "examples"):
            shutil.copytree(ROOT / name, copy / name)
        shutil.copy(ROOT / "pyproject.toml", copy)
        if run_tests(copy) is not None:
            sys.exit("the tests fail on the unchanged code")
        for guard in GUARDS:
            if only not in guard.trap:
                continue
            path = copy / "pipeline" / guard.file
            whole = path.read_text()
            if whole.count(guard.line) != 1:
                sys.exit(
                    f"{guard.file} has {guard.line!r} {whole.count(guard.line)} times, not once"
                )
            path.write_text(whole.replace(guard.line, guard.without))
            failed = run_tests(copy)
            path.write_text(whole)
            print(f"{guard.trap}: {failed or 'NO TEST FAILS'}", flush=True)
            if failed is None:
                untested.append(guard.trap)
    if untested:
        sys.exit(f"{len(untested)} guards are not tested")


def run_tests(copy: Path) -> str | None:
    """Return the first test that fails; None if all pass."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "--tb=no", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*command, *(f"tests/{name}" for name in TESTS)],
        cwd=copy,
        env={"PYTHONPATH": str(copy), "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "2"},
        capture_output=True,
        text=True,
    )
    if done.returncode == 0:
        return None
    failed = [line for line in done.stdout.splitlines() if line.startswith("FAILED ")]
    if done.returncode != 1 or not failed:
        sys.exit(done.stdout + done.stderr)
    return failed[0].removeprefix("FAILED ").split(" - ")[0]


if __name__ == "__main__":
    main()
