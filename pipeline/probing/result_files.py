"""The files of a sweep's results: `sweep.json`, written and read, and the learned weights."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, fields
from itertools import chain
from pathlib import Path
from types import UnionType
from typing import Any

from pipeline import files
from pipeline.errors import ConfigError
from pipeline.probing.ranking import best_single_layer
from pipeline.probing.results import (
    CandidateScore,
    Comparison,
    HeadResult,
    Setup,
    Sweep,
    mean_scores,
)
from pipeline.store.serialization import json_bytes

RESULT, WEIGHTS = "sweep.json", "weights.json"
"""Files in the output folder, beside those of the task and the report."""

_JSON_KEYS = {"baselines": "yardsticks"}
"""Keys of the JSON that are not the name of the field of `Sweep`. The first version had the key
`yardsticks` for baselines. It is kept for stored results and for programs that read it."""
_AGAIN = "run the same `strata sweep` again (its heads are cached, so that takes seconds)"


def summary(result: Sweep) -> dict[str, Any]:
    """Return the output of `--json`: the results without heads, references and test units."""
    document = {
        _JSON_KEYS.get(item.name, item.name): getattr(result, item.name) for item in fields(result)
    }
    for name in ("heads", "truth", "test_ids", "units"):
        del document[name]
    return {
        "best_layer": best_single_layer(result.scores, result.higher_is_better),
        "results": mean_scores(result.heads),
        **document,
        "scores": [asdict(score) for score in result.scores],
        "comparison": None if result.comparison is None else asdict(result.comparison),
        "setup": asdict(result.setup),
    }


def write_result(result: Sweep, folder: Path, stored_layers: Sequence[int]) -> None:
    """Write sweep.json, and weights.json if there are learned weights.

    Args:
        result: The results.
        folder: Output folder.
        stored_layers: Layers of the store, each of which gets a weight.
    """
    whole = {_JSON_KEYS.get(name, name): value for name, value in asdict(result).items()}
    text = json.dumps(whole | summary(result), allow_nan=False)
    files.write_atomic(folder / RESULT, [text.encode()])
    if result.layer_weights is None:
        (folder / WEIGHTS).unlink(missing_ok=True)  # left by an earlier sweep
        return
    swept = dict(zip(result.layers, result.layer_weights, strict=True))
    weights = [swept.get(layer, 0.0) for layer in stored_layers]
    files.write_atomic(folder / WEIGHTS, [json_bytes(weights)])


def read_result(folder: Path, chosen_only: bool = False) -> Sweep:
    """Read the results of a sweep.

    Args:
        folder: Its folder.
        chosen_only: Whether predictions are left out of heads at learning rates that dev has not
            chosen, which are most of the file.

    Raises:
        ConfigError: The folder has no sweep.json, or one that is damaged, of something else, or of
            an earlier version that did not state its settings.
    """
    path = folder / RESULT
    try:
        document = json.loads(path.read_text(encoding="utf-8"), parse_constant=_no_constant)
    except FileNotFoundError as error:
        raise ConfigError(
            f"{folder} has no {RESULT}; expected the folder of a sweep, the one with its report"
        ) from error
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path} cannot be read ({error}); {_AGAIN}") from error
    if not isinstance(document, dict) or not {"task", "heads", "scores"} <= document.keys():
        raise ConfigError(
            f"{path} is not the result of a sweep of Strata: it lacks task, heads or scores. Give "
            "folders that `strata sweep` has written"
        )
    setup = document.get("setup")
    if not (isinstance(setup, dict) and setup.get("recipe")):
        raise ConfigError(
            f"{path} is of an earlier version of Strata, which did not state the settings; {_AGAIN}"
        )
    try:
        return _parse(document, chosen_only)
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise ConfigError(
            f"{path} is damaged ({type(error).__name__}: {error}); {_AGAIN}"
        ) from error


def _no_constant(name: str) -> float:
    raise ValueError(f"it has {name}, which no sweep writes")


def _parse(document: Mapping[str, Any], chosen_only: bool) -> Sweep:
    """Build the results from their JSON; fields of later versions than the file are defaults."""
    values = {
        item.name: document[key]
        for item in fields(Sweep)
        if (key := _JSON_KEYS.get(item.name, item.name)) in document
    }
    for name, convert in _CONVERTERS.items():
        if name in values:
            values[name] = convert(values[name])
    chosen = {(score.layer, score.lr) for score in values["scores"]}
    heads = values.pop("heads")
    is_left_out = [chosen_only and (head["layer"], head["lr"]) not in chosen for head in heads]
    found = Sweep(**values, heads=tuple(map(_head, heads, is_left_out)))
    if found.best not in [score.layer for score in found.scores]:
        raise ValueError(f"best is {found.best!r}, which has no score")
    _check_types(found)
    for head, without in zip(found.heads, is_left_out, strict=True):
        n_tested, n_predicted = len(found.truth[head.fold]), len(head.predictions)
        if n_tested != n_predicted and not without:
            raise ValueError(f"a head has {n_predicted} predictions for {n_tested} test items")
    return found


def _check_types(found: Sweep) -> None:
    """Check the values that a comparison computes with.

    Raises:
        TypeError: One has another type.
    """
    heads, scores = found.heads, found.scores
    of_type: list[tuple[str, type | UnionType, Iterable[object]]] = [
        (
            "text",
            str,
            [found.task, found.metric, *found.labels, *chain(*found.test_ids, *found.classes)],
        ),
        ("text", str, found.warnings),
        ("a mapping", dict, [found.setup.encoder, *found.units]),
        ("true or false", bool, [found.higher_is_better]),
        (
            "a whole number",
            int,
            [found.n_train, found.n_dev, found.n_test, *(head.seed for head in heads)],
        ),
        (
            "a number",
            int | float,
            [number for head in heads for number in (head.dev, head.test, head.lr)],
        ),
        (
            "a number",
            int | float,
            [
                number
                for item in scores
                for number in (item.dev, item.test, item.lr, item.low, item.high)
            ],
        ),
    ]
    for name, kind, values in of_type:
        for value in values:
            if not isinstance(value, kind):
                raise TypeError(f"{value!r:.40} is in place of {name}")


def _deep_tuple(value: Any) -> Any:
    """Return nested lists as nested tuples."""
    return tuple(map(_deep_tuple, value)) if isinstance(value, list) else value


def _rows(values: Sequence[Any]) -> tuple[Any, ...]:
    """Return predictions or references: texts, or rows of numbers."""
    return tuple(item if isinstance(item, str) else tuple(item) for item in values)


def _head(stored: Mapping[str, Any], without_predictions: bool) -> HeadResult:
    weights, predictions = stored["layer_weights"], stored["predictions"]
    changed = {
        "curve": tuple((step, loss, dev) for step, loss, dev in stored["curve"]),
        "predictions": () if without_predictions else _rows(predictions),
        "layer_weights": None if weights is None else tuple(weights),
    }
    return HeadResult(**{**stored, **changed})


def _setup(stored: Mapping[str, Any]) -> Setup:
    known = {item.name for item in fields(Setup)}
    found = {name: value for name, value in stored.items() if name in known}
    recipe = {name: _deep_tuple(value) for name, value in stored["recipe"].items()}
    return Setup(**(found | {"recipe": recipe}))


_CONVERTERS: dict[str, Callable[[Any], Any]] = {
    "store": lambda value: value if isinstance(value, str) else tuple(value),
    "warnings": tuple,
    "labels": tuple,
    "layers": tuple,
    "layer_names": tuple,
    "classes": _deep_tuple,
    "test_ids": _deep_tuple,
    "truth": lambda folds: tuple(map(_rows, folds)),
    "scores": lambda items: tuple(CandidateScore(**item) for item in items),
    "comparison": lambda item: None if item is None else Comparison(**item),
    "layer_weights": lambda value: None if value is None else tuple(value),
    "confusion": lambda value: None if value is None else _deep_tuple(value),
    "setup": _setup,
    "units": tuple,
}
