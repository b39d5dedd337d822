"""The verb `layers`: statistics of the layers of a store, or CKA between those of encoders."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipeline.cli import tables
from pipeline.cli.options import IMPORTING, AsJson, Debug, flag, stores_and_settings, whole
from pipeline.cli.output import console, reported
from pipeline.cli.progress import Notes, RunProgress
from pipeline.config import plain_overrides
from pipeline.config.ranges import RANGES, Range
from pipeline.errors import ConfigError
from pipeline.events import announced
from pipeline.files import local_folder

if TYPE_CHECKING:
    from pipeline.store.read.features import FeatureStore

SETTINGS = ("n_frames", "seed", "out", "frame_statistics")


def layers(
    arguments: Annotated[
        list[str],
        typer.Argument(
            metavar="STORE... [n_frames=20000] [seed=0] [out=DIR] [frame_statistics=false]",
            help="A store, or several: those of one encoder are read as one, those of several "
            "encoders are compared; sampled frames, report folder, whether to keep the statistics "
            "of all frames in the store.",
        ),
    ],
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Compare the layers without labels: norms, directions, CKA between layers and encoders."""
    with reported(as_json, debug) as answer:
        with announced(Notes(console), IMPORTING):
            from pipeline.feed.frames.sample import MAX_FRAMES
            from pipeline.probing.layers.between import by_encoder
            from pipeline.probing.layers.statistics import N_FRAMES
            from pipeline.store.read.opening import open_store

        stores, overrides = stores_and_settings(arguments)
        given = plain_overrides(overrides, SETTINGS)
        keeps = flag(given, "frame_statistics")
        n_frames = whole(given, "n_frames", N_FRAMES, Range(2, MAX_FRAMES))
        seed = whole(given, "seed", 0, RANGES["split.seed"])
        opened, reasons = by_encoder([open_store(store) for store in stores])
        settings: dict[str, Any] = {"layers": {"n_frames": n_frames, "seed": seed}}
        with RunProgress(console) as progress:
            if len(opened) == 1:
                found = _measure(opened[0], given.get("out"), settings, progress, keeps)
            else:
                if keeps:
                    raise ConfigError(
                        "frame_statistics=true is about one encoder, and the stores are of "
                        f"{len(opened)}; give the stores of one"
                    )
                found = _compare(opened, reasons, given.get("out"), settings, progress)
        columns, rows, document, page = found
        answer(
            lambda out: tables.show_layers(out, columns, rows, page),
            document | {"report": str(page)},
        )


Found = tuple[tuple[str, ...], list[list[str]], dict[str, Any], Path]
"""Columns and rows of a table, the JSON document, and the page."""


def _measure(
    store: FeatureStore, out: str | None, settings: dict[str, Any], progress: RunProgress,
    keeps: bool,
) -> Found:  # fmt: skip
    """Measure the layers of one encoder and write the report."""
    from pipeline.feed.frames.measuring import keep_statistics
    from pipeline.probing.layers import report
    from pipeline.probing.layers.statistics import measure_layers
    from pipeline.probing.output_folder import claim_folder, default_folder, source_of

    folder = local_folder("out", out or default_folder(store) / "layers")
    given = settings["layers"]
    with announced(progress, "measuring the layers"):
        statistics = measure_layers(store, given["n_frames"], given["seed"], progress.note)
    for warning in statistics.warnings:
        progress.note(f"WARNING: {warning}")
    folder, note = claim_folder(folder, source_of(store) | settings)
    if note:
        progress.note(note)
    with announced(progress, "writing the report"):
        page = report.write_layers_report(statistics, folder)
    if keeps:
        keep_statistics(store, progress.note)
    return report.COLUMNS, report.table_rows(statistics), asdict(statistics), page


def _compare(
    stores: list[FeatureStore], reasons: list[str], out: str | None, settings: dict[str, Any],
    progress: RunProgress,
) -> Found:  # fmt: skip
    """Compare the layers of several encoders and write the report."""
    from pipeline.probing.layers import comparison_report as report
    from pipeline.probing.layers.between import compare_encoders
    from pipeline.probing.output_folder import claim_folder, default_folder, source_of

    names = [default_folder(store).name for store in stores]
    folder = local_folder("out", out or Path("sweeps", "-vs-".join(names), "layers"))
    given = settings["layers"]
    progress.note(
        f"comparing {len(stores)} encoders, {', '.join(names)}, because their stores cannot be "
        "read as one"
    )
    with announced(progress, "comparing the layers"):
        comparison = compare_encoders(
            stores, given["n_frames"], given["seed"], progress.note, reasons
        )
    for line in (*(f"WARNING: {text}" for text in comparison.warnings), *comparison.notes):
        progress.note(line)
    folder, note = claim_folder(
        folder, {"stores": [source_of(store) for store in stores]} | settings
    )
    if note:
        progress.note(note)
    with announced(progress, "writing the report"):
        page = report.write_comparison_report(comparison, folder)
    return report.COLUMNS, report.comparison_rows(comparison), asdict(comparison), page
