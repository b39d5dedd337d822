"""The report of `strata layers` of several encoders: a page of CKA between their layers."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from markupsafe import Markup

from pipeline.errors import counted
from pipeline.feed.frames.sample import SLICE_FRAMES
from pipeline.files import write_atomic
from pipeline.probing.layers.between import ComparedEncoder, EncoderComparison, LayerPairs
from pipeline.probing.layers.label_report import LabelsByStore, label_charts, label_section
from pipeline.probing.layers.values import cka_map, value_text
from pipeline.probing.report.charts import Chart
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

COLUMNS = ("encoder", "layer", "compared with", "most similar layer", "CKA", "± s.e.", "chance")
"""Columns of the table of the most similar layers."""
_MEANINGS = {
    "CKA": "linear centred kernel alignment of two layers over the same frames: 1 if one is a "
    "rotated and scaled copy of the other, near 0 if they are unrelated (Kornblith et al., 2019). "
    "Numbers of features may differ",
    "± s.e.": "standard error, by a jackknife over groups of utterances",
    "chance": "mean CKA over all orders of the frames of one of the two layers: what frames give "
    "that have nothing to do with each other. It falls with more frames (n_frames=)",
}


def write_comparison_report(
    comparison: EncoderComparison, folder: Path, labels: LabelsByStore | None = None
) -> Path:
    """Write report.html, its charts in `figures/`, and layers.json.

    Args:
        comparison: CKA between the layers.
        folder: Where to write.
        labels: Statistics with labels, by the name of the encoder.

    Returns:
        Path of report.html.

    Raises:
        StoreError: A file cannot be written.
    """
    text = json.dumps(comparison_document(comparison, labels), indent=1, allow_nan=False)
    write_atomic(folder / "layers.json", [f"{text}\n".encode()])
    charts = draw_comparison(comparison)
    of_labels = label_charts(labels) if labels else []
    names = [encoder.name for encoder in comparison.encoders]
    title = f"Layers of {' and '.join(names)}"
    encoders = {encoder.name: encoder.encoder for encoder in comparison.encoders}
    body = join(
        [
            warnings_box(comparison.warnings),
            element("h1", title),
            element("p", "Similarity of layers over the same frames.", kind="lead"),
            facts(encoders),
            *(
                section(
                    f"{pair.first} and {pair.second}",
                    figure(chart),
                    element("p", _most_similar(comparison, pair)),
                )
                for pair, chart in zip(comparison.pairs, charts, strict=True)
            ),
            section(
                "Most similar layers",
                table(COLUMNS, comparison_rows(comparison), is_sortable=True),
                facts(_MEANINGS),
            ),
            *([label_section(labels, of_labels)] if labels else []),
            section("The sample", _sample(comparison)),
        ]
    )
    return write_page(folder, title, body, [*charts, *of_labels])


def comparison_document(
    comparison: EncoderComparison, labels: LabelsByStore | None = None
) -> dict[str, Any]:
    """Return all numbers, ready for JSON; with labels `labels` has theirs by encoder."""
    of_labels = {name: asdict(found) for name, found in (labels or {}).items()}
    return asdict(comparison) | ({"labels": of_labels} if labels else {})


def comparison_rows(comparison: EncoderComparison) -> list[list[str]]:
    """Return the cells of the table: for each layer, the most similar layer of each other encoder.

    Columns are those of `COLUMNS`.
    """
    rows = []
    layers = {encoder.name: encoder.labels for encoder in comparison.encoders}
    for pair in comparison.pairs:
        for own, other, is_turned in (
            (pair.first, pair.second, False),
            (pair.second, pair.first, True),
        ):
            cka, error, chance = (
                [*zip(*matrix, strict=True)] if is_turned else matrix
                for matrix in (pair.cka, pair.error, pair.chance)
            )
            for i, layer in enumerate(layers[own]):
                known = [(value, -j) for j, value in enumerate(cka[i]) if value is not None]
                if not known:
                    rows.append([own, layer, other, "–", "–", "–", "–"])
                    continue
                j = -max(known)[1]
                values = [value_text(matrix[i][j]) for matrix in (cka, error, chance)]
                rows.append([own, layer, other, layers[other][j], *values])
    return rows


def draw_comparison(comparison: EncoderComparison) -> list[Chart]:
    """Draw a heat map of each pair of encoders."""
    encoders = {encoder.name: encoder for encoder in comparison.encoders}
    is_single = len(comparison.pairs) == 1
    return [
        _chart("cka" if is_single else f"cka-{number}", encoders, pair)
        for number, pair in enumerate(comparison.pairs, 1)
    ]


def _chart(name: str, encoders: dict[str, ComparedEncoder], pair: LayerPairs) -> Chart:
    columns = ("first", "layer", "second", "other_layer", "cka", "standard_error", "chance")
    one, two = encoders[pair.first], encoders[pair.second]
    numbers = [
        (pair.first, layer, pair.second, other, pair.cka[i][j], pair.error[i][j], pair.chance[i][j])
        for i, layer in enumerate(one.layers)
        for j, other in enumerate(two.layers)
    ]
    return cka_map(
        name,
        f"Linear CKA of each layer of {pair.first} with each layer of {pair.second}",
        pair.cka,
        one.labels,
        (f"layer of {pair.first}", f"layer of {pair.second}"),
        Rows(columns, numbers),
        two.labels,
    )


def _most_similar(comparison: EncoderComparison, pair: LayerPairs) -> str:
    """Describe the heat map of a pair."""
    layers = {encoder.name: encoder.labels for encoder in comparison.encoders}
    known = [
        (value, i, j, pair.error[i][j], pair.chance[i][j])
        for i, row in enumerate(pair.cka)
        for j, value in enumerate(row)
        if value is not None
    ]
    if not known:
        return "All layers of one of the encoders are constant in the sample."
    most, least = max(known), min(known)
    error = "" if most[3] is None else f" ± {most[3]:.3f}"
    one, two = layers[pair.first], layers[pair.second]
    return (
        f"Layer {one[most[1]]} of {pair.first} and layer {two[most[2]]} of {pair.second} are the "
        f"most similar (CKA {most[0]:.3f}{error}), layers {one[least[1]]} and {two[least[2]]} the "
        "least "
        f"({least[0]:.3f}). Frames in any order give at most {max(k[4] or 0.0 for k in known):.3f}."
    )


def _sample(comparison: EncoderComparison) -> Markup:
    stores = {f"store of {encoder.name}": encoder.store for encoder in comparison.encoders}
    return facts(
        stores
        | {
            "frames": f"{comparison.n_frames:,} from "
            f"{counted(comparison.n_utterances, 'utterance')} of all stores, in slices of up to "
            f"{SLICE_FRAMES} consecutive frames, drawn uniformly over all frames; the same frames "
            "of every store",
            "left out": "; ".join(comparison.notes) or "nothing",
            "groups of the jackknife": comparison.n_groups,
            "seed": comparison.seed,
        }
    )
