"""The part of a report of layers that is about labels: charts, tables, and what they mean."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from markupsafe import Markup

from pipeline.probing.layers.values import value_or_nan, value_text
from pipeline.probing.layers.with_labels import (
    MIN_COUNT,
    Estimate,
    LabelledLayer,
    LabelStatistics,
)
from pipeline.probing.report.charts import Chart, Line, layer_lines
from pipeline.probing.report.html import element, facts, figure, section, table

LabelsByStore = Mapping[str, LabelStatistics]
"""Statistics with labels, by the name of the store; of a single store by any name."""

COLUMNS = ("layer", "PWCCA", "± sd", "shuffled", "CCA", "SVCCA", "PNMI", "± sd", "shuffled")
"""Columns of the printed table of statistics with labels."""
_STATISTICS = {"pwcca": "PWCCA", "cca": "mean CCA", "svcca": "SVCCA", "pnmi": "PNMI"}
"""Names of the statistics, by their fields and the names of their charts."""
_MEANINGS = {
    "PWCCA": "projection-weighted canonical correlation between the mean over the frames of a span "
    "and its class as a one-hot vector: 1 if a linear map of the features gives the class, 0 if "
    "they have nothing to do with it. Directions are weighted by how much of the classes (or of "
    "the features, if these have fewer dimensions) they account for (Morcos et al., 2018). Used "
    "for layers of speech encoders by Pasad et al., 2021, whose protocol it follows with the "
    "differences that docs/probing.md lists",
    "mean CCA": "the same correlations, averaged with equal weights",
    "SVCCA": "the same average after the features are reduced to the directions that have 99 % of "
    "their variance (Raghu et al., 2017)",
    "PNMI": "mutual information between k-means clusters of frames and the classes of these "
    "frames, as a share of the entropy of the classes: 1 if the cluster determines the class, 0 "
    "if they are independent (Hsu et al., 2021). It grows with k",
    "± sd": "standard deviation over parts (CCA) or divisions (PNMI) of the utterances",
    "shuffled": "the same with shuffled labels, the chance level: a value is evidence only as far "
    "as it is above",
}
_STYLES = (("blue", "o"), ("orange", "s"), ("green", "^"), ("purple", "D"))


def label_rows(statistics: LabelStatistics) -> list[list[str]]:
    """Return the cells of the printed table, one row per layer, with the columns of `COLUMNS`."""
    return [
        [
            statistics.labels[layer.layer],
            *_cells(layer.pwcca),
            value_text(layer.cca.value),
            value_text(layer.svcca.value),
            *_cells(layer.pnmi),
        ]
        for layer in statistics.layers
    ]


def label_charts(found: LabelsByStore) -> list[Chart]:
    """Draw each statistic over the layers, with its chance level; a line per store."""
    numbers = sorted({layer.layer for one in found.values() for layer in one.layers})
    labels = {number: label for one in found.values() for number, label in one.labels.items()}
    return [
        layer_lines(
            kind,
            f"{name} with the labels of spans, and with shuffled labels, by layer",
            numbers,
            {f"{name} with labels": _lines(found, kind, numbers)},
            labels,
        )
        for kind, name in _STATISTICS.items()
    ]


def label_section(found: LabelsByStore, charts: Sequence[Chart]) -> Markup:
    """Return the section of a page; `charts` are those of `label_charts`."""
    head = (
        "layer",
        *(part for name in _STATISTICS.values() for part in (name, "± sd", "shuffled")),
    )
    content: list[object] = [
        element("p", f"Labels are those of {next(iter(found.values())).spans}."),
        *map(figure, charts),
    ]
    for name, statistics in found.items():
        labels = statistics.labels
        rows = [
            [
                labels[layer.layer],
                *(c for kind in _STATISTICS for c in _cells(_estimate(layer, kind))),
            ]
            for layer in statistics.layers
        ]
        if len(found) > 1:
            content.append(element("p", f"{name}:"))
        content += [table(head, rows, is_sortable=True), element("p", _best(statistics))]
    content.append(facts(_MEANINGS))
    for name, statistics in found.items():
        content.append(facts(_sample(name if len(found) > 1 else "", statistics)))
    return section("Labels of spans", *content)


def _lines(found: LabelsByStore, kind: str, numbers: Sequence[int]) -> list[Line]:
    lines = []
    for i, (name, statistics) in enumerate(found.items()):
        of_layer = {layer.layer: _estimate(layer, kind) for layer in statistics.layers}
        estimates = [of_layer.get(number) for number in numbers]
        colour, marker = _STYLES[i % len(_STYLES)]
        values, sds, shuffled, shuffled_sds = (
            [value_or_nan(None if e is None else getattr(e, part)) for e in estimates]
            for part in ("value", "sd", "shuffled", "shuffled_sd")
        )
        is_single = len(found) == 1
        label = "labels (mean ± sd)" if is_single else name
        other = "shuffled labels" if is_single else f"{name}, shuffled"
        lines += [
            Line(label, values, colour, marker, spread=sds),
            Line(
                other,
                shuffled,
                "orange" if is_single else colour,
                "s" if is_single else marker,
                spread=shuffled_sds,
                hollow=True,
                dash="--",
            ),
        ]
    return lines


def _best(statistics: LabelStatistics) -> str:
    """Name the layers with the highest values."""
    lines = []
    for kind in ("pwcca", "pnmi"):
        known = [
            (estimate.value, -layer.layer, estimate)
            for layer in statistics.layers
            if (estimate := _estimate(layer, kind)).value is not None
        ]
        if known:
            value, negative, estimate = max(known, key=lambda item: item[:2])
            name = _STATISTICS[kind]
            spread = max(e.sd or 0.0 for _, _, e in known)
            lowest = min(found for found, _, _ in known)
            if len(known) > 1 and value - lowest <= spread:
                lines.append(
                    f"{name} is {lowest:.3f} to {value:.3f}: the layers do not differ by more than "
                    f"the spread of one (± {spread:.3f}; shuffled labels: "
                    f"{value_text(estimate.shuffled)})."
                )
                continue
            where = " of" if len(known) == 1 else " is highest in"
            best = statistics.labels[-negative]
            lines.append(
                f"{name}{where} layer {best}: {value:.3f} ± {value_text(estimate.sd)} "
                f"(shuffled labels: {value_text(estimate.shuffled)})."
            )
    return " ".join(lines)


def _sample(name: str, statistics: LabelStatistics) -> dict[str, object]:
    stated: dict[str, object] = {"store": name} if name else {}
    return stated | {
        "spans": f"{statistics.n_spans:,} of {statistics.n_classes:,} classes (at least "
        f"{MIN_COUNT} of each); directions are fitted on most parts of the utterances, their "
        f"regularisation is chosen on another, and {statistics.n_trials} parts are scored in turn",
        "frames": f"{statistics.n_frames:,}, of which {statistics.n_labelled:,} have a label; "
        f"k={statistics.k} clusters are trained on those of half of the utterances and counted on "
        f"the other half, {statistics.n_divisions} times",
        "left out": "; ".join(statistics.notes) or "nothing",
    }


def _estimate(layer: LabelledLayer, kind: str) -> Estimate:
    found: Estimate = getattr(layer, kind)
    return found


def _cells(estimate: Estimate) -> tuple[str, str, str]:
    return value_text(estimate.value), value_text(estimate.sd), value_text(estimate.shuffled)
