"""The verb `layers`: statistics of the layers of a store, or of the stores of several encoders."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipeline.cli import tables
from pipeline.cli.options import (
    IMPORTING,
    AsJson,
    Debug,
    flag,
    stores_and_settings,
    whole,
)
from pipeline.cli.output import console, reported
from pipeline.cli.progress import Notes, RunProgress
from pipeline.cli.verbs.span_settings import SPANS, check_alone, read_given_spans
from pipeline.config import plain_overrides
from pipeline.config.ranges import RANGES, Range
from pipeline.errors import ConfigError
from pipeline.events import announced
from pipeline.files import local_folder

if TYPE_CHECKING:
    from pipeline.probing.layers.with_labels import LabelStatistics
    from pipeline.spans.placing import PlacedSpans
    from pipeline.spans.table import Spans
    from pipeline.store.read.features import FeatureStore

SETTINGS = ("n_frames", "seed", "out", "frame_statistics", "spans", "n_spans", "k")
_OF_SPANS = ("n_spans", "k")
_CODES = Range(2, 65_535)
_SPANS = Range(20, 1_000_000)


def layers(
    arguments: Annotated[
        list[str],
        typer.Argument(
            metavar="STORE... [n_frames=20000] [seed=0] [out=DIR] [frame_statistics=false] "
            "[spans=FILE] [n_spans=10000] [k=100]",
            help="A store, or several: those of one encoder are read as one, those of several "
            "encoders are compared; sampled frames, report folder, whether to keep the statistics "
            "of all frames in the store; spans with labels, how many, and k-means clusters.",
        ),
    ],
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Compare the layers: norms, directions, CKA between layers and encoders, CCA with labels."""
    with reported(as_json, debug) as answer:
        with announced(Notes(console), IMPORTING):
            from pipeline.feed.frames.sample import MAX_FRAMES
            from pipeline.probing.layers.between import by_encoder
            from pipeline.probing.layers.statistics import N_FRAMES
            from pipeline.store.read.opening import open_store

        stores, overrides = stores_and_settings(arguments)
        given = plain_overrides(overrides, [*SETTINGS, *SPANS])
        keeps = flag(given, "frame_statistics")
        n_frames = whole(given, "n_frames", N_FRAMES, Range(2, MAX_FRAMES))
        seed = whole(given, "seed", 0, RANGES["split.seed"])
        with_labels = _with_labels(given)
        opened, reasons = by_encoder([open_store(store) for store in stores])
        if len(opened) > 1 and keeps:
            raise ConfigError(
                "frame_statistics=true is about one encoder, and the stores are of "
                f"{len(opened)}; give the stores of one"
            )
        run = _Run(given, with_labels, n_frames, seed)
        with RunProgress(console) as progress:
            if len(opened) == 1:
                found = _measure(opened[0], run, progress)
                if keeps:
                    _keep_statistics(opened[0], progress)
            else:
                found = _compare(opened, reasons, run, progress)
        tables_of, document, page = found
        answer(
            lambda out: tables.show_layers(out, tables_of, page),
            document | {"report": str(page)},
        )


@dataclass(frozen=True)
class _Run:
    """Settings of a run.

    Attributes:
        given: All settings that are given, as text.
        with_labels: Those of statistics with labels; None without spans.
        n_frames: Frames of the sample.
        seed: Seed of the samples.
    """

    given: dict[str, str]
    with_labels: dict[str, int] | None
    n_frames: int
    seed: int

    def folder(self, default: Path) -> Path:
        """Return the folder that is asked for."""
        return local_folder("out", self.given.get("out") or default / "layers")

    def settings(self, labels: Iterable[LabelStatistics]) -> dict[str, Any]:
        """Return what distinguishes the results from others."""
        settings: dict[str, Any] = {"n_frames": self.n_frames, "seed": self.seed}
        if self.with_labels is not None:
            settings |= self.with_labels | {"spans": [one.digest for one in labels]}
        return {"layers": settings}

    @cached_property
    def spans(self) -> tuple[Spans, dict[str, Any]]:
        """The spans of `spans=`, and the settings of `place_spans`.

        Silence is left out as in sweeps of phones, unless `spans.skip` is given.

        Raises:
            ConfigError: A setting of the spans is wrong.
            SourceError: The file cannot be read.
        """
        from pipeline.config.loading import load_sweep_config

        return read_given_spans(self.given, load_sweep_config(["task=phone"]).task.silence)

    def placed(self, store: FeatureStore) -> PlacedSpans | None:
        """Return the spans in a store; None without spans.

        Raises:
            ConfigError: As for `spans`.
            SourceError: As for `spans`; or they are of no utterance of the store.
        """
        if self.with_labels is None:
            return None
        from pipeline.spans.placing import place_spans

        spans, placing = self.spans
        return place_spans(store, spans, **placing)

    def labels(
        self, store: FeatureStore, placed: PlacedSpans | None, progress: RunProgress
    ) -> LabelStatistics | None:
        """Return the statistics with labels of a store; None without spans."""
        if self.with_labels is None or placed is None:
            return None
        from pipeline.probing.layers.with_labels import measure_with_labels

        with announced(progress, "comparing layers with the labels of spans"):
            found = measure_with_labels(
                store,
                placed,
                Path(self.given["spans"]).name,
                n_frames=self.n_frames,
                seed=self.seed,
                note=progress.note,
                **self.with_labels,
            )
        for line in found.notes:
            progress.note(line)
        return found


Found = tuple[list[tables.NumberTable], dict[str, Any], Path]
"""Tables, the JSON document, and the page."""


def _with_labels(given: dict[str, str]) -> dict[str, int] | None:
    """Return the settings of statistics with labels; None if there are no spans.

    Raises:
        ConfigError: One is given without spans, or has another form.
    """
    from pipeline.probing.layers.with_labels import N_CLUSTERS, N_SPANS

    check_alone(given)
    if "spans" in given:
        return {
            "n_spans": whole(given, "n_spans", N_SPANS, _SPANS),
            "k": whole(given, "k", N_CLUSTERS, _CODES),
        }
    if alone := [key for key in _OF_SPANS if key in given]:
        raise ConfigError(f"{alone[0]} is about the file of spans=FILE, which is not given")
    return None


def _measure(store: FeatureStore, run: _Run, progress: RunProgress) -> Found:
    """Measure the layers of one encoder and write the report."""
    from pipeline.probing.layers import label_report, report
    from pipeline.probing.layers.statistics import measure_layers
    from pipeline.probing.output_folder import claim_folder, default_folder, source_of

    folder = run.folder(default_folder(store))
    placed = run.placed(store)
    with announced(progress, "measuring the layers"):
        statistics = measure_layers(store, run.n_frames, run.seed, progress.note)
    for warning in statistics.warnings:
        progress.note(f"WARNING: {warning}")
    labels = run.labels(store, placed, progress)
    used = [] if labels is None else [labels]
    folder, note = claim_folder(folder, source_of(store) | run.settings(used))
    if note:
        progress.note(note)
    with announced(progress, "writing the report"):
        page = report.write_layers_report(statistics, folder, labels)
    shown: list[tables.NumberTable] = [(report.COLUMNS, report.table_rows(statistics))]
    shown += [(label_report.COLUMNS, label_report.label_rows(one)) for one in used]
    return shown, report.report_document(statistics, labels), page


def _keep_statistics(store: FeatureStore, progress: RunProgress) -> None:
    from pipeline.feed.frames.measuring import keep_statistics

    keep_statistics(store, progress.note)


def _compare(
    stores: list[FeatureStore], reasons: list[str], run: _Run, progress: RunProgress
) -> Found:
    """Compare the layers of several encoders and write the report."""
    from pipeline.probing.layers import comparison_report as report
    from pipeline.probing.layers import label_report
    from pipeline.probing.layers.between import are_one_encoder, compare_encoders, names_of
    from pipeline.probing.output_folder import claim_folder, default_folder, source_of

    names, folders = names_of(stores), [default_folder(store).name for store in stores]
    folder = run.folder(Path("sweeps", "-vs-".join(folders)))
    what = "stores of one encoder" if are_one_encoder(stores) else "encoders"
    progress.note(
        f"comparing {len(stores)} {what}, {', '.join(names)}, because their stores cannot be read "
        "as one"
    )
    placed = [run.placed(store) for store in stores]
    with announced(progress, "comparing the layers"):
        comparison = compare_encoders(stores, run.n_frames, run.seed, progress.note, reasons)
    for line in (*(f"WARNING: {text}" for text in comparison.warnings), *comparison.notes):
        progress.note(line)
    labels = {
        encoder.name: found
        for encoder, store, spans in zip(comparison.encoders, stores, placed, strict=True)
        if (found := run.labels(store, spans, progress)) is not None
    }
    sources = {"stores": [source_of(store) for store in stores]}
    folder, note = claim_folder(folder, sources | run.settings(labels.values()))
    if note:
        progress.note(note)
    with announced(progress, "writing the report"):
        page = report.write_comparison_report(comparison, folder, labels)
    shown: list[tables.NumberTable] = [(report.COLUMNS, report.comparison_rows(comparison))]
    shown += [
        ((*label_report.COLUMNS, "encoder"), [[*row, name] for row in label_report.label_rows(one)])
        for name, one in labels.items()
    ]
    return shown, report.comparison_document(comparison, labels), page
