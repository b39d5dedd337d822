"""The verbs `sweep` and `report`: scores of layers, and comparisons of sweeps."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.cli.comparison_tables import show_comparison
from pipeline.cli.options import IMPORTING, AsJson, Debug, paths_and_settings, stores_and_settings
from pipeline.cli.output import Answer, console, reported
from pipeline.cli.progress import Notes, SweepProgress
from pipeline.cli.sweep_tables import show_sweep
from pipeline.config import load_sweep_config, plain_overrides
from pipeline.errors import ConfigError
from pipeline.events import announced

if TYPE_CHECKING:
    from pipeline.comparing.results import Comparison


def sweep(
    arguments: Annotated[
        list[str],
        typer.Argument(
            metavar="STORE... task=... KEY=VALUE",
            help="A store, several to read as one, or several to compare; task and settings.",
        ),
    ],
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Train small heads on every layer and on their weighted sum; compare layers and stores."""
    with reported(as_json, debug) as answer:
        stores, overrides = stores_and_settings(arguments)
        config = load_sweep_config(overrides)
        with announced(Notes(console), IMPORTING):
            from pipeline.comparing.running import plan_sweeps, run_plan
            from pipeline.probing.report.sweep_report import write_report
            from pipeline.probing.result_files import summary
            from pipeline.probing.run import sweep as sweep_store

        notes = Notes(console)
        with announced(notes, "opening the stores"):
            plan = plan_sweeps(stores, config, notes)
        if len(plan.sweeps) > 1:
            _finish(*run_plan(plan, lambda: SweepProgress(console)), notes, answer)
            return
        with SweepProgress(console) as progress:
            result, folder = sweep_store(plan.sweeps[0].store, config, progress, paths=stores)
            with announced(progress, "writing the report"):
                page = write_report(result, folder)
        answer(
            lambda out: show_sweep(out, result, page),
            summary(result) | {"report": str(page)},
        )


def report(
    arguments: Annotated[
        list[str],
        typer.Argument(
            metavar="SWEEP_DIR... [out=DIR]",
            help="Folders of sweeps, or folders that contain these; where the report goes.",
        ),
    ],
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Compare finished sweeps: leaderboard over tasks, scores by layer, paired tests."""
    with reported(as_json, debug) as answer:
        folders, overrides = paths_and_settings(arguments)
        given = plain_overrides(overrides, {"out"})
        if not folders:
            raise ConfigError("no folder is given; write strata report SWEEP_DIR... [out=DIR]")
        with announced(Notes(console), IMPORTING):
            from pipeline.comparing.running import compare_folders

        notes = Notes(console)
        _finish(*compare_folders(folders, given.get("out"), notes), notes, answer)


def _finish(comparison: Comparison, folder: Path, notes: Notes, answer: Answer) -> None:
    """Write the report of a comparison, and print it."""
    from pipeline.comparing.report.writing import write_comparison
    from pipeline.comparing.results import document

    with announced(notes, "writing the report"):
        page = write_comparison(comparison, folder)
    answer(
        lambda out: show_comparison(out, comparison, page),
        document(comparison) | {"report": str(page)},
    )
