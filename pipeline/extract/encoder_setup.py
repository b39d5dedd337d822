"""The encoder that a configuration asks for, and what a store has to know of it."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from pipeline.audio.decode import decode_blocks
from pipeline.config import Config, ModelConfig
from pipeline.encoders.selfcheck import SelfCheck, selfcheck
from pipeline.encoders.wav2vec2.bundles import ModelSpec, find_model
from pipeline.encoders.wav2vec2.encoder import SpeechEncoder, choose_layers, load_encoder
from pipeline.encoders.wav2vec2.huggingface import find_hf_spec, load_hf_encoder
from pipeline.encoders.windows import (
    DEFAULT_CONTEXT_S,
    DEFAULT_MAX_WINDOW_S,
    FRAME_RATE_HZ,
    SAMPLE_RATE_HZ,
)
from pipeline.errors import AudioError, ConfigError, SourceError
from pipeline.extract.planning import Windowing
from pipeline.sources.hub import Source, open_source

BATCH_S = {"cpu": 20.0, "cuda": 320.0}
"""Audio seconds of a padded batch, where none are asked for. On CPUs 15 to 60 are equally fast, and
memory follows them."""
CHECK_CLIPS = 3
CHECK_CLIP_S = 5.0
FULL_CHECK_CLIPS = 8


def find_spec(model: ModelConfig) -> ModelSpec:
    """Settings of the configured model, without its weights.

    Raises:
        ConfigError: No such model.
        WeightsError: The checkpoint cannot be found.
    """
    if model.source == "huggingface":
        return find_hf_spec(_hf_name(model), model.revision)
    if model.source != "torchaudio":
        raise ConfigError(f"model.source is {model.source!r}; expected torchaudio or huggingface")
    return find_model(_name(model))


def encoder_loader(config: Config, device: str) -> Callable[..., SpeechEncoder]:
    """What makes the configured encoder, in any process; it pickles.

    Args:
        config: Model, layers, precision and windows.
        device: Where it computes; may be overridden by `device=` in the call.
    """
    model, extract = config.model, config.extract
    windows = windowing(config)
    precision = extract.precision
    if precision == "auto":
        precision = "fp16" if device == "cuda" else "fp32"
    settings: dict[str, Any] = {
        "layers": extract.layers,
        "precision": precision,
        "device": device,
        "max_window_s": windows.max_window_s,
        "context_s": windows.context_s,
    }
    if model.source == "huggingface":
        return partial(
            load_hf_encoder,
            _hf_name(model),
            model.revision,
            allow_pickle=model.allow_pickle,
            **settings,
        )
    return partial(load_encoder, _name(model), model.weights, seed=model.seed, **settings)


def windowing(config: Config) -> Windowing:
    """How the configured encoder treats long utterances."""
    longest, context = config.extract.max_window_s, config.extract.context_s
    return Windowing(
        SAMPLE_RATE_HZ,
        DEFAULT_MAX_WINDOW_S if longest is None else longest,
        DEFAULT_CONTEXT_S if context is None else context,
    )


def batch_frames(config: Config, device: str) -> int:
    """Bound on the padded frames of a batch."""
    seconds = config.extract.max_batch_s or BATCH_S[device]
    return max(1, round(seconds * FRAME_RATE_HZ))


def final_norm(encoder: SpeechEncoder) -> dict[str, Any] | None:
    """The norm that a pre-norm model's last layer has not been through, ready for JSON."""
    norm = encoder.final_norm
    if norm is None or encoder.n_model_layers not in encoder.layers:
        return None
    return {
        "layer": encoder.n_model_layers,
        "weight": norm["weight"].tolist(),
        "bias": norm["bias"].tolist(),
        "eps": norm["eps"],
    }


def savings(config: Config) -> str | None:
    """What a choice of layers saves, in a line for people; None if it is all of them."""
    spec = find_spec(config.model)
    layers = choose_layers(config.extract.layers, spec.n_layers)
    if len(layers) >= spec.n_layers:
        return None
    deepest = max(layers)
    blocks = (
        f"stops after block {deepest} of {spec.n_layers}"
        if deepest < spec.n_layers
        else f"runs all {spec.n_layers} blocks"
    )
    space = 1 - len(layers) / spec.n_layers
    return f"layers {list(layers)}: {blocks} and takes {space:.0%} less space than all of them"


def short_selfcheck(encoder: SpeechEncoder, source: Source) -> SelfCheck | None:
    """Checks the encoder on the starts of a few readable clips of the dataset.

    Returns:
        The result; None if there is nothing readable among the first rows.
    """
    clips = check_clips(source, encoder.sample_rate_hz, CHECK_CLIPS, CHECK_CLIP_S)
    # Of unequal lengths, so that there is padding that could leak.
    clips = [clip[: max(1, len(clip) // (i + 1))] for i, clip in enumerate(clips)]
    return selfcheck(encoder, clips) if clips else None


def full_selfcheck(config: Config, device: str) -> SelfCheck:
    """Checks the configured encoder on clips of the dataset, or on made ones if none is given.

    The clips are of mixed lengths, so that a batch of them holds padding.
    """
    encoder = encoder_loader(config, device)()
    if config.dataset.path or config.dataset.name:
        source = open_source(config.dataset)
        clips = check_clips(source, encoder.sample_rate_hz, FULL_CHECK_CLIPS, encoder.max_window_s)
        if not clips:
            raise SourceError("the dataset has no readable clip among its first rows")
    else:
        clips = made_clips(encoder.sample_rate_hz)
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
    for block in decode_blocks(source.audio(row), sample_rate_hz):
        blocks.append(block)
        held += len(block)
        if held >= n_samples:
            break
    return torch.cat(blocks)[:n_samples]


def _name(model: ModelConfig) -> str:
    if model.name is None:
        raise ConfigError("no model.name is given; say model=hubert_base, or see `strata models`")
    return model.name


def _hf_name(model: ModelConfig) -> str:
    if model.name is None:
        raise ConfigError("model=hf needs model.name=ID_OR_DIR, a hub id or a directory")
    return model.name
