"""`ModuleEncoder`, the encoder of any torch module."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.encoders.base import EncoderDescription, EncoderSettings
from pipeline.encoders.captured import group_clips, pack_groups, send_clips
from pipeline.encoders.encoder import SpeechEncoder
from pipeline.encoders.modules.building import BuiltModule, ModuleRunner
from pipeline.encoders.modules.definition import ModuleDefinition
from pipeline.encoders.modules.probing import Probe
from pipeline.encoders.settings import PRECISIONS

MODULE = "module"
"""Origin of the weights, and value of `model.source`."""


class ModuleEncoder(SpeechEncoder):
    """Encoder of a torch module; see `SpeechEncoder`.

    Clips run together only where the probe has found that this changes nothing, else one by one.
    """

    final_norm: dict[str, Any] | None = None

    def __init__(
        self,
        definition: ModuleDefinition,
        built: BuiltModule,
        probe: Probe,
        description: EncoderDescription,
        settings: EncoderSettings,
    ) -> None:
        """Use `load_encoder`, which checks the settings."""
        facts = definition.facts() | {"weights": {"sha256": built.sha256}}
        super().__init__(description, settings, weights_source=MODULE, facts=facts)
        self.notes = (_note(definition, probe),)
        self.probe = probe
        self._runner = ModuleRunner(definition, built.module.to(self.device))

    @torch.inference_mode()
    def _encode(
        self,
        waveforms: Sequence[Tensor],
        stats: Sequence[Any | None],
        counts: Sequence[int],
        precision: str,
    ) -> Iterator[Tensor]:
        """Yield the chosen layers; see `SpeechEncoder._encode`."""
        with self._stage(precision, "front_end"):
            shortest = self.probe.shortest_samples
            clips = [
                F.pad(clip, (0, max(0, shortest - len(clip))))
                for clip in send_clips(waveforms, self.device)
            ]
            groups = self._groups([len(clip) for clip in clips])
        with self._stage(precision, "transformer"):
            dtype = PRECISIONS[precision]
            autocast = torch.autocast(self.device.type, dtype, enabled=dtype != torch.float32)

            def run(group: Sequence[int]) -> list[Tensor]:
                with autocast:
                    layers = self._runner([clips[i] for i in group])
                n_padded = self.geometry.n_frames(max(len(clips[i]) for i in group))
                n_frames = max(counts[i] for i in group)
                is_right = layers[0].shape[1] == n_padded  # else `pack_groups` refuses it
                return [
                    layers[layer - 1][:, : n_frames if is_right else None].float()
                    for layer in self.layers
                ]

            packed = pack_groups(groups, counts, run)
        yield from packed

    def _groups(self, lengths: Sequence[int]) -> list[list[int]]:
        """Say which clips run together."""
        if not self.probe.stacks:
            return [[i] for i in range(len(lengths))]
        return group_clips(lengths, padding=self.probe.pads)


def _note(definition: ModuleDefinition, probe: Probe) -> str:
    """Say what was found by running the module, and what was assumed."""
    geometry = probe.geometry
    words = [
        f"{definition.name}: {geometry.frame_rate_hz:g} frames per second, a hop of "
        f"{geometry.hop_samples} samples; one frame needs {geometry.n_samples(1)}"
    ]
    if not probe.field_is_known:
        words.append(
            "a frame depends on the whole clip, so its receptive field is set to "
            f"{geometry.receptive_field_samples} samples (geometry= states another)"
        )
    if not probe.stacks:
        words.append("clips run one by one, because clips in a batch change each other")
    elif not probe.pads:
        words.append("only clips of equal length share a batch")
    return "; ".join(words)
