"""The files of a comparison: report.html, comparison.json, charts, tables, methods.txt."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from markupsafe import Markup

from pipeline.comparing.report.charts import best_layers_chart, file_name, layers_chart
from pipeline.comparing.report.curves import curves_chart
from pipeline.comparing.report.grid import Grid, html_of, write_grid
from pipeline.comparing.report.grids import draw_grids, metric_line
from pipeline.comparing.report.sentences import head_line, headline, methods, title
from pipeline.comparing.results import Comparison, TaskComparison, document
from pipeline.files import write_atomic
from pipeline.probing.report.charts import Chart
from pipeline.probing.report.html import (
    element,
    facts,
    figure,
    join,
    section,
    warnings_box,
    write_page,
)
from pipeline.probing.report.score_tables import TABLES
from pipeline.probing.report.sweep_report import METHODS

COMPARISON = "comparison.json"
"""File of all numbers, in the folder of the comparison."""


def draw_charts(comparison: Comparison) -> dict[str, Chart]:
    """Draw the charts that a comparison has data for, by name."""
    charts = [layers_chart(task, comparison) for task in comparison.tasks]
    if any(len(variant.sweep.layers) > 1 for task in comparison.tasks for variant in task.full):
        charts.append(best_layers_chart(comparison))
    charts += [
        curves_chart(task, comparison)
        for task in comparison.tasks
        if len({variant.fraction for variant in task.variants}) > 1
    ]
    return {chart.name: chart for chart in charts}


def write_comparison(comparison: Comparison, folder: Path) -> Path:
    """Write all files of a comparison. Equal comparisons give equal bytes.

    Args:
        comparison: The comparison.
        folder: Folder of all files.

    Returns:
        Path of report.html.

    Raises:
        StoreError: A file cannot be written.
    """
    charts, grids = draw_charts(comparison), draw_grids(comparison)
    for grid in grids.values():
        write_grid(grid, folder / TABLES, comparison.version)
    write_atomic(folder / METHODS, [f"{methods(comparison)}\n".encode("utf-8", "replace")])
    text = json.dumps(document(comparison), allow_nan=False)
    write_atomic(folder / COMPARISON, [text.encode()])
    body = report_body(comparison, charts, grids)
    return write_page(folder, title(comparison), body, charts.values())


def report_body(
    comparison: Comparison, charts: Mapping[str, Chart], grids: Mapping[str, Grid]
) -> Markup:
    """Return the body of the page, with charts and tables that were drawn before."""
    tasks = comparison.tasks
    return join(
        [
            warnings_box(_first_warnings(comparison.warnings)),
            element("h1", title(comparison)),
            *(element("p", headline(task), kind="lead") for task in tasks),
            section(
                "Leaderboard",
                html_of(grids["leaderboard"], is_sortable=True),
                element("p", grids["leaderboard"].caption, kind="note"),
            ),
            *(
                [section("Best layers", figure(charts["best-layers"], _BEST_LAYERS))]
                if "best-layers" in charts
                else []
            ),
            *(_task(task, comparison, charts) for task in tasks),
            _pairs(comparison, grids),
            _heads(comparison, grids),
            _curves(comparison, charts, grids),
            section(
                "All scores",
                element("p", grids["scores"].caption, kind="note"),
                html_of(grids["scores"], is_sortable=True),
            ),
            section("Methods", element("p", methods(comparison)), _files(grids)),
            section("Sweeps", _sweeps(comparison)),
        ]
    )


_MAX_WARNINGS = 8
_BEST_LAYERS = (
    "The single layer with the best dev score, of the number of the last layer; darker cells are "
    "deeper layers."
)
_LAYERS = (
    "Test scores; bands and bars are 95 % bootstrap intervals. Beside the layers: the learned "
    "weighted sum."
)
_CURVES = (
    "Test scores of the candidate that is best on dev at each size, with 95 % bootstrap intervals. "
    "Lines are shifted sideways where their intervals would hide each other."
)


def _first_warnings(warnings: Sequence[str]) -> list[str]:
    """Return the first warnings, and how many more the reports of the sweeps have."""
    shown = list(warnings[:_MAX_WARNINGS])
    n_more = len(warnings) - len(shown)
    return [*shown, f"{n_more:,} more, in the reports of the sweeps"] if n_more else shown


def _task(task: TaskComparison, comparison: Comparison, charts: Mapping[str, Chart]) -> Markup:
    """Return the section of a task: scores by layer, and what could not be compared."""
    chart = charts[file_name("layers", task, comparison)]
    notes = [element("p", f"Note: {note}.") for note in task.notes]
    return section(f"Scores by layer: {metric_line(task)}", figure(chart, _LAYERS), *notes)


def _pairs(comparison: Comparison, grids: Mapping[str, Grid]) -> Markup:
    if "pairs" not in grids:
        reason = "There are no two sweeps of one task with the same test units."
        return section("Paired tests", element("p", reason))
    grid = grids["pairs"]
    return section(
        "Paired tests", html_of(grid, is_sortable=True), element("p", grid.caption, kind="note")
    )


def _heads(comparison: Comparison, grids: Mapping[str, Grid]) -> Markup:
    if "heads" not in grids:
        return Markup()
    prefix = len(comparison.tasks) > 1
    lines = [
        element("p", f"{task.name}, " if prefix else "", head_line(task, change))
        for task in comparison.tasks
        for change in task.head_changes
    ]
    grid = grids["heads"]
    note = element("p", grid.caption, kind="note")
    return section(
        "Does the best layer change with the head?", *lines, html_of(grid, is_sortable=True), note
    )


def _curves(
    comparison: Comparison, charts: Mapping[str, Chart], grids: Mapping[str, Grid]
) -> Markup:
    if "learning_curves" not in grids:
        return Markup()
    figures = [
        figure(charts[name], f"{task.name}. {_CURVES}")
        for task in comparison.tasks
        if (name := file_name("learning-curves", task, comparison)) in charts
    ]
    return section("Learning curves", *figures, html_of(grids["learning_curves"], is_sortable=True))


def _files(grids: Mapping[str, Grid]) -> Markup:
    names = ", ".join(grids)
    return element(
        "p",
        "For a paper: this paragraph is in ",
        element("code", METHODS),
        f", and the tables ({names}) are in ",
        element("code", f"{TABLES}/"),
        " as .tex, .md and .csv beside this page.",
        kind="note",
    )


def _sweeps(comparison: Comparison) -> Markup:
    prefix = len(comparison.tasks) > 1
    return facts(
        {
            (f"{task.name}: " if prefix else "") + variant.name: variant.folder
            for task in comparison.tasks
            for variant in task.variants
        }
    )
