"""Trained heads as files: safetensors with the tensors, and the facts as JSON in the metadata."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from pipeline import files
from pipeline.config.sweep_schema import COSINE, LDA, LINEAR
from pipeline.errors import ConfigError
from pipeline.heads.facts import FRAMEWISE, SPANS, VERIFICATION, HeadFacts

VERSIONS = (1, 2)
"""Versions of the files. Version 1 has linear heads of utterances and of transcripts, and those of
verification; such heads are still written as version 1, which earlier versions of Strata read."""

TRAINED = "trained"
"""Folder of the heads, in the output folder of a sweep."""

_METADATA = "strata_head"


def file_of(folder: Path, layer: int | str) -> Path:
    """Return the file of the head on a layer, "weighted" or "collapsed", in a sweep's folder."""
    name = layer if isinstance(layer, str) else f"layer-{layer}"
    return folder / TRAINED / f"{name}.safetensors"


def read_head(path: str | Path) -> tuple[HeadFacts, dict[str, Tensor]]:
    """Read the facts and the tensors of a head.

    Raises:
        ConfigError: The file is missing, holds no head, or one of a newer version.
    """
    try:
        with safe_open(path, "pt") as file:
            document = json.loads((file.metadata() or {})[_METADATA])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        version = document.pop("version")
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise ConfigError(
            f"{path} holds no trained head ({type(error).__name__}: {error}); expected a file "
            "that `strata sweep` or `strata export-head` wrote"
        ) from error
    if version not in VERSIONS:
        raise ConfigError(
            f"{path} holds a head of version {version}; this Strata reads version "
            f"{' and '.join(map(str, VERSIONS))}: use the newer Strata that wrote it"
        )
    try:
        return _facts_of(document, tensors), tensors
    except (KeyError, TypeError) as error:
        raise ConfigError(
            f"{path} holds a head whose description is damaged: {error!r}; run the sweep again"
        ) from error


def write_head(path: str | Path, facts: HeadFacts, tensors: Mapping[str, Tensor]) -> None:
    """Write a head, atomically; equal heads give equal bytes.

    Raises:
        StoreError: The file cannot be written.
    """
    document = {item.name: getattr(facts, item.name) for item in fields(HeadFacts)}
    is_first = facts.head in (LINEAR, COSINE, LDA) and facts.kind not in (SPANS, FRAMEWISE)
    document["version"] = 1 if is_first else 2
    text = json.dumps(document, sort_keys=True, allow_nan=False)
    ordered = {name: tensors[name].contiguous() for name in sorted(tensors)}
    files.write_atomic(Path(path), [save(ordered, {_METADATA: text})])


def _facts_of(document: dict[str, Any], tensors: Mapping[str, Tensor]) -> HeadFacts:
    """Return the facts of a document; those that earlier files do not have get their defaults."""
    facts = {
        item.name: document[item.name]
        for item in fields(HeadFacts)
        if item.name in document or item.default is MISSING
    }
    if "head" not in facts and facts["kind"] == VERIFICATION:
        facts["head"] = LDA if "projection" in tensors else COSINE
    for name in ("labels", "pooling", "layers", "layer_names"):
        facts[name] = tuple(facts.get(name, ()))
    facts["classes"] = tuple(map(tuple, facts["classes"]))
    return HeadFacts(**facts)
