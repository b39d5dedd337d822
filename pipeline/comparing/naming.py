"""Short and unique names of encoders, variants and tasks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any, TypeVar

from pipeline.probing.encoder_names import encoder_names as names_of_facts
from pipeline.probing.results import Sweep

Key = TypeVar("Key", bound=Hashable)
Name = Callable[[Any], str]

EncoderKey = tuple[tuple[str, str], ...]
"""What an encoder is known by: name and value of each of its facts."""

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

    See `pipeline.probing.encoder_names`.

    Args:
        sweeps: The sweeps of each encoder.
    """
    stores = [{store_name(sweep) for sweep in own} for own in sweeps.values()]
    found = names_of_facts([dict(key) for key in sweeps], stores)
    names = dict(zip(sweeps, found, strict=True))
    return unique_names(list(sweeps), names.__getitem__)


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
