"""Short and unique names of encoders: the model, and what tells encoders of one model apart."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence

_FACTS = ("dtype", "precision", "weights", "collapsed")
"""Facts that tell encoders of one model apart, in the order in which they are tried."""
_HASH_LENGTH = 8


def encoder_names(
    facts: Sequence[Mapping[str, str]], stores: Sequence[Collection[str]]
) -> list[str]:
    """Return a name for each encoder.

    That is the model; if several encoders are of one model, with the dtype, the precision or the
    source of the weights, if that tells them apart; else the names of their stores, or the model
    with the first digits of the hash of its weights, or a number.

    Args:
        facts: Facts of each encoder, see `encoder_facts`, as text.
        stores: Names of the stores of each encoder.
    """
    by_model: dict[str, list[int]] = defaultdict(list)
    for at, known in enumerate(facts):
        by_model[known.get("model", "encoder")].append(at)
    names = {at: model for model, [at, *_] in by_model.items()}
    for model, group in by_model.items():
        if len(group) > 1:
            own = [facts[at] for at in group]
            found = _told_apart(model, own, [stores[at] for at in group])
            names |= dict(zip(group, found, strict=True))
    return [names[at] for at in range(len(facts))]


def _told_apart(
    model: str, facts: Sequence[Mapping[str, str]], stores: Sequence[Collection[str]]
) -> list[str]:
    """Return the name of each encoder of one model."""
    tries = [[_with(model, known.get(fact)) for known in facts] for fact in _FACTS]
    tries.append(["" if len(own) > 1 else min(own) for own in stores])
    tries.append([_with(model, known.get("sha256", "")[:_HASH_LENGTH]) for known in facts])
    for names in tries:
        if all(names) and len(set(names)) == len(facts):
            return names
    return [f"{model} {number}" for number in range(1, len(facts) + 1)]


def _with(model: str, fact: str | None) -> str:
    """Return a model with a fact, or nothing without the fact."""
    return f"{model} {fact}" if fact else ""
