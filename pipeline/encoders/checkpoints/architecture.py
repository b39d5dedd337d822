"""Architecture of a checkpoint: from the settings that it states, or from its weights' shapes."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from pipeline.encoders.checkpoints.forms import Settings
from pipeline.encoders.wav2vec2.building import Parts
from pipeline.encoders.wav2vec2.bundles import ModelSpec, registry
from pipeline.encoders.wav2vec2.geometry import CONV_KERNELS, CONV_STRIDES, SAMPLE_RATE_HZ
from pipeline.errors import ConfigError

_MODES = {"default": "group_norm", "layer_norm": "layer_norm"}
_CONVOLUTIONS = "[(512,10,5)] + [(512,3,2)] * 4 + [(512,2,2)] * 2"  # default of all the projects
_TERM = re.compile(r"\[((?:\(\d+,\d+,\d+\),?)+)\](?:\*(\d+))?")
_MOST = 1 << 16  # largest size of a layer; those of the largest model are 1/8 of it
_REQUIRED = {
    "activation_fn": "gelu",
    "layer_type": "transformer",
    "attention_type": "original",
    "conv_type": "default",
    "quantize_input": False,
    "crop_seq_to_multiple": 1,
}
"""Settings that change a feature, with the only value that the encoder computes."""


def spec_of_settings(
    settings: Settings,
    *,
    name: str,
    has_position_bias: bool,
    projection_norm: bool,
    origin: str,
) -> ModelSpec:
    """Translate what a checkpoint states of its model.

    Args:
        settings: The settings.
        name: Name of the model.
        has_position_bias: Whether its weights are those of a WavLM.
        projection_norm: Whether the feature projection starts with a layer norm.
        origin: Origin of the checkpoint, for messages.

    Raises:
        ConfigError: The architecture is not supported, or a setting is no value that it can have.
    """
    facts = _Facts(settings.model, origin)
    for key, required in _REQUIRED.items():
        value = settings.model.get(key)
        if value not in (None, required):
            raise ConfigError(f"{origin} has {key}={value!r:.60}; only {required!r} is supported")
    if (embedding := settings.model.get("task_emb_type")) in ("add", "concat"):
        raise ConfigError(f"{origin} has task_emb_type={embedding!r}, which is not supported")
    for key in ("relative_position_embedding", "gru_rel_pos"):
        if facts.flag(key, False) != has_position_bias:
            raise ConfigError(
                f"{origin} has {key}={not has_position_bias}, and its weights are those of a model "
                f"{'with' if has_position_bias else 'without'} WavLM's gated position bias"
            )
    mode = settings.model.get("extractor_mode") or "default"
    if not isinstance(mode, str) or mode not in _MODES:
        raise ConfigError(
            f"{origin} has extractor_mode={mode!r:.60}; expected {' or '.join(_MODES)}"
        )
    dim, heads = facts.count("encoder_embed_dim", 768), facts.count("encoder_attention_heads", 12)
    groups = facts.count("conv_pos_groups", 16)
    if dim % heads or dim % groups:
        raise ConfigError(
            f"{origin} has {heads} attention heads and {groups} groups of the positional "
            f"convolution, which do not divide encoder_embed_dim={dim}"
        )
    position, kernel, n_convolutions = facts.position()
    params: dict[str, Any] = {
        "extractor_mode": _MODES[mode],
        "extractor_conv_layer_config": facts.convolutions(),
        "extractor_conv_bias": facts.flag("conv_bias", False),
        "encoder_embed_dim": dim,
        "encoder_projection_dropout": 0.0,
        "encoder_pos_conv_kernel": kernel,
        "encoder_pos_conv_groups": groups,
        "encoder_num_layers": facts.count("encoder_layers", 12),
        "encoder_num_heads": heads,
        "encoder_attention_dropout": 0.0,
        "encoder_ff_interm_features": facts.count("encoder_ffn_embed_dim", 3072),
        "encoder_ff_interm_dropout": 0.0,
        "encoder_dropout": 0.0,
        "encoder_layer_norm_first": facts.flag("layer_norm_first", False),
        "encoder_layer_drop": 0.0,
    }
    if has_position_bias:
        params["encoder_num_buckets"] = facts.count("num_buckets", 320)
        params["encoder_max_distance"] = facts.count("max_distance", 1280)
    _check_rate(settings, origin)
    return ModelSpec(
        name=name,
        kind="wavlm" if has_position_bias else "wav2vec2",
        params=MappingProxyType(params),
        normalize_waveform=_normalises(settings, mode),
        parts=Parts(projection_norm, position, n_convolutions),
    )


def states_normalization(settings: Settings) -> bool:
    """Return whether the settings say if waveforms are normalised."""
    return isinstance(settings.task_value("normalize"), bool)


def spec_of_shapes(shapes: Mapping[str, Sequence[int]], name: str) -> ModelSpec | None:
    """Find the architecture of weights without settings among torchaudio's models.

    Heads, the order of norms and the normalisation of waveforms are not visible in shapes. All of
    torchaudio's models whose weights have the same shapes agree on them.

    Args:
        shapes: Shapes of the weights by torchaudio's names.
        name: Name of the model.

    Returns:
        The architecture; None if no model of torchaudio has these shapes.
    """
    for spec in registry().values():
        if _fits(spec, shapes):
            return ModelSpec(
                name=name,
                kind=spec.kind,
                params=spec.params,
                normalize_waveform=spec.normalize_waveform,
            )
    return None


def _fits(spec: ModelSpec, shapes: Mapping[str, Sequence[int]]) -> bool:
    """Compare quickly, before the model is built."""
    blocks = f"encoder.transformer.layers.{spec.n_layers - 1}.final_layer_norm.weight"
    if tuple(shapes.get(blocks, ())) != (spec.dim,):
        return False
    expected = {key: tuple(tensor.shape) for key, tensor in spec.build("meta").state_dict().items()}
    return {key: tuple(shape) for key, shape in shapes.items()} == expected


def _normalises(settings: Settings, mode: str) -> bool:
    value = settings.task_value("normalize")
    return value if isinstance(value, bool) else mode == "layer_norm"


def _check_rate(settings: Settings, origin: str) -> None:
    rate_hz = settings.task_value("sample_rate")
    if rate_hz not in (None, SAMPLE_RATE_HZ):
        raise ConfigError(
            f"{origin} was trained at {rate_hz!r:.20} Hz; only models for {SAMPLE_RATE_HZ} Hz are "
            "supported; one of another rate is taken as a module of your own with "
            f"sample_rate_hz={rate_hz!r:.20}: docs/add_an_encoder.md"
        )


class _Facts:
    """Settings of a model, with their types checked."""

    def __init__(self, values: Mapping[str, Any], origin: str) -> None:
        self._values = values
        self._origin = origin

    def count(self, key: str, default: int) -> int:
        value = self._values.get(key)
        if value is None:
            return default
        if type(value) is not int or not 1 <= value <= _MOST:
            raise ConfigError(f"{self._origin} has {key}={value!r:.60}; expected 1 to {_MOST}")
        return value

    def flag(self, key: str, default: bool) -> bool:
        value = self._values.get(key)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise ConfigError(f"{self._origin} has {key}={value!r:.60}; expected true or false")
        return value

    def position(self) -> tuple[str, int, int]:
        """Return the kind of positional convolution, its kernel, and the number of convolutions."""
        kernel, depth = self.count("conv_pos", 128), self.count("pos_conv_depth", 1)
        if depth > 1:
            return "stack", max(3, kernel // depth), depth
        return (
            ("batch_norm" if self.flag("conv_pos_batch_norm", False) else "weight_norm"),
            kernel,
            1,
        )

    def convolutions(self) -> list[tuple[int, int, int]]:
        """Read the list of channels, kernels and strides, which fairseq keeps as an expression."""
        text = self._values.get("conv_feature_layers")
        text = text or self._values.get("extractor_conv_feature_layers") or _CONVOLUTIONS
        layers: list[tuple[int, int, int]] = []
        terms = str(text).replace(" ", "")[:400].split("+")
        for term in terms:
            match = _TERM.fullmatch(term)
            if match is None or int((match[2] or "1")[:4]) > len(CONV_KERNELS):
                layers = []
                break
            numbers = [int(number[:6]) for number in re.findall(r"\d+", match[1])]
            triples = list(zip(numbers[::3], numbers[1::3], numbers[2::3], strict=True))
            layers += triples * int(match[2] or 1)
        expected = list(zip(CONV_KERNELS, CONV_STRIDES, strict=True))
        if [layer[1:] for layer in layers] != expected or not all(
            1 <= layer[0] <= _MOST for layer in layers
        ):
            raise ConfigError(
                f"{self._origin} has conv_feature_layers={str(text)!r:.100}; only the kernels "
                f"{list(CONV_KERNELS)} and the strides {list(CONV_STRIDES)} are supported"
            )
        return layers
