"""Measure the peak memory of a worker over full units, beside its model and a unit's features.

    python benchmarks/bench_memory.py [--units 3] [--frames 60160] [--model none|hubert_base]
        [--buffers 1]

The script makes recordings of mixed lengths, loads the model and extracts the units as a run does:
while one is encoded, the next is decoded and the last is written. With `--model none` the features
are constants with the shapes and batches of HuBERT base, which takes seconds; a real model takes
minutes. `--buffers 2` is the number of unit buffers of a worker with a GPU. The bound is that of
the features and the audio; what exceeds it are the activations of a batch and the libraries.
"""

from __future__ import annotations

import argparse
import os
import resource
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import soundfile
import torch
from bench_extract import MAX_BATCH_FRAMES
from torch import Tensor

import pipeline
from pipeline.config import DatasetConfig
from pipeline.encoders.wav2vec2.geometry import GEOMETRY
from pipeline.encoders.wav2vec2.moments import MomentAccumulator
from pipeline.encoders.windows import Windowing
from pipeline.extract.executors.base import units_per_worker
from pipeline.extract.planning.planner import plan_source
from pipeline.extract.stages import write
from pipeline.extract.worker import Job, UnitTask, Worker
from pipeline.sources.opening import open_source
from pipeline.store.backend.opening import open_backend
from pipeline.store.documents import write_group
from pipeline.store.format.layout import Layout


class ConstantEncoder:
    """Encoder that returns constants with the shapes of HuBERT base."""

    layers = tuple(range(1, 13))
    geometry = GEOMETRY
    windows = Windowing(GEOMETRY, 60.0, 2.0)
    device = torch.device("cpu")

    def encode_batch(self, waveforms: Sequence[Tensor], **_: object) -> Iterator[Tensor]:
        n_frames = sum(GEOMETRY.n_frames(len(waveform)) for waveform in waveforms)
        for _layer in self.layers:
            yield torch.full((n_frames, 768), 0.5)

    def statistics_accumulator(self) -> MomentAccumulator:
        return MomentAccumulator()

    def utterance_stats(self, utterance: object) -> None:
        return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--units", type=int, default=3)
    parser.add_argument("--frames", type=int, default=60_160, help="frames per unit")
    parser.add_argument("--model", default="none")
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--buffers", type=int, default=1, help="units in memory at a time")
    parser.add_argument("--folder", type=Path, help="where to write")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as scratch:
        clips = Path(scratch) / "clips"
        write_clips(clips, arguments.units * arguments.frames / 50 - 20)
        dataset = DatasetConfig("audiofolder", path=str(clips))
        source = open_source(dataset)
        plan = plan_source(source, Windowing(GEOMETRY, 60.0, 2.0), arguments.frames)
        layout = Layout(ConstantEncoder.layers, 768, plan.frames_per_unit, plan.utterances_per_slot)
        root = Path(scratch) / "store"
        write_group(root, layout, plan.n_units, {"format_version": 1})
        encoder = ConstantEncoder()
        if arguments.model != "none":
            encoder = pipeline.load_encoder(
                arguments.model, "random", precision=arguments.precision
            )
            encoder([torch.randn(16_000)])  # weights in their precision, libraries loaded
        n_cpus = os.cpu_count() or 1
        job = Job(open_backend(root), layout, dataset, lambda: encoder, MAX_BATCH_FRAMES, n_cpus)
        n_held = units_per_worker("cpu" if arguments.buffers == 1 else "cuda")
        write.n_buffers = lambda device: arguments.buffers
        worker = Worker(job, encoder, source)
        before = resident_bytes()
        tasks = [UnitTask(unit, unit, 1, plan.unit_rows(unit)) for unit in range(plan.n_units)]
        reports = []
        for i, task in enumerate(tasks):
            for near in tasks[i : i + n_held]:
                worker.prefetch(near)
            reports.append(worker.begin(task))
        n_ok = sum(report.result().n_ok for report in reports)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        features = layout.n_layers * layout.shard_data_bytes
        audio = layout.frames_per_unit * GEOMETRY.hop_samples * 4
        bound = arguments.buffers * (features + layout.pooled_bytes) + n_held * audio
        print(
            f"{n_ok} utterances in {plan.n_units} units of {features / 1e9:.2f} GB; "
            f"{before / 1e9:.2f} GB before the first, peak memory {peak / 1e9:.2f} GB: "
            f"{(peak - before) / features:.2f} units' features, {(peak - before) / bound:.2f} of"
            f" the bound, {bound / 1e9:.2f} GB ({arguments.buffers} buffers, {n_held} units' audio)"
        )
        print({stage: round(s, 2) for stage, s in reports[-1].result().seconds.items()})


def write_clips(folder: Path, seconds: float) -> None:
    """Write noise in clips of 2 to 20 seconds."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    i = 0
    while seconds > 0:
        length_s = rng.uniform(2, 20)
        noise = rng.integers(-1000, 1000, round(length_s * 16_000), dtype=np.int16)
        soundfile.write(folder / f"{i:05d}.wav", noise, 16_000)
        seconds, i = seconds - length_s, i + 1


def resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


if __name__ == "__main__":
    main()
