"""`GeneralEncoder`: an audio encoder of transformers whose blocks are captured by hooks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from copy import deepcopy
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from pipeline.encoders.base import EncoderSettings, StatisticsAccumulator
from pipeline.encoders.captured import CapturedModule, group_clips, pack_groups, send_clips
from pipeline.encoders.encoder import SpeechEncoder
from pipeline.encoders.general.front_ends import pad_to
from pipeline.encoders.general.model import GeneralModel
from pipeline.encoders.settings import PRECISIONS
from pipeline.encoders.wav2vec2.weights import digest

_PROBE_FRAMES = (29, 21)
"""Frames of the clips that show whether padding changes a feature."""
_PROBE_TOLERANCE = 1e-5
_TOGETHER_S = {"cpu": 30.0, "cuda": 480.0}
"""Most audio of one forward pass, padding included, by kind of device."""


class GeneralEncoder(SpeechEncoder):
    """Encoder of the general path; see `SpeechEncoder`.

    Clips of equal length run together. Clips of other lengths are padded only if a probe, made when
    the first such batch arrives, finds that padding changes nothing.
    """

    def __init__(
        self,
        model: GeneralModel,
        module: torch.nn.Module,
        settings: EncoderSettings,
        *,
        weights_source: str,
    ) -> None:
        """Use `load_encoder`, which checks the settings.

        Args:
            model: The checkpoint.
            module: Its encoder, float32, in evaluation mode.
            settings: Checked settings.
            weights_source: Origin of the weights.
        """
        super().__init__(
            model.describe(),
            settings,
            weights_source=weights_source,
            facts={
                "architecture": model.architecture(),
                "weights": {"sha256": digest(module)},
            },
        )
        self._model, self._front_end, self._kind = model, model.front_end, model.kind
        self._module = module.to(self.device)
        self._points = [model.point_of(layer) for layer in self.layers]
        self._captured: dict[torch.dtype, CapturedModule] = {}
        self.final_norm = self._find_final_norm()

    def statistics_accumulator(self) -> StatisticsAccumulator:
        """Return a new accumulator, for a recording that is decoded block by block."""
        return self._front_end.accumulator()

    def utterance_stats(self, utterance: Any) -> Any:
        """Compute the utterance-wide statistics that each window needs; None if none is needed.

        Args:
            utterance: All samples, float32 `[n_samples]`, or what the accumulator's `finish`
                returned.
        """
        if not isinstance(utterance, Tensor):
            return utterance
        accumulator = self._front_end.accumulator()
        with self._settings("fp32"):
            accumulator.update(utterance)
            return accumulator.finish()

    @torch.inference_mode()
    def _encode(
        self,
        waveforms: Sequence[Tensor],
        stats: Sequence[Any | None],
        counts: Sequence[int],
        precision: str,
    ) -> Iterator[Tensor]:
        """Yield the chosen layers; see `SpeechEncoder._encode`."""
        captured = self._captured_in(PRECISIONS[precision])
        with self._stage(precision, "front_end"):
            inputs = [
                self._front_end.features(clip, None if stat is None else stat.to(self.device))
                for clip, stat in zip(send_clips(waveforms, self.device), stats, strict=True)
            ]
        with self._stage(precision, "transformer"):
            lengths = [len(values) for values in inputs]
            padding = len(set(lengths)) > 1 and self._padding_changes_nothing
            groups = self._limited(group_clips(lengths, padding=padding), counts)
            layers = pack_groups(
                groups, counts, lambda group: self._forward(captured, inputs, counts, group)
            )
        yield from layers

    def _forward(
        self,
        captured: CapturedModule,
        inputs: Sequence[Tensor],
        counts: Sequence[int],
        group: Sequence[int],
    ) -> list[Tensor]:
        """Run one group of clips: for each layer float32 `[clips, frames of the longest, dim]`."""
        lengths = [len(inputs[i]) for i in group]
        longest = max(lengths)
        batch = torch.stack([pad_to(inputs[i], longest) for i in group])
        frames = [counts[i] for i in group]
        dtype = next(captured.module.parameters()).dtype
        layers = captured(**self._kind.arguments(batch.to(dtype), lengths, frames))
        if self._front_end.window_samples is not None:
            layers = [layer[:, : max(frames)] for layer in layers]
        return [layer.float() for layer in layers]

    def _limited(self, groups: list[list[int]], counts: Sequence[int]) -> list[list[int]]:
        """Cut groups that hold more audio than one forward pass takes."""
        most_s = _TOGETHER_S.get(self.device.type, _TOGETHER_S["cpu"])
        window = self._front_end.window_samples
        limited = []
        for group in groups:
            clip_s = max(counts[i] for i in group) / self.frame_rate_hz
            if window is not None:
                clip_s = window / self.sample_rate_hz
            size = max(1, int(most_s / clip_s))
            limited += [group[at : at + size] for at in range(0, len(group), size)]
        return limited

    @cached_property
    def _padding_changes_nothing(self) -> bool:
        """Whether a clip has the same features with and without padding behind it, in fp32."""
        if not self._kind.can_pad:
            return False
        generator = torch.Generator().manual_seed(0)
        counts = _PROBE_FRAMES
        inputs = [
            self._front_end.features(0.1 * torch.randn(n, generator=generator), None)
            for n in (self.geometry.n_samples(count) for count in counts)
        ]
        inputs = [values.to(self.device) for values in inputs]
        captured = self._captured_in(torch.float32)
        # The batch that asks may be one in TF32, whose rounding is larger than the tolerance.
        with self._settings("fp32"):
            together = self._forward(captured, inputs, counts, range(len(counts)))
            apart = [self._forward(captured, inputs, counts, [i]) for i in range(len(counts))]
        for i, count in enumerate(counts):
            for found, alone in zip(together, apart[i], strict=True):
                error = (found[i, :count] - alone[0]).abs().max()
                if not error <= _PROBE_TOLERANCE * alone.abs().max():
                    return False
        return True

    def _captured_in(self, dtype: torch.dtype) -> CapturedModule:
        """Return the encoder with its products in a dtype, prepared on first use."""
        if dtype not in self._captured:
            module = self._module if dtype == torch.float32 else deepcopy(self._module).to(dtype)
            self._captured[dtype] = CapturedModule(module, self._points)
        return self._captured[dtype]

    def _find_final_norm(self) -> dict[str, Any] | None:
        if self._model.final_norm is None:
            return None
        norm: Any = self._module.get_submodule(self._model.final_norm)
        bias = torch.zeros_like(norm.weight) if norm.bias is None else norm.bias
        return {"weight": norm.weight.cpu(), "bias": bias.cpu(), "eps": norm.eps}
