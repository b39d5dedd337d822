"""Heads of a sweep's folder, chosen by layer."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from pipeline.errors import ConfigError, counted, first_few
from pipeline.heads.facts import HeadFacts
from pipeline.heads.files import TRAINED, file_of
from pipeline.heads.trained import TrainedHead
from pipeline.store.format.layers import label_layers, layer_text, name_layers

BEST = "best"
HEAD = "head.safetensors"
"""The head in the folder that `strata export-head` writes."""
RESULT = "sweep.json"
_SETTINGS = "settings.json"  # of a comparison: the sweeps that it is of
_DEPTHS = ("*/", "*/*/")

_LAYER_FILE = re.compile(r"layer-(-?\d+)")


def open_head(folder: str | Path, layer: int | str = BEST) -> TrainedHead:
    """Read a head of a sweep.

    Args:
        folder: The folder of the sweep, or one that `strata export-head` wrote.
        layer: "best" (by dev), "weighted", "collapsed", or a layer by number or name.

    Raises:
        ConfigError: It is no such folder, it has no trained heads, or none on this layer.
    """
    root = Path(folder)
    if (root / HEAD).is_file():
        head = TrainedHead.load(root / HEAD)
        numbers = _numbers(head.facts.layers, head.facts.layer_names)
        if layer not in (BEST, head.facts.layer) and numbers.get(layer) != head.facts.layer:
            raise ConfigError(f"{root} has the head on {input_text(head.facts)}, not {layer}")
        return head
    result = sweep_result(root)
    layers = trained_layers(root)
    if not layers:
        raise ConfigError(
            f"{root} has no trained heads in {TRAINED}/: task=abx trains none, and an earlier "
            "version of Strata kept none, or none of this task: then run the same `strata sweep` "
            "again (heads are cached; only the best of each layer is trained again)"
        )
    numbers = _numbers(result.get("layers", ()), result.get("layer_names", ()))
    wanted = result.get("best") if layer == BEST else layer
    wanted = wanted if wanted in layers else numbers.get(wanted, wanted)
    if wanted not in layers:
        labels: dict[Any, str] = {}
        labels |= label_layers(result.get("layers", ()), result.get("layer_names", ()))
        named = ", ".join(labels.get(candidate, str(candidate)) for candidate in layers)
        if layer == BEST:
            raise ConfigError(
                f"{root} has no file of its best head, on {wanted}, in {TRAINED}/; run the same "
                f"`strata sweep` again, which trains this head again, or choose one of {named}"
            )
        raise ConfigError(f"layer={layer}: {root} has heads on {named}; choose one, or layer=best")
    return TrainedHead.load(file_of(root, wanted))


def input_text(facts: HeadFacts) -> str:
    """Return what a head reads, for people: `layer 6`, `conv`, a sum of layers."""
    labels = label_layers(facts.layers, facts.layer_names)
    if facts.layer == "weighted":
        return f"a weighted sum of layers {', '.join(labels.values())}"
    if facts.layer == "collapsed":
        return "a collapsed sum of layers"
    return layer_text(labels[int(facts.layer)])


def _numbers(layers: Sequence[int], names: Sequence[str]) -> dict[Any, int]:
    """Return the numbers of layers, by name."""
    return {name: number for number, name in name_layers(layers, names).items()}


def sweep_result(folder: Path) -> dict[str, Any]:
    """Return what a sweep has written to `sweep.json`.

    Raises:
        ConfigError: The folder is not that of a sweep.
    """
    try:
        found: Any = json.loads((folder / RESULT).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        if found := _sweeps_of(folder):
            raise ConfigError(
                f"{folder} is not the folder of one sweep: it has, or compares, "
                f"{counted(len(found), 'sweep')}. Give one of them: {first_few(found)}"
            ) from error
        reason = "does not exist" if not folder.exists() else f"has no readable {RESULT}"
        raise ConfigError(
            f"{folder} {reason}; expected the folder of a sweep: the one with report.html, which "
            "`strata sweep` prints"
        ) from error
    if not isinstance(found, dict) or "best" not in found:
        raise ConfigError(f"{folder / RESULT} is not the result of a sweep; run the sweep again")
    return found


def _sweeps_of(folder: Path) -> list[str]:
    """Return the folders of sweeps that a folder compares, or that are in it or in its folders."""
    named: Any = None
    with suppress(OSError, ValueError):
        named = json.loads((folder / _SETTINGS).read_text(encoding="utf-8"))
    listed = named.get("sweeps", []) if isinstance(named, dict) else []
    compared = [str(item) for item in listed] if isinstance(listed, list) else []
    if compared:
        return compared
    return sorted(str(path.parent) for at in _DEPTHS for path in folder.glob(f"{at}{RESULT}"))


def trained_layers(folder: Path) -> list[int | str]:
    """Return what there are trained heads on: layers in order, then names."""
    stems = [path.stem for path in (folder / TRAINED).glob("*.safetensors")]
    matches = {stem: _LAYER_FILE.fullmatch(stem) for stem in stems}
    numbers = sorted(int(match[1]) for match in matches.values() if match)
    return [*numbers, *sorted(stem for stem, match in matches.items() if match is None)]
