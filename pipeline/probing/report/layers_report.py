"""The report of `strata layers`: one page on what the layers look like without labels."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from pipeline.files import write_atomic
from pipeline.probing.frame_sample import SLICE
from pipeline.probing.layer_statistics import OUTLIER, Anatomy, LayerAnatomy
from pipeline.probing.report.charts import Chart, Line, Scale, heat_map, layer_lines
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

_MEANINGS = {
    "layer": "its number",
    "norm": "mean length (L2) of a frame",
    "sd": "standard deviation of that length over frames",
    "max |x|": "largest absolute value of a feature in the sample",
    "dim": "the dimension where that is",
    "anisotropy": "mean cosine of two frames from different utterances. 0: directions are used "
    "evenly; 1: all frames point the same way, so that cosines say little (Ethayarajh, 2019)",
    "smoothness": "mean cosine of neighbouring frames, 20 ms apart; compare it with anisotropy",
    "PC 1": "share of the variance along the first principal component",
    "rank": "effective rank, the number of dimensions that are really used: the exponential of "
    "the entropy of the shares of variance (Roy and Vetterli, 2007)",
    "next": "linear CKA (centred kernel alignment) with the layer of the next row: 1 where one "
    "is the other, turned and scaled (Kornblith et al., 2019)",
}
HEAD = tuple(_MEANINGS)
"""Columns of the table of layers; all of them fit into 80 characters."""
_DENSE = 0.05  # step at which the scale of the CKA map begins


def write_anatomy(found: Anatomy, folder: Path) -> Path:
    """Writes report.html with its charts as SVG and PNG, and layers.json.

    Returns:
        Path of report.html.

    Raises:
        StoreError: The folder cannot be written to.
    """
    text = json.dumps(asdict(found), indent=1, allow_nan=False)
    write_atomic(folder / "layers.json", [f"{text}\n".encode()])
    sizes, directions, spread, cka = charts = charts_of(found)
    title = "What the layers look like"
    body = join(
        [
            warnings_box(found.warnings),
            element("h1", title),
            element("p", f"{found.encoder}; no labels were used.", kind="lead"),
            section("Which layers are alike", figure(cka), *_sentences(_likeness(found))),
            section("Sizes", figure(sizes), *_sentences(_outliers(found))),
            section("Directions", figure(directions)),
            section("Variance", figure(spread)),
            section("All numbers", table(HEAD, table_rows(found)), facts(_MEANINGS)),
            section("The sample", _sample(found)),
        ]
    )
    return write_page(folder, f"{title}: {found.encoder}", body, charts)


def table_rows(found: Anatomy) -> list[list[str]]:
    """A row of text per layer, under `HEAD`."""
    following = [row[i + 1] for i, row in enumerate(found.cka[:-1])]
    return [
        [
            str(layer.layer),
            f"{layer.norm:.2f}",
            f"{layer.norm_sd:.2f}",
            f"{layer.largest:.2f}",
            str(layer.largest_dim),
            _text(layer.anisotropy),
            _text(layer.smoothness),
            _text(layer.first_component),
            _text(layer.effective_rank, 1),
            _text(alike),
        ]
        for layer, alike in zip(found.layers, [*following, None], strict=True)
    ]


def charts_of(found: Anatomy) -> list[Chart]:
    """Sizes, directions, spread of variance, and the heat map of CKA."""
    layers = found.layers
    numbers = [layer.layer for layer in layers]
    norm = Line("norm", [a.norm for a in layers], spread=[a.norm_sd for a in layers])
    largest = Line("largest", [a.largest for a in layers], "orange", "s")
    neighbours = [_number(a.smoothness) for a in layers]
    strangers = [_number(a.anisotropy) for a in layers]
    first = [_number(a.first_component) for a in layers]
    rank = [_number(a.effective_rank) for a in layers]
    return [
        layer_lines(
            "sizes",
            "Norm of a frame, and largest feature, against the layer",
            numbers,
            {"norm of a frame (mean ± sd)": [norm], "largest |feature|": [largest]},
        ),
        layer_lines(
            "directions",
            "Mean cosine of neighbouring frames and of frames from different utterances",
            numbers,
            {
                "mean cosine": [
                    Line("neighbouring frames (smoothness)", neighbours, "green", "^"),
                    Line("different utterances (anisotropy)", strangers),
                ]
            },
        ),
        layer_lines(
            "variance",
            "Variance in the first principal component, and effective rank, against the layer",
            numbers,
            {
                "variance in the first component (share)": [Line("first", first)],
                "effective rank (dimensions)": [Line("rank", rank, "orange", "s")],
            },
        ),
        _cka_chart(found),
    ]


def _cka_chart(found: Anatomy) -> Chart:
    known = [value for row in found.cka for value in row if value is not None]
    low = max(0.0, math.floor(min(known, default=0.0) / _DENSE - 1) * _DENSE)
    return heat_map(
        "cka",
        "Linear CKA between every two layers",
        [[_number(value) for value in row] for row in found.cka],
        [["–" if value is None else f"{value:.2f}" for value in row] for row in found.cka],
        [str(layer.layer) for layer in found.layers],
        ("layer", "layer"),
        Scale("linear CKA", low=low),
        upwards=True,
    )


def _likeness(found: Anatomy) -> list[str]:
    """What the heat map shows, in words."""
    names = [layer.layer for layer in found.layers]
    pairs = [
        (value, names[i], names[j])
        for i, row in enumerate(found.cka)
        for j, value in enumerate(row[:i])
        if value is not None
    ]
    if not pairs:
        return ["There are no two layers to compare."]
    value, upper, lower = min(pairs)
    lines = [f"Least alike are layers {lower} and {upper} (CKA {value:.3f})."]
    places = {name: i for i, name in enumerate(names)}
    steps = [pair for pair in pairs if places[pair[1]] - places[pair[2]] == 1]
    if len(steps) > 1:
        value, upper, lower = min(steps)
        lines.append(
            f"From one layer to the next most changes between {lower} and {upper} ({value:.3f}), "
        )
        value, upper, lower = max(steps)
        lines[-1] += f"and least between {lower} and {upper} ({value:.3f})."
    return lines


def _outliers(found: Anatomy) -> list[str]:
    """Dimensions that dwarf the others, layer by layer."""
    named = [_named(layer) for layer in found.layers if layer.outliers]
    if not named:
        return [f"No dimension is more than {OUTLIER:g} times as large as the median one."]
    return [
        f"Outlier dimensions (root mean square at least {OUTLIER:g} times that of the median "
        f"dimension): {'; '.join(named)}. They rule norms and cosines; standardise the features "
        "before comparing frames by either."
    ]


def _named(layer: LayerAnatomy) -> str:
    listed = ", ".join(f"{item.dim} ({item.ratio:.0f}×)" for item in layer.outliers)
    return f"layer {layer.layer}: {listed}"


def _sample(found: Anatomy) -> str:
    return facts(
        {
            "store": found.store,
            "frames": f"{found.n_frames:,} of {found.n_utterances:,} utterances, in slices of up "
            f"to {SLICE} neighbours, drawn evenly over all frames",
            "seed": found.seed,
        }
    )


def _sentences(lines: Sequence[str]) -> list[str]:
    return [element("p", line) for line in lines]


def _number(value: float | None) -> float:
    return math.nan if value is None else value


def _text(value: float | None, digits: int = 3) -> str:
    return "–" if value is None else f"{value:.{digits}f}"
