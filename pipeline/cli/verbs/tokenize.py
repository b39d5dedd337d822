"""The verb `tokenize`: its settings, and what it prints."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from pipeline.cli.options import (
    IMPORTING,
    AsJson,
    Debug,
    layer_list,
    stores_and_settings,
    whole,
)
from pipeline.cli.output import console, reported
from pipeline.cli.progress import Notes, TokenProgress
from pipeline.cli.verbs.span_settings import SPANS, check_alone, read_given_spans
from pipeline.config import plain_overrides
from pipeline.config.ranges import RANGES, Range
from pipeline.errors import ConfigError, counted
from pipeline.events import announced

if TYPE_CHECKING:
    from pipeline.spans.frame_labels import FrameLabels
    from pipeline.store.read.features import FeatureStore
    from pipeline.tokens.quality import LabelQuality
    from pipeline.tokens.run import Tokenization

SETTINGS = (
    *("layer", "k", "weights", "seed", "where", "sample_frames", "name", "codebook", "memory"),
    *("device", "spans"),
)
_CODES = Range(1, 65_535)
_FRAMES = Range(1, 10**12, "whole numbers")


def tokenize(
    arguments: Annotated[
        list[str],
        typer.Argument(
            metavar="STORE... layer=9 k=500 [KEY=VALUE...]",
            help="A store, or several that get one codebook; seed=0 where=\"split = 'train'\" "
            "sample_frames=N|all name=NAME codebook=FILE weights=FILE memory=2GB device=auto "
            "spans=FILE.",
        ),
    ],
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Train k-means on a layer and store the code of every frame; safe to run again."""
    with reported(as_json, debug) as answer:
        stores, overrides = stores_and_settings(arguments)
        given = plain_overrides(overrides, [*SETTINGS, *SPANS])
        settings = _settings(given)
        check_alone(given)
        with announced(Notes(console), IMPORTING):
            from pipeline.store.read.opening import open_store
            from pipeline.tokens.quality import token_quality
            from pipeline.tokens.run import tokenize as tokenize_stores
            from pipeline.transforms.layer_weights import read_weights

        with TokenProgress(console) as progress:
            opened = open_store(stores)
            if "weights" in given:
                settings["weights"] = read_weights(given["weights"], len(opened.layers))
            labels = _labels(opened, given, progress) if "spans" in given else None
            result = tokenize_stores(stores, observer=progress, **settings)
            quality = None
            if labels is not None:
                with announced(progress, "comparing tokens with the spans"):
                    quality = token_quality(opened, labels, result.name)
        found = asdict(result) | {"quality": None if quality is None else asdict(quality)}
        labels_of_layers = opened.layer_labels
        answer(lambda out: show_tokenization(out, result, quality, labels_of_layers), found)


def _settings(given: dict[str, str]) -> dict[str, Any]:
    """Return the settings as `pipeline.tokenize` takes them.

    Raises:
        ConfigError: One has another form.
    """
    settings: dict[str, Any] = {
        key: given[key] for key in ("where", "name", "codebook", "memory", "device") if key in given
    }
    if "layer" in given:
        layers = layer_list(given, "layer")
        if layers is None or len(layers) != 1:
            raise ConfigError(f"layer is {given['layer']!r:.60}; expected one layer, such as 9")
        settings["layer"] = layers[0]
    if "k" in given:
        settings["k"] = whole(given, "k", 0, _CODES)
    if "seed" in given:
        settings["seed"] = whole(given, "seed", 0, RANGES["split.seed"])
    if "sample_frames" in given:
        is_all = given["sample_frames"] == "all"
        settings["sample_frames"] = "all" if is_all else whole(given, "sample_frames", 0, _FRAMES)
    return settings


def _labels(store: FeatureStore, given: dict[str, str], observer: Notes) -> FrameLabels:
    """Return the labels of frames that the spans of `spans=` give.

    Raises:
        ConfigError: A setting has no effect, or another form.
        SourceError: The file cannot be read.
    """
    from pipeline.spans.frame_labels import frame_labels
    from pipeline.spans.placing import place_spans

    spans, placing = read_given_spans(given)
    placed = place_spans(store, spans, **placing)
    labels = frame_labels(store, placed)
    for note in labels.notes:
        observer.note(note)
    return labels


def show_tokenization(
    out: Console,
    result: Tokenization,
    quality: LabelQuality | None = None,
    labels: Mapping[int, str] | None = None,
) -> None:
    """Print the codebook, and how its codes are used."""
    what = "weighted sum of layers"
    if result.layer is not None:
        what = f"layer {(labels or {}).get(result.layer, result.layer)}"
    how = "trained on" if result.trained else "found; it was trained on"
    out.print(
        f"codebook {result.codebook}: {what}, k={result.k:,}, {how} "
        f"{counted(result.train_frames, 'frame')}, inertia {result.train_inertia:.6g} a frame "
        f"after {counted(result.iterations, 'iteration')}",
        markup=False,
    )
    inertia = "" if result.inertia is None else f", their inertia {result.inertia:.6g} a frame"
    out.print(
        f"tokens {result.name!r}: {counted(result.frames, 'frame')} in "
        f"{counted(result.units, 'unit')}, {result.units_written:,} of them written now{inertia}",
        markup=False,
    )
    out.print(
        f"{result.used_codes:,} of {counted(result.k, 'code')} used; entropy "
        f"{result.entropy_bits:.2f} bits, perplexity {result.perplexity:.1f}"
    )
    if quality is not None:
        pnmi = "" if quality.pnmi is None else f", PNMI {quality.pnmi:.3f}"
        out.print(
            f"{counted(quality.frames, 'frame')} of {counted(quality.labels, 'label')}: phone "
            f"purity {quality.phone_purity:.3f}, cluster purity {quality.cluster_purity:.3f}{pnmi}"
        )
