"""The report of `strata layers`: a page of layer statistics."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from markupsafe import Markup

from pipeline.errors import counted
from pipeline.feed.frames.sample import SLICE_FRAMES
from pipeline.files import write_atomic
from pipeline.probing.layers.label_report import label_charts, label_section
from pipeline.probing.layers.statistics import OUTLIER_RATIO, LayerStatistics, StoreStatistics
from pipeline.probing.layers.values import cka_map, value_or_nan, value_text
from pipeline.probing.layers.with_labels import LabelStatistics
from pipeline.probing.report.charts import Chart, Line, layer_lines
from pipeline.probing.report.html import (
    element,
    facts,
    figure,
    join,
    section,
    table,
    warnings_box,
    write_page,
)
from pipeline.probing.report.tabular import Rows

_MEANINGS = {
    "layer": "number of the layer, or its name if it is neither 0 nor a block",
    "norm": "mean L2 norm of a frame",
    "sd": "standard deviation of the norm over frames",
    "max |x|": "largest absolute component of a frame in the sample",
    "dim": "dimension of that component",
    "anisotropy": "mean cosine of two frames of different utterances. 0: directions are "
    "distributed evenly; 1: all frames have one direction, and cosines are not informative "
    "(Ethayarajh, 2019)",
    "smoothness": "mean cosine of consecutive frames; compare it with anisotropy",
    "PC 1": "share of the variance along the first principal component",
    "rank": "effective rank, the number of dimensions in use: the exponential of the entropy of "
    "the shares of variance (Roy and Vetterli, 2007)",
    "next": "linear CKA (centred kernel alignment) with the layer of the next row: 1 if one is a "
    "rotated and scaled copy of the other (Kornblith et al., 2019)",
}
COLUMNS = tuple(_MEANINGS)
"""Columns of the table of layers; together they fit into 80 characters."""


def write_layers_report(
    statistics: StoreStatistics, folder: Path, labels: LabelStatistics | None = None
) -> Path:
    """Write report.html, its charts in `figures/`, and layers.json.

    Args:
        statistics: Statistics without labels.
        folder: Where to write.
        labels: Statistics with labels.

    Returns:
        Path of report.html.

    Raises:
        StoreError: A file cannot be written.
    """
    text = json.dumps(report_document(statistics, labels), indent=1, allow_nan=False)
    write_atomic(folder / "layers.json", [f"{text}\n".encode()])
    norms, directions, variance, cka = charts = draw_charts(statistics)
    numbers = table(COLUMNS, table_rows(statistics), is_sortable=True)
    title = "Layer statistics"
    found = {} if labels is None else {"": labels}
    of_labels = label_charts(found) if found else []
    lead = "Without and with labels." if found else "Computed without labels."
    body = join(
        [
            warnings_box(statistics.warnings),
            element("h1", title),
            element("p", f"{statistics.encoder}. {lead}", kind="lead"),
            *([label_section(found, of_labels)] if found else []),
            section("Similarity of layers", figure(cka), *_paragraphs(_similarity(statistics))),
            section("Norms", figure(norms), *_paragraphs(_outliers(statistics))),
            section("Directions", figure(directions)),
            section("Variance", figure(variance)),
            section("All numbers", numbers, facts(_MEANINGS)),
            section("The sample", _sample(statistics)),
        ]
    )
    return write_page(folder, f"{title}: {statistics.encoder}", body, [*charts, *of_labels])


def report_document(
    statistics: StoreStatistics, labels: LabelStatistics | None = None
) -> dict[str, Any]:
    """Return all numbers, ready for JSON; with labels `labels` has theirs."""
    return asdict(statistics) | ({} if labels is None else {"labels": asdict(labels)})


def table_rows(statistics: StoreStatistics) -> list[list[str]]:
    """Return the cells of the table of layers, one row per layer, with the columns of `COLUMNS`."""
    following = [row[i + 1] for i, row in enumerate(statistics.cka[:-1])]
    labels = statistics.labels
    return [
        [
            labels[layer.layer],
            f"{layer.norm:.2f}",
            f"{layer.norm_sd:.2f}",
            f"{layer.largest:.2f}",
            str(layer.largest_dim),
            value_text(layer.anisotropy),
            value_text(layer.smoothness),
            value_text(layer.first_component),
            value_text(layer.effective_rank, 1),
            value_text(cka),
        ]
        for layer, cka in zip(statistics.layers, [*following, None], strict=True)
    ]


def draw_charts(statistics: StoreStatistics) -> list[Chart]:
    """Draw norms, directions, variance, and the heat map of CKA."""
    layers = statistics.layers
    numbers, labels = [layer.layer for layer in layers], statistics.labels
    norm = Line("norm", [a.norm for a in layers], spread=[a.norm_sd for a in layers])
    largest = Line("largest", [a.largest for a in layers], "orange", "s")
    smoothness = [value_or_nan(a.smoothness) for a in layers]
    anisotropy = [value_or_nan(a.anisotropy) for a in layers]
    first = [value_or_nan(a.first_component) for a in layers]
    rank = [value_or_nan(a.effective_rank) for a in layers]
    return [
        layer_lines(
            "sizes",
            "Norm of a frame, and largest feature, by layer",
            numbers,
            {"norm of a frame (mean ± sd)": [norm], "largest |feature|": [largest]},
            labels,
        ),
        layer_lines(
            "directions",
            "Mean cosine of consecutive frames, and of frames of different utterances, by layer",
            numbers,
            {
                "mean cosine": [
                    Line("consecutive frames (smoothness)", smoothness, "green", "^"),
                    Line("different utterances (anisotropy)", anisotropy, dash="--"),
                ]
            },
            labels,
        ),
        layer_lines(
            "variance",
            "Share of variance of the first principal component, and effective rank, by layer",
            numbers,
            {
                "share of variance, component 1": [Line("first", first)],
                "effective rank (dimensions)": [Line("rank", rank, "orange", "s")],
            },
            labels,
        ),
        _cka_chart(statistics),
    ]


def _cka_chart(statistics: StoreStatistics) -> Chart:
    names = [layer.layer for layer in statistics.layers]
    pairs = [
        (name, other, value)
        for name, row in zip(names, statistics.cka, strict=True)
        for other, value in zip(names, row, strict=True)
    ]
    return cka_map(
        "cka",
        "Linear CKA of each pair of layers",
        statistics.cka,
        list(statistics.labels.values()),
        ("layer", "layer"),
        Rows(("layer", "other_layer", "cka"), pairs),
    )


def _similarity(statistics: StoreStatistics) -> list[str]:
    """Describe the heat map."""
    labels = list(statistics.labels.values())
    pairs = [
        (value, i, j)
        for i, row in enumerate(statistics.cka)
        for j, value in enumerate(row[:i])
        if value is not None
    ]
    if not pairs:
        return ["There are no two layers to compare."]
    value, upper, lower = min(pairs)
    both = f"{labels[lower]} and {labels[upper]}"
    lines = [f"Layers {both} are the least similar (CKA {value:.3f})."]
    adjacent = [pair for pair in pairs if pair[1] - pair[2] == 1]
    if len(adjacent) > 1:
        value, upper, lower = min(adjacent)
        least = f"least similar between {labels[lower]} and {labels[upper]} (CKA {value:.3f})"
        value, upper, lower = max(adjacent)
        most = f"most similar between {labels[lower]} and {labels[upper]} (CKA {value:.3f})"
        lines.append(f"Adjacent layers are {least} and {most}.")
    return lines


def _outliers(statistics: StoreStatistics) -> list[str]:
    """Describe the outlier dimensions of each layer."""
    labels = statistics.labels
    listed = [
        _list_outliers(labels[layer.layer], layer) for layer in statistics.layers if layer.outliers
    ]
    if not listed:
        return [f"No dimension is more than {OUTLIER_RATIO:g} times as large as the median one."]
    return [
        f"Outlier dimensions (root mean square at least {OUTLIER_RATIO:g} times that of the median "
        f"dimension): {'; '.join(listed)}. They dominate norms and cosines; standardise the "
        "features before comparing frames by either."
    ]


def _list_outliers(label: str, layer: LayerStatistics) -> str:
    listed = ", ".join(f"{item.dim} ({item.ratio:.0f}×)" for item in layer.outliers)
    return f"layer {label}: {listed}"


def _sample(statistics: StoreStatistics) -> Markup:
    return facts(
        {
            "store": statistics.store,
            "frames": f"{statistics.n_frames:,} from "
            f"{counted(statistics.n_utterances, 'utterance')}, in slices of up to {SLICE_FRAMES} "
            "consecutive frames, drawn uniformly over all frames",
            "seed": statistics.seed,
        }
    )


def _paragraphs(lines: Sequence[str]) -> list[Markup]:
    return [element("p", line) for line in lines]
