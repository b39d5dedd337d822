"""Encoders that a program has registered, for the process that extracts beside it.

That process does not run the program again, so it gets the definition of the encoder, pickled, from
its parent on stdin.
"""

from __future__ import annotations

import pickle
from base64 import b64decode, b64encode
from typing import Any

from pipeline.config import ModelConfig
from pipeline.encoders.modules.encoder import MODULE
from pipeline.encoders.modules.registration import find_module, install
from pipeline.errors import ConfigError


def pack_code(model: ModelConfig) -> str | None:
    """Return the registered encoder of a model as text; None if the model needs no code.

    Raises:
        ConfigError: It is not registered or allowed, or cannot be pickled.
    """
    if model.source != MODULE:
        return None
    family = find_module(model)
    definition = family.definition
    references = (definition.factory, definition.inputs, definition.outputs)
    pickler: Any = pickle
    if any(reference is not None and reference.is_by_value for reference in references):
        from ray import cloudpickle as pickler  # functions of a program or a notebook
    try:
        return b64encode(pickler.dumps(family)).decode("ascii")
    except (pickle.PicklingError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"the encoder {family.definition.name} cannot be sent to the process that extracts: "
            f"{error}. Put the factory into a module of its own, and load the weights in it"
        ) from error


def unpack_code(text: str, model: ModelConfig) -> None:
    """Register the encoder that the parent has packed.

    Raises:
        ConfigError: It cannot be unpickled here.
    """
    try:
        install(model, pickle.loads(b64decode(text)))
    except (ImportError, AttributeError) as error:
        raise ConfigError(
            f"the encoder {model.name} cannot be loaded in the process that extracts: {error}. Put "
            "the factory into a module that can be imported"
        ) from error
