"""Short and unique names of encoders, variants and tasks."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any, TypeVar

from pipeline.probing.results import Sweep

Key = TypeVar("Key", bound=Hashable)
Name = Callable[[Any], str]

EncoderKey = tuple[tuple[str, str], ...]
"""What an encoder is known by: name and value of each of its facts."""

_FACTS = ("dtype", "precision", "weights", "collapsed")
"""Facts that tell encoders of one model apart, in the order in which they are tried."""
_HASH_LENGTH = 8
SEPARATOR = " / "
"""Between the parts of the name of a variant; lists of names have commas."""


def encoder_key(sweep: Sweep) -> EncoderKey:
    """Return what tells the encoder of a sweep from others, whatever its store."""
    facts = sweep.setup.encoder or {"model": sweep.encoder}
    return tuple(sorted((name, str(value)) for name, value in facts.items()))


def store_name(sweep: Sweep) -> str:
    """Return the name of the store of a sweep, or those of several."""
    paths = [sweep.store] if isinstance(sweep.store, str) else list(sweep.store)
    return "+".join(PurePosixPath(path.rstrip("/")).name or path for path in paths)


def encoder_names(sweeps: Mapping[EncoderKey, Sequence[Sweep]]) -> dict[EncoderKey, str]:
    """Return a name for each encoder.

    That is the model; if several encoders are of one model, with the dtype, the precision or the
    source of the weights, if that tells them apart; else the names of their stores, or the model
    with the first digits of the hash of its weights.

    Args:
        sweeps: The sweeps of each encoder.
    """
    by_model: dict[str, list[EncoderKey]] = defaultdict(list)
    for key in sweeps:
        by_model[dict(key).get("model", "encoder")].append(key)
    names: dict[EncoderKey, str] = {}
    for model, keys in by_model.items():
        names |= {keys[0]: model} if len(keys) == 1 else _told_apart(model, keys, sweeps)
    return unique_names(list(sweeps), names.__getitem__)


def _told_apart(
    model: str, keys: Sequence[EncoderKey], sweeps: Mapping[EncoderKey, Sequence[Sweep]]
) -> dict[EncoderKey, str]:
    """Return the name of each encoder of one model."""
    tries = [{key: _with(model, dict(key).get(fact)) for key in keys} for fact in _FACTS]
    stores = {key: {store_name(sweep) for sweep in sweeps[key]} for key in keys}
    tries.append({key: "" if len(own) > 1 else min(own) for key, own in stores.items()})
    tries.append({key: _with(model, dict(key).get("sha256", "")[:_HASH_LENGTH]) for key in keys})
    for names in tries:
        if all(names.values()) and len(set(names.values())) == len(keys):
            return names
    return {key: f"{model} {number}" for number, key in enumerate(keys, 1)}


def _with(model: str, fact: str | None) -> str:
    """Return a model with a fact, or nothing without the fact."""
    return f"{model} {fact}" if fact else ""


def unique_names(
    items: Sequence[Key],
    name: Callable[[Key], str],
    *more: Callable[[Key], str],
    separator: str = ", ",
) -> dict[Key, str]:
    """Return a name for each item: `name`, and for equal ones what `more` adds, or a number."""
    names = {item: name(item) for item in items}
    for add in more:
        counts = Counter(names.values())
        names = {
            item: f"{found}{separator}{add(item)}" if counts[found] > 1 else found
            for item, found in names.items()
        }
    seen: Counter[str] = Counter()
    for item, found in names.items():
        seen[found] += 1
        if seen[found] > 1:
            names[item] = f"{found} ({seen[found]})"
    return names


def percent(fraction: float) -> str:
    """Return a share as a percentage: 0.125 as 12.5 %."""
    return f"{100 * fraction:.4g} %"
