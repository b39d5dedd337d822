"""Weights of a model, from a torchaudio bundle, a file or a seed."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
import torchaudio
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from pipeline.encoders.wav2vec2.bundles import ModelSpec
from pipeline.errors import WeightsError, first_few

_UNSAFE = "Unsupported global"  # torch's words for a pickle with other objects
_OTHER_FORM = (
    "use the Hugging Face form of the model (model=hf model.name=...), or convert the "
    "weights to a state dict with torchaudio's names"
)
_SHOWN = 3  # names listed in a message; the others are counted
_POSITION = "encoder.transformer.pos_conv_embed.conv."
# Names of weight_norm's two tensors before torch 2.0, as in published checkpoints.
_LEGACY_NAMES = {
    f"{_POSITION}weight_g": f"{_POSITION}parametrizations.weight.original0",
    f"{_POSITION}weight_v": f"{_POSITION}parametrizations.weight.original1",
}


@dataclass(frozen=True)
class LoadedModel:
    """A torchaudio model with its weights.

    Attributes:
        model: torchaudio's `Wav2Vec2Model` in evaluation mode, float32, on the CPU, without head.
        source: "pretrained", "random", "file" or "huggingface".
        sha256: Digest of the names, shapes and bytes of all weights.
        unused: Names of weights of the checkpoint that the model does not have, e.g. of a head.
    """

    model: torch.nn.Module
    source: str
    sha256: str
    unused: tuple[str, ...] = ()


def load_model(spec: ModelSpec, weights: str | Path, seed: int) -> LoadedModel:
    """Build the model of `spec` and load its weights.

    Args:
        spec: Architecture of the model.
        weights: "pretrained", "random", or the path of a state dict (.pt, .pth, .safetensors).
        seed: Seed of random weights; ignored otherwise.

    Raises:
        WeightsError: The weights cannot be found or read, or do not fit the model.
    """
    if problem := weights_problem(spec, weights):
        raise WeightsError(problem)
    if weights == "random":
        return LoadedModel(model := _random_model(spec, seed), "random", digest(model))
    if weights == "pretrained":
        return fill_model(spec, _download(spec), "pretrained", spec.bundle or spec.name)
    path = Path(weights).expanduser()
    return fill_model(spec, _read_file(path), "file", str(path))


def weights_problem(spec: ModelSpec, weights: str | Path) -> str | None:
    """Check a choice of weights without reading them.

    Args:
        spec: Architecture of the model.
        weights: As for `load_model`.

    Returns:
        The problem as a message for the user; None if there is none.
    """
    if weights == "random":
        return None
    if weights == "pretrained":
        if spec.bundle is not None:
            return None
        return (
            f"{spec.name} has no pretrained weights; use model.weights=random, "
            "or model.weights=PATH of a state dict"
        )
    path = Path(weights).expanduser()
    if path.is_file():
        return None
    return (
        f"there are no weights at {path}; model.weights is pretrained, random, "
        "or the path of a .pt, .pth or .safetensors state dict"
    )


def fill_model(
    spec: ModelSpec, state: Mapping[str, Tensor], source: str, origin: str
) -> LoadedModel:
    """Build the model of `spec` with the weights of a state dict, without its output head.

    Args:
        spec: Architecture of the model.
        state: State dict with torchaudio's names. The prefix `model.` of a bundle is removed, and
            the output head (`aux.*`) is dropped.
        source: Kind of source, see `LoadedModel`.
        origin: Origin of the state dict, for messages.

    Raises:
        WeightsError: Weights are missing, unknown or of another shape; the first are named.
    """
    if state and all(name.startswith("model.") for name in state):
        state = {name.removeprefix("model."): tensor for name, tensor in state.items()}
    state = {
        _LEGACY_NAMES.get(name, name): tensor
        for name, tensor in state.items()
        if not name.startswith("aux.") and not name.endswith(".num_batches_tracked")
    }
    model = spec.build("meta")
    expected = model.state_dict()
    if spec.parts.position == "weight_norm" and f"{_POSITION}weight" in state:
        state |= _with_weight_norm(state.pop(f"{_POSITION}weight"))
    wrong = [f"{name} is missing" for name in expected if name not in state]
    wrong += [f"{name} is not part of the model" for name in state if name not in expected]
    wrong += [
        f"{name} has shape {list(state[name].shape)}, expected {list(tensor.shape)}"
        for name, tensor in expected.items()
        if name in state and state[name].shape != tensor.shape
    ]
    if wrong:
        more = f"; and {len(wrong) - _SHOWN} more" if len(wrong) > _SHOWN else ""
        raise WeightsError(
            f"the weights of {origin} do not fit {spec.name}: {'; '.join(wrong[:_SHOWN])}{more}. "
            "Choose the model that they belong to"
        )
    whole = {name: state[name].detach().to("cpu", torch.float32) for name in expected}
    model.load_state_dict(whole, assign=True)
    model.requires_grad_(False)
    return LoadedModel(model.eval(), source, digest(model))


def _with_weight_norm(weight: Tensor) -> dict[str, Tensor]:
    """Return the two tensors of weight_norm for a weight from which it was removed.

    Args:
        weight: Weight of the positional convolution, `[dim, dim / n_groups, kernel]`.
    """
    names = list(_LEGACY_NAMES.values())
    direction = weight.detach().to(torch.float32)
    return dict(zip(names, (torch.norm_except_dim(direction, 2, 2), direction), strict=True))


def digest(model: torch.nn.Module) -> str:
    """Compute the SHA-256 of the names, shapes and float32 bytes of all weights, sorted by name."""
    sha = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        sha.update(f"{name} {list(tensor.shape)}\n".encode())
        sha.update(memoryview(tensor.detach().contiguous().cpu().numpy()).cast("B"))
    return sha.hexdigest()


def _random_model(spec: ModelSpec, seed: int) -> torch.nn.Module:
    """Initialise as torchaudio does, from `seed` only; the global generator is not changed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return spec.build("cpu").requires_grad_(False)


def _download(spec: ModelSpec) -> dict[str, Tensor]:
    try:
        model = getattr(torchaudio.pipelines, str(spec.bundle)).get_model()
    except (OSError, RuntimeError) as error:  # URLError is an OSError; a bad file a RuntimeError
        raise WeightsError(
            f"cannot download the pretrained weights of {spec.name} (torchaudio's {spec.bundle}): "
            f"{error}. Without a network use model.weights=PATH of a downloaded state dict, "
            "or model.weights=random to try things out"
        ) from error
    state: dict[str, Tensor] = model.state_dict()
    return state


def _read_file(path: Path) -> dict[str, Tensor]:
    unreadable = (OSError, RuntimeError, ValueError, EOFError, UnpicklingError, SafetensorError)
    state: Any
    try:
        if path.suffix == ".safetensors":
            state = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except unreadable as error:
        if isinstance(error, UnpicklingError) and _UNSAFE in str(error):
            raise WeightsError(
                f"cannot read the weights at {path}: it holds other objects than tensors, as a "
                f"checkpoint of fairseq does; {_OTHER_FORM}"
            ) from error
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise WeightsError(f"cannot read the weights at {path}: {reason}") from error
    if isinstance(state, dict) and isinstance(state.get("model"), dict):
        raise WeightsError(
            f"{path} holds a training checkpoint with the entries {first_few(list(state))}, as "
            f"fairseq writes it; {_OTHER_FORM}"
        )
    if not isinstance(state, dict) or not all(isinstance(t, Tensor) for t in state.values()):
        raise WeightsError(f"{path} does not hold a state dict (a mapping of names to tensors)")
    return state
