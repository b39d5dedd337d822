"""Checks of the files with the weights of a checkpoint, before a library loads them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from safetensors import SafetensorError, safe_open

from pipeline.encoders.hub.checkpoint import Checkpoint
from pipeline.encoders.hub.config_file import read_json
from pipeline.errors import WeightsError, counted

SAFETENSORS, PICKLE = "model.safetensors", "pytorch_model.bin"
_LFS_POINTER = b"version https://git-lfs"
_SHOWN = 3


def fetch_weights(checkpoint: Checkpoint, allow_pickle: bool) -> list[Path]:
    """Return the files with the weights, whole as far as their headers tell.

    Args:
        checkpoint: The checkpoint.
        allow_pickle: Whether pytorch_model.bin is read if there are no safetensors.

    Raises:
        WeightsError: A file is missing, damaged, or a pointer to one that was not fetched.
    """
    names = [SAFETENSORS, *([PICKLE] if allow_pickle else [])]
    for name in names:
        path, index = checkpoint.find(name), None
        if path is None:
            index = checkpoint.find(f"{name}.index.json")
        if path is None and index is None:
            continue
        files = [path] if path is not None else _shards(checkpoint, index)
        for file in files:
            check_file(file, f"{file.name} of {checkpoint}")
        return files
    missing = checkpoint.where_missing()
    if not allow_pickle and checkpoint.find(PICKLE) is not None:
        raise WeightsError(
            f"{checkpoint} has {PICKLE} and no {SAFETENSORS}{missing}. Only safetensors are read "
            "unless allow_pickle is set: model.allow_pickle=true reads the tensors of the pickle, "
            "and runs no code"
        )
    raise WeightsError(
        f"{checkpoint} has no weights{missing}; expected {SAFETENSORS}, or its parts with "
        f"{SAFETENSORS}.index.json"
    )


def check_file(path: Path, what: str) -> None:
    """Check that a file is not a pointer of git LFS, and a whole one if it is of safetensors.

    Args:
        path: The file.
        what: What it is, for the message.

    Raises:
        WeightsError: It is a pointer, or not whole.
    """
    with path.open("rb") as file:
        start = file.read(len(_LFS_POINTER))
    if start == _LFS_POINTER:
        raise WeightsError(
            f"{what} is a pointer of git LFS, not the weights; run `git lfs pull` in its directory"
        )
    if path.suffix != ".safetensors":
        return
    try:
        with safe_open(path, framework="pt"):
            pass
    except (SafetensorError, OSError) as error:
        raise WeightsError(
            f"{what} is damaged or incomplete ({path.stat().st_size:,} bytes: {error}); fetch it "
            "again"
        ) from error


def weights_problem(
    missing: Sequence[str], unexpected: Sequence[str], mismatched: Sequence[str]
) -> str | None:
    """Return how the weights of a checkpoint differ from those that its config.json requires.

    Args:
        missing: Names that the model has, and the files do not.
        unexpected: Names in the files that the model has not, and that are its own kind.
        mismatched: Names with another shape, and what the shapes are.

    Returns:
        None if all three are empty.
    """
    if missing:
        return f"lacks {len(missing)} of the weights that its config.json requires{_named(missing)}"
    if mismatched:
        n = counted(len(mismatched), "weight")
        return f"has {n} of other shapes than its config.json requires{_named(mismatched)}"
    if unexpected:
        n = counted(len(unexpected), "weight")
        return (
            f"has {n} that its config.json does not account for{_named(unexpected)}. Do the two "
            "belong together?"
        )
    return None


def _shards(checkpoint: Checkpoint, index: Path | None) -> list[Path]:
    assert index is not None  # one of the two was found
    parts = read_json(checkpoint, index).get("weight_map")
    if not isinstance(parts, dict) or not parts:
        raise WeightsError(f"{index.name} of {checkpoint} has no weight_map; fetch it again")
    purpose = f"which {index.name} names; fetch it again"
    return [checkpoint.require(str(name), purpose) for name in sorted(set(parts.values()))]


def _named(names: Sequence[str]) -> str:
    first = ", ".join(names[:_SHOWN])
    return f", first {first}" if len(names) > _SHOWN else f": {first}"
