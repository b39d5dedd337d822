"""Heads on encoders that are code of the user: what a sweep names is never imported."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline.encoders.modules.encoder import MODULE
from pipeline.encoders.modules.registration import is_registered
from pipeline.errors import ConfigError
from pipeline.heads.facts import HeadFacts


def is_own_code(known: Mapping[str, Any]) -> bool:
    """Whether the recorded settings of a model name code of the user.

    Args:
        known: Settings `model.*` that a head has recorded.
    """
    names_module = MODULE in (known.get("source"), known.get("option"))
    return names_module or known.get("target") is not None


def own_code_settings(facts: HeadFacts, known: Mapping[str, Any]) -> list[str]:
    """Return the settings of the encoder of a head, if this program has registered it.

    Args:
        facts: The head.
        known: Settings `model.*` that it has recorded.

    Raises:
        ConfigError: It is not registered. The message says what to give.
    """
    name, target = str(facts.identity["encoder"].get("model")), known.get("target")
    if is_registered(name):
        return [f"model={name}", f"model.seed={int(known.get('seed', 0))}"]
    layers = f" 'model.layers=[{','.join(known['layers'])}]'" if "layers" in known else ""
    raise ConfigError(
        f"the encoder of the sweep is its user's own code ({target or name}), and code that a "
        f"sweep names is not run: give model=module model.target={target or '…'}{layers} "
        "--allow-code (in Python call pipeline.register_encoder first). The hash of the weights is "
        "then compared"
    )
