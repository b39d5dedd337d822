"""The printed scores of a sweep."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from pipeline.cli.tables import duration
from pipeline.errors import counted

if TYPE_CHECKING:
    from pipeline.probing.results import Candidate, CandidateScore, Sweep


def show_sweep(console: Console, sweep: Sweep, page: Path) -> None:
    """Print the scores, their uncertainty and baselines, and the path of the report."""
    folds = f", {len(sweep.test_ids):,} folds" if len(sweep.test_ids) > 1 else ""
    sizes = f"{sweep.n_dev:,} dev, {sweep.n_test:,} test{folds}"
    if sweep.n_train:
        sizes = f"{counted(sweep.n_train, 'utterance')} to train, {sizes}"
    else:
        sizes = f"utterances: {sizes}"
    console.print(
        f"{sweep.task} on {', '.join(sweep.labels)}: {sizes} ({sweep.split})", markup=False
    )
    console.print(f"features: {sweep.encoder}; scores: {sweep.metric}, dev chooses", markup=False)
    console.print(_table(sweep))
    console.print(_comparison(sweep), markup=False)
    for name, value in sweep.baselines.items():
        console.print(f"  {name}: {value:.3f}", markup=False)
    for warning in sweep.warnings:
        console.print(f"WARNING: {warning}", style="bold red", markup=False)
    done = "trained" if sweep.is_trained else "evaluated"
    names = {} if sweep.is_trained else {"train": "evaluate"}
    stages = ", ".join(
        f"{names.get(stage, stage)} {duration(seconds)}" for stage, seconds in sweep.seconds.items()
    )
    console.print(f"{counted(sweep.trained, 'head')} {done}, {sweep.reused:,} reused; {stages}")
    console.print(f"report: {page}", markup=False)


def _table(sweep: Sweep) -> Table:
    """Return the scores; learning rates only of trained heads, deviations only of several seeds."""
    extras = list(sweep.scores[0].extra)
    n_seeds, labels = len({head.seed for head in sweep.heads}), sweep.layer_labels
    columns: dict[str, Callable[[CandidateScore], str]] = {
        "layer": lambda score: _label(score.layer, labels),
        "lr": lambda score: f"{score.lr:g}",
        "dev": lambda score: f"{score.dev:.3f}",
        "test": lambda score: f"{score.test:.3f}",
        "95 % interval": lambda score: f"{score.low:.3f}–{score.high:.3f}",
        "± seeds": lambda score: f"{score.seed_sd:.3f}",
    }
    if not sweep.is_trained:
        del columns["lr"]
    if n_seeds == 1:
        del columns["± seeds"]
    table = Table(box=None, pad_edge=False)
    for name in (*columns, *(extra.replace("_", "-") for extra in extras), ""):
        table.add_column(name, justify="right", no_wrap=True)
    for score in sweep.scores:
        best = score.layer == sweep.best
        cells = [cell_of(score) for cell_of in columns.values()]
        cells += [f"{score.extra[name]:.3f}" for name in extras] + ["best" if best else ""]
        table.add_row(*(Text(cell, style="bold" if best else "") for cell in cells))
    return table


def _label(layer: Candidate, labels: Mapping[int, str]) -> str:
    return labels.get(layer, str(layer)) if isinstance(layer, int) else layer


def _comparison(sweep: Sweep) -> str:
    if sweep.comparison is None:
        return "One candidate only: nothing to compare."
    from pipeline.probing.report.naming import candidate_in_sentence
    from pipeline.probing.report.p_values import p_value_text
    from pipeline.probing.results import SIGNIFICANCE_LEVEL

    best = candidate_in_sentence(sweep.comparison.best, sweep)
    second = candidate_in_sentence(sweep.comparison.second, sweep)
    is_significant = sweep.comparison.p_value < SIGNIFICANCE_LEVEL
    sure = f"{'' if is_significant else 'not '}significant at {SIGNIFICANCE_LEVEL:g}"
    p_value = p_value_text(sweep.comparison.p_value, sweep.comparison.test, digits=3)
    lead = sweep.comparison.difference * (1 if sweep.higher_is_better else -1)
    relation = "better" if lead > 0 else "worse" if lead < 0 else "different"
    return (
        f"{best} against {second}, the best two on dev: test {sweep.metric} is {relation} by "
        f"{abs(lead):.3f}, {p_value} ({sweep.comparison.test}): {sure}"
    )
