"""Weights of a model, from a torchaudio bundle, a file or a seed."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torchaudio
from torch import Tensor

from pipeline.encoders.checkpoints.names import NEW_NAMES, POSITION, own_names
from pipeline.encoders.checkpoints.reading import check_spec, open_weights
from pipeline.encoders.wav2vec2.bundles import ModelSpec
from pipeline.errors import WeightsError

_SHOWN = 3  # names listed in a message; the others are counted


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
        weights: "pretrained", "random", or the path of a file: a state dict with torchaudio's
            names, or a checkpoint of fairseq, unilm or s3prl (.pt, .pth, .safetensors).
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
    found = open_weights(Path(weights).expanduser())
    check_spec(found, spec)
    return fill_model(spec, found.read(), "file", found.origin)


def check_weights(spec: ModelSpec, weights: str | Path) -> None:
    """Check that a file of weights fits a model, without reading the weights.

    Args:
        spec: Architecture of the model.
        weights: As for `load_model`; nothing is checked for "pretrained" and "random".

    Raises:
        WeightsError: The file cannot be read, or is that of another architecture.
    """
    if weights in ("pretrained", "random"):
        return
    found = open_weights(Path(weights).expanduser())
    check_spec(found, spec)
    check_shapes(spec, found.shapes, found.origin)


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
        "or the path of a .pt, .pth or .safetensors file"
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
    state = {
        name: tensor
        for name, tensor in own_names(state).items()
        if not name.endswith(".num_batches_tracked")
    }
    check_shapes(spec, {name: tensor.shape for name, tensor in state.items()}, origin)
    model = spec.build("meta")
    if spec.parts.position == "weight_norm" and f"{POSITION}.weight" in state:
        state |= _with_weight_norm(state.pop(f"{POSITION}.weight"))
    whole = {name: state[name].detach().to("cpu", torch.float32) for name in model.state_dict()}
    model.load_state_dict(whole, assign=True)
    model.requires_grad_(False)
    return LoadedModel(model.eval(), source, digest(model))


def check_shapes(
    spec: ModelSpec,
    shapes: Mapping[str, Sequence[int]],
    origin: str,
    remedy: str = "Choose the model that they belong to",
) -> None:
    """Check names and shapes of weights against a model.

    Args:
        spec: Architecture of the model.
        shapes: Shapes of the weights, by torchaudio's names.
        origin: Origin of the weights, for messages.
        remedy: What to do if they do not fit.

    Raises:
        WeightsError: Weights are missing, unknown or of another shape; the first are named.
    """
    found = {name: tuple(shape) for name, shape in shapes.items()}
    if spec.parts.position == "weight_norm" and f"{POSITION}.weight" in found:
        shape = found.pop(f"{POSITION}.weight")
        found |= dict(zip(NEW_NAMES.values(), ((1, 1, shape[-1]), shape), strict=True))
    expected = {
        name: tuple(tensor.shape) for name, tensor in spec.build("meta").state_dict().items()
    }
    wrong = [f"{name} is missing" for name in expected if name not in found]
    wrong += [f"{name} is not part of the model" for name in found if name not in expected]
    wrong += [
        f"{name} has shape {list(found[name])}, expected {list(shape)}"
        for name, shape in expected.items()
        if name in found and found[name] != shape
    ]
    if wrong:
        more = f"; and {len(wrong) - _SHOWN} more" if len(wrong) > _SHOWN else ""
        raise WeightsError(
            f"the weights of {origin} do not fit {spec.name}: {'; '.join(wrong[:_SHOWN])}{more}. "
            f"{remedy}"
        )


def _with_weight_norm(weight: Tensor) -> dict[str, Tensor]:
    """Return the two tensors of weight_norm for a weight from which it was removed.

    Args:
        weight: Weight of the positional convolution, `[dim, dim / n_groups, kernel]`.
    """
    direction = weight.detach().to(torch.float32)
    norm = torch.norm_except_dim(direction, 2, 2)
    direction = direction.where(norm > 0, 1.0)  # a tap of zeros has no direction; its norm is 0
    return dict(zip(NEW_NAMES.values(), (norm, direction), strict=True))


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
