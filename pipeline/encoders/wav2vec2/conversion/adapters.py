"""Adapters of a language, which checkpoints like MMS have in files beside the main weights."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence

from torch import Tensor

from pipeline.encoders.wav2vec2.bundles import ModelSpec
from pipeline.errors import WeightsError, first_few

LANGUAGE = re.compile(r"[\w-]+")
"""Form of a language, e.g. "fra" or "azj-script_latin"."""
_FILE = re.compile(r"adapter\.(.+)\.(?:safetensors|bin)")
_MARK = ".adapter_layer."
_FEW = 12  # languages that a message lists; of more, it names the nearest ones


def adapter_files(language: str) -> tuple[str, str]:
    """Return the names of the two files that may hold the adapters of a language.

    Example:
        >>> adapter_files("fra")
        ('adapter.fra.safetensors', 'adapter.fra.bin')
    """
    return f"adapter.{language}.safetensors", f"adapter.{language}.bin"


def find_languages(files: Iterable[str]) -> list[str]:
    """Return the languages whose adapters are among the files of a checkpoint, sorted."""
    matches = (_FILE.fullmatch(name) for name in files)
    return sorted({match[1] for match in matches if match})


def list_languages(languages: Sequence[str], wanted: str = "") -> str:
    """Return the end of a message that names the languages there are.

    Args:
        languages: The languages.
        wanted: One that is not among them; of many, those near it are named.
    """
    if not languages:
        return "it has adapters of no language"
    if len(languages) <= _FEW:
        return f"it has adapters of {', '.join(languages)}"
    near = difflib.get_close_matches(wanted, languages, n=3, cutoff=0.3) or languages[:3]
    return f"it has adapters of {len(languages):,} languages, like {', '.join(near)}"


def is_adapter(name: str) -> bool:
    """Return whether a weight belongs to an adapter, by its name in transformers or torchaudio."""
    return _MARK in name


def adapter_names(state: Mapping[str, Tensor], spec: ModelSpec, origin: str) -> dict[str, Tensor]:
    """Rename the adapters of a language to the names of the model's weights.

    Args:
        state: Weights of an adapter file: the adapters of all blocks, and the language's output
            head, which is dropped.
        spec: Architecture of the model.
        origin: The file and its checkpoint, for messages.

    Raises:
        WeightsError: A block has no adapters, the file has adapters of no block of the model, or a
            weight has another shape.
    """
    renamed = {
        "encoder.transformer.layers." + name.split("encoder.layers.", 1)[-1]: tensor
        for name, tensor in state.items()
        if is_adapter(name)
    }
    whole = spec.build("meta").state_dict()
    expected = {name: tensor.shape for name, tensor in whole.items() if is_adapter(name)}
    if missing := sorted(expected.keys() - renamed.keys()):
        raise WeightsError(f"{origin} lacks {len(missing)} weights: {first_few(missing)}")
    if unknown := sorted(renamed.keys() - expected.keys()):
        raise WeightsError(f"{origin} has weights of other blocks: {first_few(unknown)}")
    for name, tensor in renamed.items():
        if tensor.shape != expected[name]:
            raise WeightsError(
                f"{origin} has {name} of shape {list(tensor.shape)}, expected "
                f"{list(expected[name])}"
            )
    return renamed
