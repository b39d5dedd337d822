"""The encoder that `--encoder` names."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.config import ModelConfig
from pipeline.encoders.base import Encoder
from pipeline.encoders.modules.encoder import MODULE
from pipeline.encoders.modules.references import failure, import_target
from pipeline.encoders.modules.registration import allow_target, find_module
from pipeline.errors import ConfigError, EncoderError
from pipeline.testing.checks import EncoderCase, FamilyCase


@dataclass(frozen=True)
class LoadedCase:
    """An encoder, and its family unless a function has made it.

    Attributes:
        encoder: For the checks of encoders.
        family: For the checks of families; None if there is none.
    """

    encoder: EncoderCase
    family: FamilyCase | None


def load_case(target: str, layers: Sequence[str] | None) -> LoadedCase:
    """Import and load an encoder, with short windows.

    Args:
        target: "package.module:name".
        layers: Names of submodules, if the target is a factory of a module.

    Raises:
        ConfigError: The target does not exist, or is no encoder.
        EncoderError: Its code fails.
    """
    found = import_target(target, os.getcwd())  # noqa: PTH109  as a text, for sys.path
    if layers is None and callable(found):
        try:
            encoder = found()
        except Exception as error:
            raise EncoderError(failure(f"{target}()", error)) from error
        if not hasattr(encoder, "encode_batch"):
            raise ConfigError(
                f"{target} returns {type(encoder).__name__}; expected an Encoder, or a torch "
                "module with --encoder-layers=NAME,NAME"
            )
        checked: Encoder = encoder
        return LoadedCase(EncoderCase(checked), None)
    model = ModelConfig(
        source=MODULE, target=target, layers=None if layers is None else tuple(layers)
    )
    allow_target(model)
    family = FamilyCase(find_module(model), model)
    return LoadedCase(EncoderCase(family.loader()()), family)
