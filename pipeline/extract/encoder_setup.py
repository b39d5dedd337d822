"""The encoder that a configuration asks for, and what a store has to know of it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from pipeline.audio.decode import decode_blocks
from pipeline.config import Config
from pipeline.encoders.base import Encoder, EncoderDescription, EncoderFamily, EncoderSettings
from pipeline.encoders.registry import find_family
from pipeline.encoders.selfcheck import SelfCheck, selfcheck
from pipeline.encoders.settings import choose_layers, choose_precision, choose_windows
from pipeline.encoders.windows import Windowing
from pipeline.errors import AudioError, SourceError
from pipeline.extract.resources import check_engine
from pipeline.sources.base import Source
from pipeline.sources.opening import open_source
from pipeline.store.format.geometry import FrameGeometry

BATCH_S = {"cpu": 20.0, "cuda": 320.0}
"""Audio seconds of a padded batch, where none are asked for. On CPUs 15 to 60 are equally fast, and
memory follows them."""
CHECK_CLIPS = 3
CHECK_CLIP_S = 5.0
FULL_CHECK_CLIPS = 8


@dataclass(frozen=True)
class EncoderSetup:
    """The configured encoder, checked, before its weights are loaded.

    Attributes:
        config: The configuration.
        family: Family that loads the encoder.
        description: What is known of the encoder.
        layers: Layers to extract, ascending.
        windows: How long utterances are cut.
    """

    config: Config
    family: EncoderFamily
    description: EncoderDescription
    layers: tuple[int, ...]
    windows: Windowing

    @property
    def geometry(self) -> FrameGeometry:
        """Which samples a frame sees."""
        return self.description.geometry

    def loader(self, device: str, local_device: str | None = None) -> Callable[[], Encoder]:
        """Return a function that loads the encoder in any process; it pickles.

        Args:
            device: Device of the workers; decides the precision where it is "auto".
            local_device: Device to load on, if it is another one.
        """
        precision = choose_precision(self.config.extract.precision, device)
        settings = EncoderSettings(self.layers, precision, local_device or device, self.windows)
        return partial(self.family.load, self.config.model, settings)

    def batch_frames(self, device: str) -> int:
        """Return the bound on the padded frames of a batch."""
        seconds = self.config.extract.max_batch_s or BATCH_S[device]
        return max(1, round(seconds * self.geometry.frame_rate_hz))

    def final_norm(self, encoder: Encoder) -> dict[str, Any] | None:
        """Return the norm that a pre-norm model's last layer has not been through, for JSON."""
        norm = encoder.final_norm
        if norm is None or self.description.n_layers not in encoder.layers:
            return None
        return {
            "layer": self.description.n_layers,
            "weight": norm["weight"].tolist(),
            "bias": norm["bias"].tolist(),
            "eps": norm["eps"],
        }

    def describe_layers(self) -> str | None:
        """Report in one line what a choice of layers saves; None if all layers are extracted."""
        n_layers, deepest = self.description.n_layers, max(self.layers)
        if len(self.layers) >= n_layers:
            return None
        blocks = (
            f"stops after block {deepest} of {n_layers}"
            if deepest < n_layers
            else f"runs all {n_layers} blocks"
        )
        space = 1 - len(self.layers) / n_layers
        return (
            f"layers {list(self.layers)}: {blocks} and takes {space:.0%} less space than all of "
            "them"
        )


def check_settings(config: Config) -> EncoderSetup:
    """Check every setting that can be checked without data or weights.

    Every verb that takes such settings calls this first.

    Raises:
        ConfigError: A setting is wrong.
        WeightsError: The configuration of a Hugging Face checkpoint cannot be fetched.
    """
    check_engine(config.engine)
    model, extract = config.model, config.extract
    family = find_family(model.source)
    description = family.describe(model)
    choose_precision(extract.precision, "cpu")
    return EncoderSetup(
        config,
        family,
        description,
        choose_layers(extract.layers, description.n_layers),
        choose_windows(description, extract.max_window_s, extract.context_s),
    )


def short_selfcheck(encoder: Encoder, source: Source) -> SelfCheck | None:
    """Checks the encoder on the starts of a few readable clips of the dataset.

    Returns:
        The result; None if there is nothing readable among the first rows.
    """
    clips = check_clips(source, encoder.geometry.sample_rate_hz, CHECK_CLIPS, CHECK_CLIP_S)
    # Of unequal lengths, so that there is padding that could leak.
    clips = [clip[: max(1, len(clip) // (i + 1))] for i, clip in enumerate(clips)]
    return selfcheck(encoder, clips) if clips else None


def full_selfcheck(config: Config, device: str) -> SelfCheck:
    """Checks the configured encoder on clips of the dataset, or on made ones if none is given.

    The clips are of mixed lengths, so that a batch of them holds padding.
    """
    encoder = check_settings(config).loader(device)()
    rate_hz, longest_s = encoder.geometry.sample_rate_hz, encoder.windows.max_window_s
    if config.dataset.path or config.dataset.name:
        source = open_source(config.dataset)
        clips = check_clips(source, rate_hz, FULL_CHECK_CLIPS, longest_s)
        if not clips:
            raise SourceError("the dataset has no readable clip among its first rows")
    else:
        clips = made_clips(rate_hz)
    return selfcheck(encoder, clips)


def made_clips(sample_rate_hz: int) -> list[Tensor]:
    """Voiced sounds from 0.03 to 8 s, the same at every call: float32 [n_samples] each."""
    generator = torch.Generator().manual_seed(0)
    clips = []
    for seconds in (0.03, 0.4, 1.0, 2.5, 4.0, 8.0):
        time_s = torch.arange(round(seconds * sample_rate_hz)) / sample_rate_hz
        pitch_hz = 90 + 160 * float(torch.rand((), generator=generator))
        phase = 2 * math.pi * pitch_hz * (time_s + 0.02 * torch.sin(2 * math.pi * 3 * time_s))
        voiced = torch.stack([torch.sin(k * phase) / k for k in range(1, 8)]).sum(0)
        breath = torch.randn(time_s.shape, generator=generator)
        clips.append(0.1 * voiced + 0.01 * breath)
    return clips


def check_clips(
    source: Source, sample_rate_hz: int, n_clips: int, longest_s: float
) -> list[Tensor]:
    """Starts of the first readable rows of a dataset, at most `n_clips`: float32 [n_samples] each.

    A recording of hours is read only as far as it is needed.
    """
    clips: list[Tensor] = []
    for row in range(min(len(source), 10 * n_clips)):
        if len(clips) == n_clips:
            break
        try:
            clips.append(_start(source, row, sample_rate_hz, round(longest_s * sample_rate_hz)))
        except AudioError:
            continue
    return clips


def _start(source: Source, row: int, sample_rate_hz: int, n_samples: int) -> Tensor:
    blocks, held = [], 0
    for block in decode_blocks(source.segment(row), sample_rate_hz):
        blocks.append(block)
        held += len(block)
        if held >= n_samples:
            break
    return torch.cat(blocks)[:n_samples]
