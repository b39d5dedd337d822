"""`register_encoder`, and which code may run as an encoder in this process."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from pipeline.config import ModelConfig, code_problem, config_folder, register_model
from pipeline.encoders.base import EncoderDescription, EncoderSettings
from pipeline.encoders.modules.definition import ModuleDefinition
from pipeline.encoders.modules.encoder import MODULE, ModuleEncoder
from pipeline.encoders.modules.family import ModuleFamily
from pipeline.encoders.modules.references import Reference, import_target
from pipeline.errors import ConfigError, did_you_mean
from pipeline.store.format.geometry import FrameGeometry

_REGISTERED: dict[str, ModuleFamily] = {}
_ALLOWED: dict[ModelConfig, ModuleFamily] = {}


def register_encoder(
    name: str,
    factory: Callable[[], nn.Module] | nn.Module,
    *,
    layers: Sequence[str],
    sample_rate_hz: int = 16_000,
    axes: str = "BTD",
    geometry: FrameGeometry | None = None,
    inputs: Callable[..., Any] | None = None,
    outputs: Callable[[Tensor], Tensor] | None = None,
    lengths_argument: str | None = None,
    mask_argument: str | None = None,
    version: str | None = None,
    max_window_s: float = 30.0,
    context_s: float = 5.0,
) -> ModuleDefinition:
    """Make an encoder of any torch module, under a name that is used like that of a built-in model.

    The layers are the outputs of submodules, numbered from 1 in the order given. When the encoder
    is first used, `factory` is called, and the module is run on noise to find its frames, and what
    it tolerates: clips run together only if that changes nothing. The module is put into evaluation
    mode. See docs/add_an_encoder.md.

    Args:
        name: Name of the encoder, for `load_encoder(name)`, `model=name` and the identity of
            stores.
        factory: Function without arguments that returns the module with its weights; called in
            every process that encodes. Random weights that it makes with torch are those of
            `model.seed`. A module is taken as it is, and copied.
        layers: Dotted names of submodules, as in `module.named_modules()`. Their outputs are
            tensors with three axes, or tuples or mappings that begin with one.
        sample_rate_hz: Rate of the waveforms that the module takes.
        axes: Order of the axes of the outputs: "BTD" for [clips, frames, dim], "TBD" for frames
            first (`batch_first=False`), "BDT" for channels before frames.
        geometry: Hop and receptive field of the frames; None finds them by running the module.
        inputs: `inputs(waveforms, lengths)` makes the arguments of the module, e.g. filter bank
            features: a tensor, a tuple, or a mapping of named arguments. It gets float32
            [clips, samples], padded with zeros, and int64 [clips], and has no weights. None calls
            `module(waveforms)`.
        outputs: `outputs(layer)` makes frames of each layer [clips, frames, dim], in this order of
            axes, e.g. the mean over the patches of a step, or frames without a class token. It has
            no weights.
        lengths_argument: Name of an argument of the module for the samples of each clip.
        mask_argument: Name of an argument of the module for a mask, int64 [clips, samples]: 1 at
            samples, 0 at padding.
        version: Version of the code, part of the identity of stores. Change it when the code
            computes other features from the same weights, which no hash of the weights can tell.
        max_window_s: Default of the longest window in seconds; longer recordings are encoded in
            overlapping windows.
        context_s: Default context on each side of a window in seconds.

    Returns:
        The definition, which `model.target` may name instead of a factory.

    Raises:
        ConfigError: An argument has a wrong form, or the name is that of a built-in model.

    Example:
        >>> import torchaudio
        >>> definition = register_encoder(
        ...     "mine", torchaudio.models.wav2vec2_base, layers=["encoder.transformer.layers.0"]
        ... )
        >>> definition.layers
        ('encoder.transformer.layers.0',)
    """
    definition = ModuleDefinition(
        name=name,
        factory=_reference(factory, "factory"),
        layers=tuple(layers) if isinstance(layers, list) else layers,  # type: ignore[arg-type]
        sample_rate_hz=sample_rate_hz,
        axes=axes,
        geometry=geometry,
        inputs=None if inputs is None else _reference(inputs, "inputs"),
        outputs=None if outputs is None else _reference(outputs, "outputs"),
        lengths_argument=lengths_argument,
        mask_argument=mask_argument,
        version=version,
        max_window_s=max_window_s,
        context_s=context_s,
    )
    if (config_folder() / "model" / f"{name}.yaml").is_file():
        raise ConfigError(f"{name} is the name of a built-in model; give the encoder another name")
    register(definition)
    return definition


def register(definition: ModuleDefinition) -> None:
    """Make a definition known under its name in this process; it replaces an earlier one."""
    _REGISTERED[definition.name] = ModuleFamily(definition)
    register_model(definition.name, {"source": MODULE, "name": definition.name})


def install(model: ModelConfig, family: ModuleFamily) -> None:
    """Make an encoder known in this process, with what its probe has found in another one."""
    if model.target is not None:
        _ALLOWED[model] = family
    else:
        register(family.definition)
        _REGISTERED[family.definition.name] = family


def is_registered(name: str) -> bool:
    """Whether an encoder has been registered under a name."""
    return name in _REGISTERED


def allow_target(model: ModelConfig) -> None:
    """Import what `model.target` names, on behalf of a user who has allowed this.

    Raises:
        ConfigError: There is no such module or name, or settings are missing.
        EncoderError: The module fails when it is imported.
    """
    if model.target is None:
        return
    found = import_target(model.target, os.getcwd())  # noqa: PTH109  as a text, for sys.path
    if isinstance(found, ModuleDefinition):
        stated = [key for key in ("layers", "version") if getattr(model, key) is not None]
        if stated:
            raise ConfigError(
                f"model.{stated[0]} is stated by register_encoder in {model.target}; leave it out"
            )
        definition = found
    else:
        if model.layers is None:
            raise ConfigError(
                f"model.target={model.target} needs model.layers=[…], the names of the submodules "
                "whose outputs are the layers, such as 'model.layers=[encoder.layers.0]'"
            )
        definition = ModuleDefinition(
            name=model.name or model.target,
            factory=_reference(found, "factory"),
            layers=model.layers,
            version=model.version,
        )
    _ALLOWED[model] = ModuleFamily(definition)


def find_module(model: ModelConfig) -> ModuleFamily:
    """Look up the encoder that a model names, among those of this process.

    Raises:
        ConfigError: None is registered under the name, or the target is not allowed to run.
    """
    if model.target is not None:
        if model not in _ALLOWED:
            raise ConfigError(code_problem(model.target))
        return _ALLOWED[model]
    if model.name is None:
        raise ConfigError(
            "model=module needs model.target=PACKAGE.MODULE:FACTORY, model.layers=[…] and "
            "--allow-code; or register the encoder in Python by pipeline.register_encoder"
        )
    if model.name not in _REGISTERED:
        raise ConfigError(
            f"no encoder is registered as {model.name!r} in this process{_known(model.name)}; call "
            "pipeline.register_encoder first, or give model=module "
            "model.target=PACKAGE.MODULE:FACTORY and --allow-code"
        )
    return _REGISTERED[model.name]


def _known(name: str) -> str:
    return did_you_mean(name, _REGISTERED) if _REGISTERED else ""


class RegisteredModules:
    """The encoders that this process has registered or allowed; see `EncoderFamily`."""

    def describe(self, model: ModelConfig) -> EncoderDescription:
        """Describe the encoder that the model names; see `EncoderFamily`."""
        return find_module(model).describe(model)

    def load(self, model: ModelConfig, settings: EncoderSettings) -> ModuleEncoder:
        """Load the encoder that the model names; see `EncoderFamily`."""
        return find_module(model).load(model, settings)


def _reference(value: Any, what: str) -> Reference:
    """Refer to a function of the user.

    Raises:
        ConfigError: It cannot be called, or is a module where weights would escape the identity.
    """
    if not callable(value):
        raise ConfigError(
            f"{what} is {value!r:.80}; expected a function{', or a module' * (what == 'factory')}"
        )
    if what != "factory" and isinstance(value, nn.Module):
        raise ConfigError(
            f"{what} is a module, and its weights would be missing in the identity of a store; "
            "make it a part of the module that the factory returns"
        )
    return Reference(value)
