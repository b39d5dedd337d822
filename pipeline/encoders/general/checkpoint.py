"""Loader of the encoder of a Hugging Face checkpoint, as a module of transformers.

Only the encoder is built, and only its weights are read. Code in a checkpoint is never run, and
pickles are read only with `allow_pickle`.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

import torch

from pipeline.encoders.general.kinds import Kind
from pipeline.encoders.hub.checkpoint import Checkpoint
from pipeline.encoders.hub.weight_files import weights_problem
from pipeline.encoders.wav2vec2.huggingface import load_pretrained, no_reports
from pipeline.errors import WeightsError

_TRAINING_ONLY = ("masked_spec_embed", "num_batches_tracked")


def build_random(kind: Kind, config: Any, seed: int) -> torch.nn.Module:
    """Build the encoder with random weights, from `seed` only.

    Args:
        kind: Architecture of the checkpoint.
        config: Configuration of the encoder, an object of transformers.
        seed: Seed of the weights.

    Returns:
        The encoder in evaluation mode, float32, on the CPU.
    """
    with torch.random.fork_rng(devices=[]), no_reports():
        torch.manual_seed(seed)
        module: torch.nn.Module = _class_of(kind)._from_config(config, dtype=torch.float32)
    return module.eval().requires_grad_(False)


def load_module(
    checkpoint: Checkpoint, kind: Kind, config: Any, allow_pickle: bool
) -> torch.nn.Module:
    """Build the encoder with the weights of a checkpoint.

    Args:
        checkpoint: The checkpoint.
        kind: Its architecture.
        config: Configuration of the encoder, an object of transformers.
        allow_pickle: Whether to read pytorch_model.bin if there is no safetensors file.

    Returns:
        The encoder in evaluation mode, float32, on the CPU.

    Raises:
        WeightsError: The weights are missing or damaged, or do not fit the configuration.
    """
    module, report = load_pretrained(
        _class_of(kind), checkpoint, config, allow_pickle, key_mapping={kind.prefix: ""}
    )
    missing = [name for name in report.missing if not name.endswith(_TRAINING_ONLY)]
    blocks = [
        name
        for name in report.unexpected
        if name.startswith(f"{kind.blocks}.") and not name.endswith(_TRAINING_ONLY)
    ]
    if problem := weights_problem(missing, blocks, report.mismatched):
        raise WeightsError(f"{checkpoint} {problem}")
    whole: torch.nn.Module = module
    return whole.eval().requires_grad_(False)


def _class_of(kind: Kind) -> Any:
    return getattr(import_module(kind.module), kind.encoder_class)
