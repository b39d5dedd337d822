"""What the figures say, in one line."""

from __future__ import annotations

import math

from pipeline.probing.fidelity.figures import LayerFigures
from pipeline.probing.fidelity.run import Fidelity
from pipeline.probing.fidelity.sweeps import ScoreDifference, SweepLoss
from pipeline.probing.report.p_values import p_value_text
from pipeline.probing.results import Candidate

SMALL_DB = 35.0
"""Ratio of the lowest utterance of each layer from which on a loss is small: the noise has 1/3,200
of the power of what varies. int8 is made for it."""


def verdict(fidelity: Fidelity, loss: SweepLoss | None = None) -> str:
    """Return what a dtype costs, in one line.

    With a sweep, its paired test decides; without one, the ratios alone.

    Args:
        fidelity: Figures of the features.
        loss: Scores of a sweep on both stores.
    """
    ratio, name = describe_ratio(fidelity.layers), fidelity.dtype
    if fidelity.includes_precision:
        name = f"{name} of a {fidelity.precision} encoder"
    if loss is None:
        return (
            f"{name}: {ratio}; whether a task notices it, a sweep says (--against STORE task=...)"
        )
    mean = loss.mean
    interval = f"95 % interval {mean.low:+.3f} to {mean.high:+.3f}"
    if not loss.noticed:
        smallest = p_value_text(min(i.p_value for i in (mean, *loss.candidates)), loss.test)
        return (
            f"{name} loses nothing that a probe of this data notices: {loss.task} {loss.metric} "
            f"changes by {mean.difference:+.3f} on average ({interval}, between seeds "
            f"± {mean.seed_error:.3f}), smallest {smallest} of "
            f"{len(loss.candidates) + 1} tests; {ratio}"
        )
    first = loss.noticed[0]
    is_better = (first.difference > 0) == loss.higher_is_better
    effect = "helps" if is_better else "costs"
    return (
        f"{name} {effect} this task: {loss.task} {loss.metric} changes by "
        f"{first.difference:+.3f} ({_name(first)}, {p_value_text(first.p_value, loss.test)}), by "
        f"{mean.difference:+.3f} on average ({interval}); {ratio}"
    )


def describe_ratio(layers: tuple[LayerFigures, ...]) -> str:
    """Return whether the lowest utterance of every layer is above `SMALL_DB`."""
    ratios = [math.inf if i.snr_lowest_db is None else i.snr_lowest_db for i in layers]
    lowest = min(ratios)
    if lowest == math.inf:
        return "no difference in any layer"
    layer = layers[ratios.index(lowest)].layer
    above = "above" if lowest >= SMALL_DB else "NOT above"
    return (
        f"{above} {SMALL_DB:g} dB in every layer (lowest utterance: {lowest:.1f} dB, in layer "
        f"{layer})"
    )


def _name(item: ScoreDifference) -> str:
    layer: Candidate | None = item.layer
    if layer is None:
        return "mean of the candidates"
    return "weighted sum" if layer == "weighted" else f"layer {layer}"
