"""Names of the weights of transformers, translated to those of torchaudio's modules."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from pipeline.encoders.wav2vec2.bundles import ModelSpec

_PLACES = {
    "feature_extractor.": "feature_extractor.",
    "feature_projection.": "encoder.feature_projection.",
    "encoder.": "encoder.transformer.",
}


def torchaudio_names(state: Mapping[str, Tensor], spec: ModelSpec) -> dict[str, Tensor]:
    """Rename the weights of a base model to torchaudio's names, and stack WavLM's projections.

    Args:
        state: State dict of transformers' base model. Weights that only training uses are dropped.
        spec: Architecture of the model.
    """
    renamed = {
        place + name.removeprefix(prefix): tensor
        for name, tensor in state.items()
        for prefix, place in _PLACES.items()
        if name.startswith(prefix)
    }
    if spec.kind == "conformer":  # it has a positional convolution, and does not use it
        return {name: value for name, value in renamed.items() if ".pos_conv_embed." not in name}
    if spec.kind == "wavlm":
        for i in range(spec.n_layers):
            prefix = f"encoder.transformer.layers.{i}.attention."
            for part in ("weight", "bias"):
                stack = [renamed.pop(f"{prefix}{letter}_proj.{part}") for letter in "qkv"]
                renamed[f"{prefix}attention.in_proj_{part}"] = torch.cat(stack)
                renamed[f"{prefix}attention.out_proj.{part}"] = renamed.pop(
                    f"{prefix}out_proj.{part}"
                )
    return renamed
