"""Sweeps that are a part of another one: the same settings, but fewer layers, rates or seeds.

Such a sweep, for example a quick look at three layers, has the heads of the larger one. Tested
against it, it would count the same evidence twice and make the correction of p-values stricter.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from pipeline.comparing.naming import encoder_key
from pipeline.comparing.reading import StoredSweep
from pipeline.probing.report.methods import listed
from pipeline.probing.results import WEIGHTED, Candidate, Sweep

_COUNTED = ("layers", "weighted", "seeds", "fingerprint")
"""Settings of which a part has fewer; so has `task.lrs`. A fingerprint may be of the layers."""


@dataclass(frozen=True)
class LeftOut:
    """A sweep that is left out, because another one has all its heads.

    Attributes:
        part: The sweep.
        whole: The sweep that has its heads.
    """

    part: StoredSweep
    whole: StoredSweep

    @property
    def note(self) -> str:
        """Both folders, and of what the sweep that is left out has fewer."""
        part, whole = self.part.sweep, self.whole.sweep
        fewer = [
            name
            for name, values in (
                ("layers", _layers),
                ("learning rates", lambda sweep: {head.lr for head in sweep.heads}),
                ("seeds", lambda sweep: {head.seed for head in sweep.heads}),
            )
            if values(part) < values(whole)
        ]
        less = [f"fewer {listed(fewer)}"] if fewer else []
        if _has_sum(whole) and not _has_sum(part):
            less.append("no weighted sum")
        but = f" with {' and '.join(less)}" if less else ""
        return f"{self.part.folder} is left out: it is the sweep of {self.whole.folder}{but}"


def without_parts(stored: Sequence[StoredSweep]) -> tuple[list[StoredSweep], list[LeftOut]]:
    """Return the sweeps that are no part of another one, and those that are.

    Of sweeps with the same settings, the first is kept.

    Args:
        stored: The sweeps.

    Raises:
        ConfigError: The settings of a sweep cannot be read.
    """
    alike: dict[str, list[int]] = defaultdict(list)
    for at, item in enumerate(stored):
        alike[_fixed_settings(item)].append(at)
    heads = [
        {(head.layer, head.lr, head.seed, head.fold) for head in item.sweep.heads}
        for item in stored
    ]
    left_out: dict[int, LeftOut] = {}
    for group in alike.values():
        kept: list[int] = []
        for at in sorted(group, key=lambda i: -len(heads[i])):
            whole = next((i for i in kept if heads[at] <= heads[i]), None)
            if whole is None:
                kept.append(at)
            else:
                left_out[at] = LeftOut(stored[at], stored[whole])
    remaining = [item for at, item in enumerate(stored) if at not in left_out]
    return remaining, [left_out[at] for at in sorted(left_out)]


def _fixed_settings(item: StoredSweep) -> str:
    """Return what a part has in common with the whole, as JSON."""
    sweep = item.sweep
    setup = asdict(sweep.setup)
    del setup["version"]
    setup["recipe"] = {key: value for key, value in setup["recipe"].items() if key != "lrs"}
    written = _written_settings(item)
    facts = [
        *(sweep.task, sweep.metric, sweep.labels, encoder_key(sweep), setup, sweep.split),
        *(sweep.n_train, sweep.n_dev, sweep.classes, sweep.test_ids, sweep.truth, sweep.units),
        written or [sweep.store, sweep.spans],
    ]
    return json.dumps(facts, sort_keys=True, default=str)


def _written_settings(item: StoredSweep) -> dict[str, Any]:
    """Return the settings in the folder that a part has in common with the whole."""
    fixed = {key: value for key, value in item.settings.items() if key not in _COUNTED}
    if isinstance(task := fixed.get("task"), dict):
        fixed["task"] = {key: value for key, value in task.items() if key != "lrs"}
    return fixed


def _layers(sweep: Sweep) -> set[Candidate]:
    return {head.layer for head in sweep.heads if head.layer != WEIGHTED}


def _has_sum(sweep: Sweep) -> bool:
    return any(head.layer == WEIGHTED for head in sweep.heads)
