"""Measure extraction on a GPU (or a CPU) against the machine's limits and against peers.

    python benchmarks/bench_gpu.py --source DIR [--device cpu] [--model hubert_base]
        [--precision fp16] [--out DIR] [--json FILE]

Prints, from one run: the card and the machine; the limits of products, copies, synced writes and
decoding; Strata's encoder alone, and one worker from files to a committed store; and peers on the
same files. Weights are random. Speeds are in times real time, medians of alternating rounds. A row
is compared with the lowest limit that bounds it, e.g. "0.93 of write, disk".

plain loop           torchaudio, one clip at a time, all layers saved with torch.save
encoder alone        clips in host memory to layers in the unit's buffer in host memory
one worker           files to committed units: in a folder in memory, on a disk, and with the pooled
                     means only
Ray, one actor       the same in a Ray actor, in memory
transformers, s3prl  padded batches of clips sorted by length; the forward pass only

On a GPU it takes at most 8 minutes, with `--device cpu` at most 5 on two cores (`--limit-s`).
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
import tempfile
from functools import partial
from pathlib import Path

import torch
from bench_decode import decode_speeds
from gpu.clips import Clips, gather, read_clip
from gpu.limits import (
    PRODUCT_SIZE,
    copy_gb_per_s,
    describe_machine,
    gflop_per_second_of_audio,
    has_fast_bf16,
    product_tflops,
    usable_cpus,
    write_speeds,
)
from gpu.peers import PlainLoop, S3prlLoop, TransformersLoop, normalized, s3prl_expert
from gpu.report import Limit, Report, document, show
from gpu.rounds import Deadline, Method, alternate, nothing
from gpu.strata import EncoderAlone, Extraction, OneWorker, errors, reference_layers

from pipeline.encoders.wav2vec2.bundles import ModelSpec, find_model

PARTS = ("limits", "errors", "encoder", "worker", "ray", "peers")
AUDIO_S = {"cpu": 60.0, "cuda": 7200.0}
LIMIT_S = {"cpu": 270.0, "cuda": 450.0}
PRECISIONS = {"cpu": ("fp32", "bf16"), "cuda": ("fp16", "bf16", "tf32", "fp32")}
"""Precisions of the encoder alone, and of the error; the first is that of the workers."""
WARM_CLIPS = {"cpu": 1, "cuda": 8}
MEMORY_FOLDER = Path("/dev/shm")
ERROR_CLIPS = {"cpu": (2, 4), "cuda": (3, 10)}
"""Number and seconds of the clips that are computed in float64, which takes long."""


class Bench:
    """Settings, clips and folders of a run, and the report that its parts fill."""

    def __init__(self, arguments: argparse.Namespace, scratch: Path) -> None:
        self.device: str = arguments.device
        self.parts: list[str] = arguments.parts
        self.spec: ModelSpec = find_model(arguments.model)
        self.rounds: int = arguments.rounds
        self.threads: int = arguments.threads
        first, *others = PRECISIONS[self.device]
        self.precision: str = arguments.precision or first
        rest = [name for name in (first, *others) if name != self.precision]
        self.precisions = [self.precision, *rest]
        self.reduced: str | None = "fp16" if self.device == "cuda" else "bf16"
        self.product_size: int = arguments.product_size or PRODUCT_SIZE[self.device]
        self.deadline = Deadline(arguments.limit_s)
        self.clips: Clips = gather(arguments.source, arguments.audio_s, scratch / "clips")
        self.weights = scratch / "weights.pt"
        torch.manual_seed(0)
        torch.save(self.spec.build().state_dict(), self.weights)
        self.scratch = scratch
        self.extraction = Extraction(
            arguments.model, self.weights, self.clips, self.device, self.precision, self.threads
        )
        layout = self.extraction.layout
        frame_rate_hz = self.extraction.setup.geometry.frame_rate_hz
        self.bytes_per_audio_s = layout.n_layers * layout.frame_bytes * frame_rate_hz
        self.report = Report(facts=describe_machine(self.device))
        if not has_fast_bf16(self.device):
            self.precisions = [p for p in self.precisions if p in (self.precision, "fp32")]
            self.reduced = None
            self.report.notes.append("bf16 is left out: this CPU has no instructions for it")
        self.report.facts |= {
            "model": f"{arguments.model}, {layout.n_layers} layers of {layout.dim}",
            "clips": f"{self.clips.describe()}, {self.extraction.plan.n_units} units",
            "threads": str(self.threads),
        }
        self._products: dict[str, list[float]] = {}  # TFLOP/s in each precision
        self.disk = scratch / "disk"
        self.disk.mkdir()
        self.memory = self._memory_folder()

    def _memory_folder(self) -> Path | None:
        """Return a new folder in memory; None where there is no room for the features."""
        needed = 1.5 * self.clips.audio_s * self.bytes_per_audio_s
        if MEMORY_FOLDER.is_dir() and shutil.disk_usage(MEMORY_FOLDER).free > needed:
            return Path(tempfile.mkdtemp(prefix="strata-", dir=MEMORY_FOLDER))
        self.report.notes.append(f"no memory disk: {MEMORY_FOLDER} lacks {needed / 1e9:.1f} GB")
        return None

    @property
    def fast(self) -> Path:
        """Where methods write that are not about the disk: in memory if possible."""
        return self.memory or self.disk

    def close(self) -> None:
        """Remove the folder in memory."""
        if self.memory is not None:
            shutil.rmtree(self.memory, ignore_errors=True)

    def measure_limits(self) -> None:
        """Measure what the machine allows, but for products: see `measure_products`."""
        if self.device == "cuda":
            speed = copy_gb_per_s()
            factor = speed * 1e9 / self.bytes_per_audio_s
            self._add_limit("copy to pinned memory", factor, f"{speed:.1f} GB/s")
        folders = {"write, disk": self.disk, "write, memory": self.memory}
        layout = self.extraction.layout
        for name, folder in folders.items():
            if folder is None:
                continue
            speeds = write_speeds(folder, layout.shard_bytes, layout.n_layers, limit_s=15)
            best = max(speeds, key=lambda n: speeds[n])
            each = ", ".join(f"{n}: {speed:,.0f}" for n, speed in speeds.items())
            factor = speeds[best] * 1e6 / self.bytes_per_audio_s
            self._add_limit(name, factor, f"{speeds[best]:,.0f} MB/s, {best} threads ({each})")

        rounds = decode_speeds(
            [str(file) for file in self.clips.files], self.clips.audio_s, self.threads, 1, ["ours"]
        )
        detail = f"{self.threads} threads, whole files"
        self._add_limit("decode", statistics.median(rounds["ours"]), detail)

    def measure_products(self) -> None:
        """Measure the speed of products, once more: it drifts as that of the encoder does."""
        for precision in self.precisions:
            tflops = product_tflops(self.device, precision, self.product_size)
            self._products.setdefault(precision, []).append(tflops)

    def add_product_limits(self) -> None:
        """Add the median of the measurements of each precision to the limits."""
        gflop = gflop_per_second_of_audio(self.spec)
        for precision, speeds in self._products.items():
            median = statistics.median(speeds)
            detail = f"{median:.3g} TFLOP/s ({min(speeds):.3g} to {max(speeds):.3g})"
            self._add_limit(f"products, {precision}", median * 1e3 / gflop, detail)

    def _add_limit(self, name: str, factor: float, detail: str) -> None:
        self.report.limits.append(Limit(name, factor, detail))
        print(f"  {name}: {detail}", file=sys.stderr)

    def measure_errors(self) -> None:
        """Compare each precision with float64 on the CPU, on a few clips."""
        rate_hz = self.spec.sample_rate_hz
        n_clips, clip_s = ERROR_CLIPS[self.device]
        files = self.clips.files[:: max(1, len(self.clips.files) // n_clips)][:n_clips]
        waveforms = [read_clip(file, rate_hz)[: clip_s * rate_hz] for file in files]
        model = self.spec.build()
        model.load_state_dict(torch.load(self.weights))
        reference = reference_layers(model, [normalized(self.spec, one) for one in waveforms])
        for precision in self.precisions:
            encoder = self.extraction.load_encoder(precision)
            self.report.errors[precision] = errors(reference, encoder, waveforms)
            print(f"  error of {precision}: {self.report.errors[precision]:.1e}", file=sys.stderr)

    def measure_methods(self) -> None:
        """Run Strata and its peers in alternating rounds."""
        methods = [self._plain("fp32")]
        workers: dict[str, OneWorker] = {}
        if "encoder" in self.parts:
            methods += [self._encoder(precision) for precision in self.precisions]
        if "worker" in self.parts:
            workers |= self._inline_workers()
        if "ray" in self.parts:
            name = "Ray, one actor"
            workers[name] = OneWorker(self.extraction, self.fast / "ray", "ray")
            self.report.limits_of[name] = [f"one worker, {self._where}"]
        methods += [self._worker(name, worker) for name, worker in workers.items()]
        if "peers" in self.parts:
            methods += [] if self.reduced is None else [self._plain(self.reduced)]
            methods += self._padded_peers()
        self.report.methods = methods
        try:
            is_limit = "limits" in self.parts
            before_round = self.measure_products if is_limit else nothing
            alternate(methods, self.rounds, self.deadline, before_round)
        finally:
            for worker in workers.values():
                worker.close()
        ran = {method.name for method in methods if method.seconds}
        self.report.stages = {
            name: worker.stages() for name, worker in workers.items() if name in ran
        }

    @property
    def _where(self) -> str:
        return "memory" if self.memory is not None else "disk"

    def _plain(self, precision: str) -> Method:
        folder = self.fast / f"plain-{precision}"
        loop = PlainLoop(self.spec, self.weights, self.clips, self.device, precision)

        def prepare() -> None:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()

        warm_up = partial(loop, folder, WARM_CLIPS[self.device])
        return Method(f"plain loop, {precision}", partial(loop, folder), warm_up, prepare)

    def _encoder(self, precision: str) -> Method:
        encode = EncoderAlone(self.extraction, self.extraction.load_encoder(precision))
        name = f"encoder alone, {precision}"
        self.report.limits_of[name] = [f"products, {precision}", "copy to pinned memory"]
        return Method(name, encode, partial(encode, 1))

    def _inline_workers(self) -> dict[str, OneWorker]:
        bounds = [f"encoder alone, {self.precision}", "decode"]
        folders = {"disk": self.disk} | ({} if self.memory is None else {"memory": self.memory})
        workers = {}
        for where, folder in folders.items():
            name = f"one worker, {where}"
            self.report.limits_of[name] = [*bounds, f"write, {where}"]
            workers[name] = OneWorker(self.extraction, folder / "store", "inline")
        name = "one worker, means only"
        self.report.limits_of[name] = bounds
        workers[name] = OneWorker(self.extraction, self.fast / "means", "inline", ("pooled",))
        return workers

    def _worker(self, name: str, worker: OneWorker) -> Method:
        return Method(name, worker, partial(worker, 1), worker.prepare)

    def _padded_peers(self) -> list[Method]:
        n_warm = WARM_CLIPS[self.device]
        precision = "fp16" if self.device == "cuda" else "fp32"
        loop = TransformersLoop(self.spec, self.clips, self.device, precision)
        name = f"transformers, {precision}, {loop.attention}"
        methods = [Method(name, loop, partial(loop, n_warm))]
        expert = s3prl_expert()
        if expert is None:
            self.report.notes.append("s3prl cannot be imported here and is left out")
            return methods
        upstream = S3prlLoop(self.spec, self.clips, self.device, expert, self.scratch / "s3prl")
        return [*methods, Method("s3prl, fp32", upstream, partial(upstream, n_warm))]


def main() -> None:
    """Run the parts, print the report, and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--source", type=Path, required=True, help="folder of audio files")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: cuda if there is one")
    parser.add_argument("--model", default="hubert_base", help="as in `strata models`")
    parser.add_argument("--precision", help="precision of the workers")
    parser.add_argument("--out", type=Path, help="folder on the disk to measure")
    parser.add_argument("--json", type=Path, help="file for the figures")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--audio-s", type=float, help="seconds of audio; default: 60 or 7200")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=usable_cpus())
    parser.add_argument("--product-size", type=int, help="default: 4096 or 8192")
    parser.add_argument("--limit-s", type=float, help="no run begins that would end later")
    arguments = parser.parse_args()
    arguments.device = arguments.device or ("cuda" if torch.cuda.is_available() else "cpu")
    arguments.audio_s = arguments.audio_s or AUDIO_S[arguments.device]
    arguments.limit_s = arguments.limit_s or LIMIT_S[arguments.device]
    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory(dir=arguments.out, ignore_cleanup_errors=True) as folder:
        bench = Bench(arguments, Path(folder))
        try:
            if "limits" in bench.parts:
                bench.measure_limits()
            if "errors" in bench.parts:
                bench.measure_errors()
            bench.measure_methods()
            bench.add_product_limits()
        finally:
            bench.close()
        audio_s = bench.clips.audio_s
        show(bench.report, audio_s)
        if arguments.json is not None:
            arguments.json.write_text(json.dumps(document(bench.report, audio_s), indent=1) + "\n")


if __name__ == "__main__":
    main()
