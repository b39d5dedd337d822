"""Compare the speed of extraction with plain loops, on the same clips and weights.

    python benchmarks/bench_extract.py AUDIO_FOLDER [--audio-s 150] [--rounds 3] [--threads 2]
        [--methods ours forward]

Every method gets the same clips (files, decoded by each method itself), the same HuBERT base
weights (random, seed 0) and the same number of threads. The methods take turns, round after round,
so that drift of the machine affects all of them; the table gives medians and ranges.

plain          for clip: torchaudio model.extract_features(clip); torch.save of the 12 layers
transformers   HubertModel in zero-padded batches of 8 (its features depend on the padding);
               torch.save of the 12 layers of each clip
s3prl          its upstream expert hf_hubert on the same batches, where s3prl can be imported
               (`pip install --no-deps s3prl`); torch.save of the 12 layers of each clip
ours           strata's worker: decode, batch, encode, write and commit the store
pooled         the same with extract.keep=[pooled]: of each clip and layer only the mean is stored
forward        the bare encoder on the worker's batches, nothing written: the upper bound
matmul         4096³ matrix products: the peak of the machine

Padding is the share of the computed frames that belong to no clip: those between neighbours in the
front end, and those that fill up a batch. It is printed for these clips and for every folder given
with --padding-of (from headers only), beside that of a padded rectangle of the same batches.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import soundfile
import torch
import torchaudio
import transformers

import pipeline
from pipeline.audio.decode import decode
from pipeline.config import DatasetConfig
from pipeline.encoders.kernels.base import Pack
from pipeline.encoders.kernels.cpu import CpuKernels
from pipeline.encoders.wav2vec2.geometry import DEFAULT_CONTEXT_S, DEFAULT_MAX_WINDOW_S, GEOMETRY
from pipeline.encoders.wav2vec2.stream import Stream
from pipeline.encoders.windows import Windowing
from pipeline.extract.encoder_setup import BATCH_S
from pipeline.extract.planning.planner import plan_source
from pipeline.extract.worker import Job, UnitTask, Worker
from pipeline.sources.opening import open_source
from pipeline.store.backend.opening import open_backend
from pipeline.store.documents import write_group
from pipeline.store.format.layout import Layout
from pipeline.store.format.plan import make_batches

HF_BATCH = 8
MAX_BATCH_FRAMES = round(BATCH_S["cpu"] * 50)


class Bench:
    """Clips, models, and one method per row of the table."""

    def __init__(self, files: list[Path], threads: int, scratch: Path) -> None:
        torch.set_num_threads(threads)
        self.files, self.threads, self.scratch = files, threads, scratch
        self.encoders = {
            precision: pipeline.load_encoder("hubert_base", weights="random", precision=precision)
            for precision in ("fp32", "bf16")
        }
        self.stock = self.encoders["fp32"]._model
        self.stock_bf16 = torchaudio.models.hubert_base().eval()
        self.stock_bf16.load_state_dict(self.stock.state_dict())
        self.stock_bf16.bfloat16()
        self.hubert = transformers.HubertModel(
            transformers.HubertConfig(attn_implementation="sdpa")
        ).eval()
        self.expert = s3prl_expert(self.hubert, scratch / "hubert")
        folder = scratch / "clips"
        folder.mkdir()
        for file in files:
            shutil.copy(file, folder / file.name)
        self.dataset = DatasetConfig("audiofolder", path=str(folder))
        self.source = open_source(self.dataset)
        encoder = self.encoders["fp32"]
        self.plan = plan_source(self.source, encoder.windows, None)
        self.layout = Layout(
            encoder.layers, encoder.dim, self.plan.frames_per_unit, self.plan.utterances_per_slot
        )
        self.layouts = {"ours": self.layout, "pooled": replace(self.layout, keep=("pooled",))}
        self.workers = {
            (kind, precision): self._worker(kind, precision)
            for kind in self.layouts
            for precision in self.encoders
        }

    def _worker(self, kind: str, precision: str) -> Worker:
        root = self.scratch / f"{kind}-{precision}"
        job = Job(
            open_backend(root),
            self.layouts[kind],
            self.dataset,
            lambda: None,
            MAX_BATCH_FRAMES,
            self.threads,
        )
        return Worker(job, self.encoders[precision], self.source)

    def plain(self, model: torch.nn.Module, dtype: torch.dtype) -> None:
        for file in self.files:
            samples, _ = soundfile.read(file, dtype="float32")
            with torch.inference_mode():
                layers, _ = model.extract_features(torch.from_numpy(samples)[None].to(dtype))
            torch.save([layer[0].half() for layer in layers], self.scratch / f"{file.stem}.pt")

    def transformers(self) -> None:
        for files, clips in self.padded_batches():
            padded = torch.nn.utils.rnn.pad_sequence(clips, batch_first=True)
            mask = torch.stack([torch.arange(padded.shape[1]) < len(clip) for clip in clips])
            with torch.inference_mode():
                states = self.hubert(padded, mask.long(), output_hidden_states=True).hidden_states
            self.save(files, clips, states)

    def s3prl(self) -> None:
        for files, clips in self.padded_batches():
            with torch.inference_mode():
                states = self.expert(clips)["hidden_states"]
            self.save(files, clips, states)

    def padded_batches(self) -> Iterator[tuple[list[Path], list[torch.Tensor]]]:
        for start in range(0, len(self.files), HF_BATCH):
            files = self.files[start : start + HF_BATCH]
            yield files, [torch.from_numpy(soundfile.read(f, dtype="float32")[0]) for f in files]

    def save(self, files: list[Path], clips: list[torch.Tensor], states: Any) -> None:
        for i, (file, clip) in enumerate(zip(files, clips, strict=True)):
            own = [state[i, : GEOMETRY.n_frames(len(clip))].half().clone() for state in states[1:]]
            torch.save(own, self.scratch / f"{file.stem}.pt")

    def ours(self, kind: str, precision: str) -> None:
        root, layout = self.scratch / f"{kind}-{precision}", self.layouts[kind]
        shutil.rmtree(root, ignore_errors=True)
        write_group(root, layout, self.plan.n_units, {"format_version": layout.format_version})
        for unit in range(self.plan.n_units):
            report = self.workers[kind, precision].extract(
                UnitTask(unit, unit, 1, self.plan.unit_rows(unit))
            )
            assert report.won
            assert not report.n_quarantined

    def forward(self, precision: str) -> None:
        encoder = self.encoders[precision]
        for batch in self.batches():
            for _ in encoder.encode_batch(batch):
                pass

    def batches(self) -> list[list[torch.Tensor]]:
        """Return the worker's batches, decoded once and kept."""
        if not hasattr(self, "_batches"):
            self._batches = []
            for unit in range(self.plan.n_units):
                rows = self.plan.unit_rows(unit)
                clips = [
                    decode(self.source.segment(row), 16_000).waveform
                    for row in rows["row"].to_pylist()
                ]
                chosen = make_batches(rows["n_frames"].to_numpy(), MAX_BATCH_FRAMES)
                self._batches += [[clips[int(i)] for i in batch] for batch in chosen]
        return self._batches


def s3prl_expert(model: torch.nn.Module, folder: Path) -> Any:
    """Return s3prl's upstream around the same model, or None if s3prl cannot be imported."""
    try:
        from s3prl.upstream.hf_hubert.expert import UpstreamExpert
    except ImportError:
        return None
    model.save_pretrained(folder)
    transformers.Wav2Vec2FeatureExtractor(do_normalize=False).save_pretrained(folder)
    return UpstreamExpert(str(folder)).eval()


def padding(folder: Path) -> dict[str, float]:
    """Return the shares of the frames of the worker's batches that belong to no clip."""
    windowing = Windowing(GEOMETRY, DEFAULT_MAX_WINDOW_S, DEFAULT_CONTEXT_S)
    plan = plan_source(open_source(DatasetConfig("audiofolder", path=str(folder))), windowing, None)
    own, computed = 0, {"front end": 0, "transformer": 0, "rectangle": 0}
    for unit in range(plan.n_units):
        lengths = plan.unit_rows(unit)["n_frames"].to_numpy()
        for batch in make_batches(lengths, MAX_BATCH_FRAMES):
            counts = [int(n) for n in lengths[batch]]
            pack = Pack(counts, "cpu", CpuKernels.row_multiple)
            own += pack.n_frames
            computed["front end"] += Stream(pack, [], 1, CpuKernels.row_multiple, gap=1).n_rows
            computed["transformer"] += pack.n_rows
            computed["rectangle"] += len(counts) * max(counts)
    return {name: 1 - own / n for name, n in computed.items()}


def matmul_gflops(dtype: torch.dtype) -> float:
    """Return the faster of torch's and oneDNN's packed product (MKL is slow on some CPUs)."""
    a, b = torch.randn(4096, 4096).to(dtype), torch.randn(4096, 4096)
    packed, b = CpuKernels().linear(b, None, dtype), b.to(dtype)
    seconds = []
    for product in (lambda: a @ b, lambda: packed(a)):
        product()
        began = time.perf_counter()
        for _ in range(3):
            product()
        seconds.append((time.perf_counter() - began) / 3)
    return 2 * 4096**3 / min(seconds) / 1e9


def timed(method: Callable[[], None]) -> tuple[float, float]:
    """Return the seconds of a method, and its CPU seconds, which say more on a busy machine."""
    os.sync()  # this method must not wait for what the one before left unwritten
    began, began_cpu = time.perf_counter(), time.process_time()
    method()
    return time.perf_counter() - began, time.process_time() - began_cpu


def choose(folder: Path, audio_s: float) -> tuple[list[Path], float]:
    """Choose every k-th file, to get about `audio_s` seconds of mixed lengths."""
    files = sorted(folder.rglob("*.flac")) or sorted(folder.rglob("*.wav"))
    lengths = {file: soundfile.info(file).duration for file in files}
    step = max(1, round(sum(lengths.values()) / audio_s))
    chosen = files[::step]
    return chosen, sum(lengths[file] for file in chosen)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--audio-s", type=float, default=150.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--methods", nargs="*", help="only those whose names start so")
    parser.add_argument("--padding-of", type=Path, nargs="*", default=[])
    arguments = parser.parse_args()
    files, audio_s = choose(arguments.folder, arguments.audio_s)
    transformers.utils.logging.set_verbosity_error()
    with tempfile.TemporaryDirectory() as scratch:
        bench = Bench(files, arguments.threads, Path(scratch))
        methods: dict[str, Callable[[], None]] = {
            "plain fp32": lambda: bench.plain(bench.stock, torch.float32),
            "plain bf16": lambda: bench.plain(bench.stock_bf16, torch.bfloat16),
            "transformers fp32": bench.transformers,
            "s3prl fp32": bench.s3prl,
            "ours fp32": lambda: bench.ours("ours", "fp32"),
            "ours bf16": lambda: bench.ours("ours", "bf16"),
            "pooled fp32": lambda: bench.ours("pooled", "fp32"),
            "pooled bf16": lambda: bench.ours("pooled", "bf16"),
            "forward fp32": lambda: bench.forward("fp32"),
            "forward bf16": lambda: bench.forward("bf16"),
        }
        if arguments.methods:
            chosen = tuple(arguments.methods)
            methods = {name: act for name, act in methods.items() if name.startswith(chosen)}
        if bench.expert is None and methods.pop("s3prl fp32", None):
            print("s3prl cannot be imported here and is left out")
        bench.forward("bf16")  # warm-up: kernels are chosen, memory is mapped
        bench.forward("fp32")
        bench.plain(bench.stock_bf16, torch.bfloat16)
        seconds: dict[str, list[float]] = {name: [] for name in methods}
        cpu: dict[str, list[float]] = {name: [] for name in methods}
        peak: dict[str, list[float]] = {"fp32": [], "bf16": []}
        for _ in range(arguments.rounds):
            for name, method in methods.items():
                wall_s, cpu_s = timed(method)
                seconds[name].append(wall_s)
                cpu[name].append(cpu_s)
            peak["fp32"].append(matmul_gflops(torch.float32))
            peak["bf16"].append(matmul_gflops(torch.bfloat16))
        folders = {"these clips": Path(bench.dataset.path or "")}
        folders |= {str(folder): folder for folder in arguments.padding_of}
        shares = {name: padding(folder) for name, folder in folders.items()}
    report(seconds, cpu, peak, shares, audio_s, len(files), arguments)


def report(
    seconds: dict[str, list[float]],
    cpu: dict[str, list[float]],
    peak: dict[str, list[float]],
    shares: dict[str, dict[str, float]],
    audio_s: float,
    n_files: int,
    arguments: argparse.Namespace,
) -> None:
    print(
        f"{n_files} clips, {audio_s:.0f} s of audio, HuBERT base, {arguments.threads} threads, "
        f"medians of {arguments.rounds} alternating rounds"
    )
    speed = {name: audio_s / statistics.median(runs) for name, runs in seconds.items()}
    plain = seconds.get("plain fp32")
    print(f"{'method':<20}{'× real time':>12}{'range':>18}{'vs plain fp32':>15}")
    for name, runs in seconds.items():
        low, high = audio_s / max(runs), audio_s / min(runs)
        # The median of the ratios of each round: drift affects both sides of a ratio.
        ratio = f"{paired(plain, runs):.2f}" if plain else "–"
        print(f"{name:<20}{speed[name]:>12.1f}{f'{low:.1f}–{high:.1f}':>18}{ratio:>15}")
    pairs = [
        ("ours fp32", "plain fp32"),
        ("ours fp32", "transformers fp32"),
        ("ours fp32", "s3prl fp32"),
        ("ours bf16", "plain fp32"),
        ("ours bf16", "plain bf16"),
        ("ours fp32", "forward fp32"),
        ("ours bf16", "forward bf16"),
        ("pooled fp32", "forward fp32"),
        ("pooled bf16", "forward bf16"),
    ]
    ratios = {
        f"{name} / {base}": paired(seconds[base], seconds[name])
        for name, base in pairs
        if {name, base} <= seconds.keys()
    }
    cpu_ratios = {
        f"{name} / {base}": paired(cpu[base], cpu[name])
        for name, base in pairs
        if {name, base} <= cpu.keys()
    }
    print(f"{'':<30}{'speed':>6}{'per CPU s':>11}")
    for name, value in ratios.items():
        print(f"{name:<30}{value:6.2f}{cpu_ratios[name]:11.2f}")
    gflops = {name: statistics.median(values) for name, values in peak.items()}
    print(f"matrix-product peak: {gflops['fp32']:.0f} GFLOP/s fp32, {gflops['bf16']:.0f} bf16")
    for name, parts in shares.items():
        print(f"padding of {name}: " + ", ".join(f"{p} {share:.1%}" for p, share in parts.items()))
    found = {"realtime_factor": speed, "ratios": ratios, "cpu_ratios": cpu_ratios}
    print(json.dumps(found | {"peak_gflops": gflops, "padding": shares}))


def paired(baseline: list[float], runs: list[float]) -> float:
    return statistics.median(a / b for a, b in zip(baseline, runs, strict=True))


if __name__ == "__main__":
    main()
