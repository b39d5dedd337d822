"""Peers: the loops that people write today, on the same files and weights.

plain          for each clip: torchaudio `model.extract_features(clip)`; `torch.save` of all layers
transformers   the model of Hugging Face transformers, SDPA, on zero-padded batches of clips sorted
               by length; the forward pass only: nothing is copied to the host or saved
s3prl          s3prl's upstream expert around that model, on the same batches, forward pass only
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

from gpu.clips import Clips, read_clip
from gpu.limits import DTYPES, synchronize
from pipeline.encoders.wav2vec2.bundles import ModelSpec

HF_BATCH = {"cpu": 4, "cuda": 32}
HF_CLASSES = {
    "hubert": (transformers.HubertModel, transformers.HubertConfig),
    "wavlm": (transformers.WavLMModel, transformers.WavLMConfig),
    "wav2vec2": (transformers.Wav2Vec2Model, transformers.Wav2Vec2Config),
}
"""Model and configuration of each family, by the start of the model's short name."""


class PlainLoop:
    """A loop over the clips with torchaudio's model, one clip at a time, that saves the layers."""

    def __init__(
        self, spec: ModelSpec, weights: Path, clips: Clips, device: str, precision: str
    ) -> None:
        self._spec, self._clips, self._device = spec, clips, device
        self._dtype = DTYPES[precision]
        model = spec.build()
        model.load_state_dict(torch.load(weights))
        self._model = model.to(device, self._dtype)

    def __call__(self, folder: Path, n_clips: int | None = None) -> None:
        """Encode the first `n_clips` clips, or all, and save their layers to `folder`."""
        with torch.inference_mode():
            for file in self._clips.files[:n_clips]:
                waveform = normalized(self._spec, read_clip(file, self._spec.sample_rate_hz))
                layers, _ = self._model.extract_features(
                    waveform[None].to(self._device, self._dtype)
                )
                stored = [layer[0].half().cpu() for layer in layers]
                torch.save(stored, folder / f"{file.stem}.pt")


class TransformersLoop:
    """The model of Hugging Face transformers on padded batches, without saving anything."""

    def __init__(self, spec: ModelSpec, clips: Clips, device: str, precision: str) -> None:
        self._device, self._dtype = device, DTYPES[precision]
        self._batches = list(padded_batches(spec, clips, HF_BATCH[device]))
        self.attention, model = huggingface_model(spec)
        self._model = model.to(device, self._dtype)

    def __call__(self, n_clips: int | None = None) -> None:
        """Encode the batches that begin with the first `n_clips` clips, or all."""
        n_done = 0
        with torch.inference_mode():
            for padded, lengths in self._batches:
                if n_clips is not None and n_done >= n_clips:
                    break
                mask = torch.arange(padded.shape[1]) < lengths[:, None]
                self._model(
                    padded.to(self._device, self._dtype),
                    mask.long().to(self._device),
                    output_hidden_states=True,
                )
                n_done += len(lengths)
        synchronize(self._device)


class S3prlLoop:
    """s3prl's upstream expert on the same batches, without saving anything."""

    def __init__(
        self, spec: ModelSpec, clips: Clips, device: str, make_expert: Callable[..., Any], at: Path
    ) -> None:
        self._batches = list(padded_batches(spec, clips, HF_BATCH[device]))
        self._device = device
        self._expert = make_expert(huggingface_model(spec)[1], at).to(device)

    def __call__(self, n_clips: int | None = None) -> None:
        """Encode the batches that begin with the first `n_clips` clips, or all."""
        n_done = 0
        with torch.inference_mode():
            for padded, lengths in self._batches:
                if n_clips is not None and n_done >= n_clips:
                    break
                rows = zip(padded, lengths.tolist(), strict=True)
                self._expert([row[:length].to(self._device) for row, length in rows])
                n_done += len(lengths)
        synchronize(self._device)


def normalized(spec: ModelSpec, waveform: Tensor) -> Tensor:
    """Normalise a waveform [n_samples] if the model expects it."""
    if not spec.normalize_waveform:
        return waveform
    return torch.nn.functional.layer_norm(waveform, waveform.shape, eps=spec.waveform_norm_eps)


def padded_batches(spec: ModelSpec, clips: Clips, size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield zero-padded batches of the clips, sorted by length.

    Yields:
        Waveforms float32 [batch, n_samples] and their lengths int64 [batch].
    """
    rate_hz = spec.sample_rate_hz
    waveforms = [normalized(spec, read_clip(file, rate_hz)) for file in clips.files]
    waveforms.sort(key=len, reverse=True)
    for start in range(0, len(waveforms), size):
        batch = waveforms[start : start + size]
        lengths = torch.tensor([len(waveform) for waveform in batch])
        yield torch.nn.utils.rnn.pad_sequence(batch, batch_first=True), lengths


def huggingface_model(spec: ModelSpec) -> tuple[str, torch.nn.Module]:
    """Build the model of transformers with the architecture of `spec` and random weights.

    Returns:
        The implementation of its attention (SDPA where the model has it), and the model.
    """
    family = next(name for name in (*HF_CLASSES, "") if spec.name.startswith(name))
    model_class, config_class = HF_CLASSES[family or "hubert"]
    given = spec.params
    convolutions = given["extractor_conv_layer_config"] or []
    settings: dict[str, Any] = {
        "hidden_size": given["encoder_embed_dim"],
        "num_hidden_layers": given["encoder_num_layers"],
        "num_attention_heads": given["encoder_num_heads"],
        "intermediate_size": given["encoder_ff_interm_features"],
        "do_stable_layer_norm": given["encoder_layer_norm_first"],
        "feat_extract_norm": "group" if spec.group_norm else "layer",
        "conv_bias": given["extractor_conv_bias"],
        "num_conv_pos_embeddings": given["encoder_pos_conv_kernel"],
        "num_conv_pos_embedding_groups": given["encoder_pos_conv_groups"],
    }
    if convolutions:
        dims, kernels, strides = zip(*convolutions, strict=True)
        settings |= {"conv_dim": dims, "conv_kernel": kernels, "conv_stride": strides}
    for attention in ("sdpa", "eager"):
        try:
            model = model_class._from_config(
                config_class(**settings), attn_implementation=attention
            )
        except ValueError:  # this model has no such attention
            continue
        return attention, model.eval()
    raise AssertionError("every model has eager attention")


def s3prl_expert() -> Callable[[torch.nn.Module, Path], Any] | None:
    """Return a function that makes s3prl's upstream of a model; None without s3prl."""
    try:
        from s3prl.upstream.hf_hubert.expert import UpstreamExpert
    except ImportError:
        return None

    def make(model: torch.nn.Module, folder: Path) -> Any:
        model.save_pretrained(folder)
        transformers.Wav2Vec2FeatureExtractor(do_normalize=False).save_pretrained(folder)
        return UpstreamExpert(str(folder)).eval()

    return make
