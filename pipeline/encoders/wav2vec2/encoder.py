"""`Wav2Vec2Encoder`, the encoder of the wav2vec 2.0 family, on packed batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from pipeline.encoders.base import EncoderSettings
from pipeline.encoders.encoder import SpeechEncoder
from pipeline.encoders.kernels import kernels_for
from pipeline.encoders.kernels.base import Pack, wide_dtype
from pipeline.encoders.settings import PRECISIONS, REFERENCE_PRECISION
from pipeline.encoders.wav2vec2.bundles import ModelSpec
from pipeline.encoders.wav2vec2.frontend import Frontend
from pipeline.encoders.wav2vec2.moments import MomentAccumulator, Moments, compute_moments
from pipeline.encoders.wav2vec2.transformer import Transformer
from pipeline.encoders.wav2vec2.weights import LoadedModel
from pipeline.store.format.layers import CONV


class Wav2Vec2Encoder(SpeechEncoder):
    """Encoder of the wav2vec 2.0 family; see `SpeechEncoder`."""

    precisions = (*SpeechEncoder.precisions, REFERENCE_PRECISION)

    def __init__(self, spec: ModelSpec, loaded: LoadedModel, settings: EncoderSettings) -> None:
        """Use `load_encoder`, which checks the settings."""
        super().__init__(
            spec.describe(),
            settings,
            weights_source=loaded.source,
            facts={"architecture": spec.architecture(), "weights": {"sha256": loaded.sha256}},
        )
        self._spec = spec
        self._model = loaded.model.to(self.device)
        self._kernels = kernels_for(self.device)
        self._modules: dict[str, tuple[Frontend, Transformer | None]] = {}
        self.final_norm = self._find_final_norm()

    def _encode(
        self,
        waveforms: Sequence[Tensor],
        stats: Sequence[Moments | None],
        counts: Sequence[int],
        precision: str,
    ) -> Iterator[Tensor]:
        """Return an iterator over the chosen layers; see `SpeechEncoder._encode`."""
        return self._run(waveforms, stats, counts, precision, *self._modules_for(precision))

    @torch.inference_mode()
    def _run(
        self,
        waveforms: Sequence[Tensor],
        moments: Sequence[Moments | None],
        counts: Sequence[int],
        precision: str,
        frontend: Frontend,
        transformer: Transformer | None,
    ) -> Iterator[Tensor]:
        pack = Pack(counts, self.device, self._kernels.row_multiple)
        clock = partial(self._stage, precision)
        with clock("front_end"):
            frames = frontend(waveforms, moments, pack)
        if CONV in self.layers:
            yield frames[: pack.n_frames].to(wide_dtype(frames.dtype))
        if transformer is None:
            return
        for layer, features in enumerate(transformer(frames, pack, clock)):
            if layer in self.layers:
                yield features

    def statistics_accumulator(self) -> MomentAccumulator:
        """Return a new accumulator, for a recording that is decoded block by block."""
        return MomentAccumulator()

    def utterance_stats(self, utterance: Tensor | Moments) -> Moments:
        """Compute the utterance-wide statistics that each window needs.

        Args:
            utterance: All samples, float32 `[n_samples]` at 16 kHz, or their moments, from
                `statistics_accumulator`.
        """
        return compute_moments(utterance) if isinstance(utterance, Tensor) else utterance

    def _modules_for(self, precision: str) -> tuple[Frontend, Transformer | None]:
        """Return front end and transformer in a precision, prepared on first use.

        There is no transformer if only the output of the convolution stack is wanted.
        """
        if precision not in self._modules:
            dtype = PRECISIONS.get(precision, torch.float64)
            parts = self._model, self._spec, self._kernels, dtype
            deepest = self.layers[-1]
            transformer = None if deepest == CONV else Transformer(*parts, depth=deepest)
            self._modules[precision] = Frontend(*parts), transformer
        return self._modules[precision]

    def _find_final_norm(self) -> dict[str, Any] | None:
        if not self._spec.pre_norm:
            return None
        norm: Any = self._model.get_submodule("encoder.transformer.layer_norm")
        return {"weight": norm.weight.cpu(), "bias": norm.bias.cpu(), "eps": norm.eps}
