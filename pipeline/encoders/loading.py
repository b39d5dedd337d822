"""`load_encoder`: an encoder by name, for programs that use it without a store."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import cast

from pipeline.config import ModelConfig
from pipeline.config.models import source_of
from pipeline.encoders.encoder import SpeechEncoder
from pipeline.encoders.registry import family_of, pin_model
from pipeline.encoders.settings import resolve_settings
from pipeline.encoders.wav2vec2.bundles import registry


def load_encoder(
    name: str | Path = "hubert_base",
    weights: str | Path = "pretrained",
    *,
    source: str | None = None,
    layers: str | Sequence[int | str] = "all",
    precision: str = "auto",
    device: str = "auto",
    seed: int = 0,
    max_window_s: float | None = None,
    context_s: float | None = None,
    revision: str | None = None,
    allow_pickle: bool = False,
    language: str | None = None,
) -> SpeechEncoder:
    """Load an encoder by the name of its model.

    Args:
        name: Short name of the model, as listed by `strata models`, or of an encoder from
            `register_encoder`; a hub id, or a directory with config.json,
            preprocessor_config.json and model.safetensors; or the path of an original checkpoint of
            fairseq, unilm or s3prl (.pt).
        weights: "pretrained" (downloaded), "random" (features mean nothing), or for a model with a
            short name the path of a file (.pt, .pth, .safetensors): a state dict with torchaudio's
            names, or an original checkpoint of this model.
        source: Kind of checkpoint, as `model.source`: "torchaudio", "huggingface" or "checkpoint".
            None takes that of the name: a short name, a .pt, .pth or .ckpt file, a directory or
            an id with a slash.
        layers: "all" for 1..N, "superb" for 0..N, or a list of numbers or names.
        precision: "fp32", "tf32" (CUDA only), "bf16", "fp16", or "auto": fp32 on a CPU, fp16 on
            CUDA.
        device: "cpu", "cuda", "cuda:1" …, or "auto": CUDA where available.
        seed: Seed of random weights.
        max_window_s: Longest window in seconds; longer utterances are encoded in overlapping
            windows. None for the model's default.
        context_s: Context on each side of a window in seconds, encoded and discarded. None for the
            model's default.
        revision: Branch, tag or commit of a checkpoint on the hub; the default branch if None.
        allow_pickle: Whether to read pytorch_model.bin if there is no safetensors file.
        language: Language of the adapters of a checkpoint on the hub, as MMS has them ("fra"); None
            for the adapters of its main weights.

    Raises:
        ConfigError: A setting is unknown or out of range, or there is no such checkpoint.
        WeightsError: The weights cannot be fetched or read, or do not fit the model.

    Example:
        >>> encoder = load_encoder("tiny", weights="random")
        >>> [features] = encoder([torch.zeros(16_000)])
        >>> features.shape  # [n_layers, n_frames, dim]
        torch.Size([12, 49, 48])
    """
    model = ModelConfig(
        name=str(name),
        source=source_of(str(name), registry()) if source is None else source,
        weights=str(weights),
        seed=seed,
        revision=revision,
        allow_pickle=allow_pickle,
        language=language,
    )
    model = pin_model(model)
    family = family_of(model)
    settings = resolve_settings(
        family.describe(model), layers, precision, device, max_window_s, context_s
    )
    return cast(SpeechEncoder, family.load(model, settings))
