"""Strata's own rows: the encoder alone, and one worker in each executor."""

from __future__ import annotations

import shutil
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import cached_property, partial
from pathlib import Path

import torch
from torch import Tensor

from gpu.clips import Clips
from gpu.limits import synchronize
from pipeline.audio.decode import decode
from pipeline.config import Config, load_config
from pipeline.encoders.base import Encoder
from pipeline.extract.encoder_setup import EncoderSetup, resolve_encoder_setup
from pipeline.extract.executors.base import Executor
from pipeline.extract.executors.opening import open_executor
from pipeline.extract.messages import Job, UnitTask
from pipeline.extract.planning.planner import plan_source
from pipeline.extract.resources import find_resources
from pipeline.extract.stages.decode import Decoder, Utterance
from pipeline.extract.stages.encode import EncodeStage
from pipeline.extract.stages.page_locked import allocator
from pipeline.extract.stages.timing import Stopwatch
from pipeline.extract.worker import Worker
from pipeline.sources.opening import open_source
from pipeline.store.backend.opening import open_backend
from pipeline.store.coordination.limiting_stage import StageTotals
from pipeline.store.documents import write_group
from pipeline.store.format.layout import KEPT, Layout
from pipeline.store.format.plan import Plan
from pipeline.store.write.buffer import UnitBuffer

UNIT_LIMIT_S = 3600.0
UNIT_FRAMES = {"cpu": 2048, "cuda": None}
"""Frames per unit. On a CPU those of the longest clip, so that a minute of audio is several units;
None for the default of `strata extract`."""


class Extraction:
    """Clips, plan and settings that all rows share.

    Attributes:
        setup: The encoder's settings, in the precision of the workers.
        plan: The units.
        layout: Shapes of the store.
        threads: CPU threads of a worker.
    """

    def __init__(
        self, model: str, weights: Path, clips: Clips, device: str, precision: str, threads: int
    ) -> None:
        self._overrides = [
            "dataset=audiofolder",
            f"dataset.path={clips.folder}",
            f"model={model}",
            f"model.weights={weights}",
            f"engine.device={device}",
            f"engine.threads={threads}",
        ]
        self.device, self.threads = device, threads
        self.setup = self.setup_for(precision)
        self.source = open_source(self.setup.config.dataset)
        frames_per_unit = UNIT_FRAMES[device]
        self.plan: Plan = plan_source(self.source, self.setup.windows, frames_per_unit)
        self.layout = Layout(
            self.setup.layers,
            self.setup.description.dim,
            self.plan.frames_per_unit,
            self.plan.utterances_per_slot,
        )

    def config(self, precision: str, engine: str) -> Config:
        """Return the configuration of `strata extract` for these clips."""
        return load_config(
            [*self._overrides, f"extract.precision={precision}", f"engine={engine}", *_one(engine)]
        )

    def setup_for(self, precision: str) -> EncoderSetup:
        """Return the encoder's settings in a precision."""
        return resolve_encoder_setup(self.config(precision, "inline"))

    @cached_property
    def buffer(self) -> UnitBuffer:
        """Buffer of a unit, for the rows without a worker."""
        return UnitBuffer(self.layout, allocator(torch.device(self.device)))

    @cached_property
    def decoded(self) -> list[list[Utterance]]:
        """The decoded utterances of every unit."""
        decoder = Decoder(
            self.source.config, self.source.segment, decode, self.load_encoder("fp32"), self.threads
        )
        try:
            return [decoder.take(task) for task in self.tasks()]
        finally:
            decoder.close()

    def load_encoder(self, precision: str) -> Encoder:
        """Load the encoder in a precision."""
        return self.setup_for(precision).loader(self.device)()

    def tasks(self) -> list[UnitTask]:
        """Return the first attempt at every unit."""
        return [
            UnitTask(unit, unit, 1, self.plan.unit_rows(unit)) for unit in range(self.plan.n_units)
        ]

    def job(self, root: Path, layout: Layout) -> Job:
        """Return the job of a worker that writes to `root`."""
        return Job(
            open_backend(root),
            layout,
            self.setup.config.dataset,
            self.setup.loader(self.device),
            self.setup.batch_frames(self.device),
            self.threads,
        )


def _one(engine: str) -> list[str]:
    return ["engine.workers=1"] if engine == "ray" else []


class EncoderAlone:
    """The worker's encode stage: from decoded clips in memory to layers in the unit's buffer."""

    def __init__(self, extraction: Extraction, encoder: Encoder) -> None:
        self._extraction = extraction
        self._stage = EncodeStage(
            encoder,
            extraction.layout,
            extraction.setup.batch_frames(extraction.device),
            Stopwatch(encoder.device),
        )

    def __call__(self, n_units: int | None = None) -> None:
        """Encode the first `n_units` units, or all."""
        for unit in self._extraction.decoded[:n_units]:
            items = [replace(item) for item in unit]  # the stage releases the waveforms
            self._stage.place(items)
            self._stage.encode(items, self._extraction.buffer, lambda item, statistics: None)
        synchronize(self._extraction.device)


class OneWorker:
    """One worker, from audio files to a committed store, in an executor.

    Attributes:
        root: The store.
        totals: Sums over the units of the last run.
        wall_s: Duration of the last run.
    """

    def __init__(
        self, extraction: Extraction, root: Path, engine: str, keep: tuple[str, ...] = KEPT
    ) -> None:
        """Start the executor.

        Args:
            extraction: Clips and settings.
            root: The store to write.
            engine: "inline" or "ray".
            keep: What is stored.
        """
        self._extraction, self.root = extraction, root
        self._layout = replace(extraction.layout, keep=keep)
        config = extraction.config(extraction.setup.config.extract.precision, engine)
        resources = find_resources(config.engine, extraction.plan.n_units)
        make_worker = partial(Worker, extraction.job(root, self._layout))
        self._executor: Executor = open_executor(config.engine, resources, make_worker)
        self.totals, self.wall_s = StageTotals(), 0.0

    def prepare(self) -> None:
        """Make an empty store."""
        shutil.rmtree(self.root, ignore_errors=True)
        n_units = self._extraction.plan.n_units
        version = self._layout.format_version
        write_group(self.root, self._layout, n_units, {"format_version": version})

    def __call__(self, n_units: int | None = None) -> None:
        """Extract the first `n_units` units, or all.

        Raises:
            RuntimeError: A unit failed, or an utterance was quarantined.
        """
        waiting = deque(self._extraction.tasks()[:n_units])
        n_in_flight = 0
        self.totals = StageTotals()
        began = time.perf_counter()
        while waiting or n_in_flight:
            while waiting and self._executor.has_room():
                self._executor.submit(waiting.popleft(), UNIT_LIMIT_S)
                n_in_flight += 1
            for outcome in self._executor.poll(1.0):
                n_in_flight -= 1
                report = outcome.report
                if report is None:
                    raise RuntimeError(f"unit {outcome.task.unit} failed") from outcome.error
                if report.n_quarantined:
                    raise RuntimeError(f"unit {report.unit}: an utterance was quarantined")
                self.totals.add(asdict(report))
        self.wall_s = time.perf_counter() - began

    def stages(self) -> str:
        """Describe what limited the last run, with the seconds of each stage, of all threads."""
        seconds = ", ".join(f"{name} {spent:.2f}" for name, spent in self.totals.seconds.items())
        return f"{self.totals.limited_by(self.wall_s)} ({self.wall_s:.2f} s: {seconds})"

    def close(self) -> None:
        """Stop the executor and remove the store."""
        self._executor.close()
        shutil.rmtree(self.root, ignore_errors=True)


def errors(
    reference: Sequence[Sequence[Tensor]], encoder: Encoder, waveforms: Sequence[Tensor]
) -> float:
    """Return the largest error of a layer: rms of the error / rms of the layer.

    Args:
        reference: For each clip its layers, float64 [n_frames, dim].
        encoder: Encoder to check.
        waveforms: The clips, at the encoder's rate.
    """
    worst = 0.0
    for layers, features in zip(reference, encoder(waveforms), strict=True):  # type: ignore[operator]
        for expected, found in zip(layers, features.double(), strict=True):
            error = (found - expected).square().mean().sqrt() / expected.square().mean().sqrt()
            worst = max(worst, float(error))
    return worst


@torch.inference_mode()
def reference_layers(model: torch.nn.Module, waveforms: Sequence[Tensor]) -> list[list[Tensor]]:
    """Compute the layers of each clip alone, in float64 on the CPU, with torchaudio's model.

    Args:
        model: The model; it is left in float64.
        waveforms: The clips, normalised if the model expects it.
    """
    model.double()
    found = []
    for waveform in waveforms:
        layers, _ = model.extract_features(waveform[None].double())
        found.append([layer[0] for layer in layers])
    return found
