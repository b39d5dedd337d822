"""The module of a definition: made by its factory, the digest of its weights, and its calls."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from pipeline.encoders.captured import CapturedModule
from pipeline.encoders.kernels.base import to_device
from pipeline.encoders.modules.definition import ModuleDefinition
from pipeline.encoders.modules.references import failure
from pipeline.errors import EncoderError, first_few

_TO_SEE = "; --debug, or the error's __cause__, shows where"


@dataclass(frozen=True)
class BuiltModule:
    """A module that its factory has made.

    Attributes:
        module: In evaluation mode, without gradients, on the CPU.
        sha256: Digest of the names, types, shapes and bytes of its state dict.
    """

    module: nn.Module
    sha256: str


def build_module(definition: ModuleDefinition, seed: int = 0) -> BuiltModule:
    """Call the factory.

    Args:
        definition: The encoder.
        seed: Seed of torch while the factory runs, so that weights that it does not load are the
            same in every process. The global generator is not changed.

    Raises:
        EncoderError: The factory fails, or what it returns is no module with weights.
    """
    factory = definition.factory.get()
    name = definition.factory.name
    if isinstance(factory, nn.Module):
        module = copy.deepcopy(factory)
    else:
        if not callable(factory):
            raise EncoderError(
                f"{name} is {_kind(factory)}; expected a function that returns a torch.nn.Module"
            )
        try:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                module = factory()
        except (Exception, SystemExit) as error:
            raise EncoderError(failure(f"the factory {name}", error) + _TO_SEE) from error
    if not isinstance(module, nn.Module):
        raise EncoderError(
            f"the factory {name} returns {_kind(module)}; expected a torch.nn.Module with its "
            "weights loaded"
        )
    lazy = [key for key, parameter in module.named_parameters() if is_lazy(parameter)]
    if lazy:
        raise EncoderError(
            f"the module of {name} has no values yet for {first_few(lazy)}; load its weights, or "
            "run it once in the factory"
        )
    module = module.to("cpu").eval().requires_grad_(False)
    return BuiltModule(module, state_digest(module))


def state_digest(module: nn.Module) -> str:
    """Compute the SHA-256 of the names, types, shapes and bytes of a state dict, sorted by name."""
    sha = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        if not isinstance(value, Tensor):  # what `get_extra_state` returns
            sha.update(f"{name} {value!r}\n".encode())
            continue
        tensor = value.detach().cpu().contiguous()
        sha.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        if tensor.numel():
            sha.update(tensor.flatten().view(torch.uint8).numpy().tobytes())
    return sha.hexdigest()


class ModuleRunner:
    """Runs a module on clips, and returns the named layers."""

    def __init__(self, definition: ModuleDefinition, module: nn.Module) -> None:
        """Check that the named submodules exist.

        Args:
            definition: The encoder.
            module: Its module, on the device of the computation.

        Raises:
            ConfigError: There is no such submodule; the message names the nearest ones.
        """
        self._definition = definition
        self._captured = CapturedModule(module, definition.points)
        self._inputs = None if definition.inputs is None else definition.inputs.get()
        self._outputs = None if definition.outputs is None else definition.outputs.get()

    def __call__(self, clips: Sequence[Tensor]) -> list[Tensor]:
        """Run clips together, padded with zeros to the longest.

        Args:
            clips: float32 `[n_samples]` each, on the module's device.

        Returns:
            Each layer, floating-point `[clips, frames, dim]`, all with one number of frames.

        Raises:
            EncoderError: The layers have different numbers of frames or clips, or the module ends
                the program.
        """
        longest = max(len(clip) for clip in clips)
        waveforms = torch.stack([F.pad(clip, (0, longest - len(clip))) for clip in clips])
        lengths = to_device(torch.tensor([len(clip) for clip in clips]), waveforms.device)
        try:
            args, kwargs = self._arguments(waveforms, lengths)
            layers = self._captured(*args, **kwargs)
            if self._outputs is not None:
                layers = [self._checked(self._outputs(layer)) for layer in layers]
        except SystemExit as error:  # else a run would end early, with the exit code of success
            what = f"{self._definition.name}: the forward pass on samples {[*waveforms.shape]}"
            raise EncoderError(failure(what, error)) from error
        counts = {layer.shape[:2] for layer in layers}
        if len(counts) > 1 or layers[0].shape[0] != len(clips):
            names = self._definition.layers
            found = [
                f"{name} has {layer.shape[0]} × {layer.shape[1]}"
                for name, layer in zip(names, layers, strict=True)
            ]
            wanted = "the layers of a store have one frame rate: name those of one rate"
            if len(counts) == 1:
                wanted = (
                    f"the order of axes is stated as {self._definition.axes}: state another, axes="
                    "'TBD' for frames first or 'BDT' for channels before frames"
                )
            raise EncoderError(
                f"{self._definition.name} gives for {len(clips)} clips of {longest} samples (clips "
                f"× frames): {first_few(found)}; {wanted}"
            )
        return layers

    def _checked(self, layer: object) -> Tensor:
        """Return what `outputs` has made of a layer, if it is one."""
        if isinstance(layer, Tensor) and layer.ndim == 3 and layer.is_floating_point():
            return layer
        raise EncoderError(
            f"outputs of {self._definition.name} returns "
            f"{[*layer.shape] if isinstance(layer, Tensor) else _kind(layer)}; expected a "
            "floating-point tensor [clips, frames, dim]"
        )

    def _arguments(
        self, waveforms: Tensor, lengths: Tensor
    ) -> tuple[Sequence[Any], Mapping[str, Any]]:
        """Return the arguments of the module for a padded batch."""
        definition = self._definition
        if self._inputs is not None:
            made = self._inputs(waveforms, lengths)
            if isinstance(made, Mapping):
                return (), made
            return (made if isinstance(made, tuple | list) else (made,)), {}
        named: dict[str, Any] = {}
        if definition.lengths_argument is not None:
            named[definition.lengths_argument] = lengths
        if definition.mask_argument is not None:
            places = torch.arange(waveforms.shape[1], device=waveforms.device)
            named[definition.mask_argument] = (places < lengths[:, None]).long()
        return (waveforms,), named


def _kind(value: object) -> str:
    return "a class" if isinstance(value, type) else f"an object of type {type(value).__name__}"
