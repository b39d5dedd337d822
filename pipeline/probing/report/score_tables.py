"""Tables of a sweep's scores for a paper: LaTeX, Markdown, CSV."""

from __future__ import annotations

import math
import re
from pathlib import Path

from pipeline.errors import counted
from pipeline.files import write_atomic
from pipeline.probing.report.latex import latex_table
from pipeline.probing.report.methods import listed, model_name, seeds_of
from pipeline.probing.report.naming import (
    DETECTION,
    candidate_in_sentence,
    candidate_name,
    metric_name,
)
from pipeline.probing.report.p_values import p_value_text
from pipeline.probing.report.tabular import Rows
from pipeline.probing.results import NO_RATE, CandidateScore, Sweep
from pipeline.probing.significance import N_RESAMPLES

TABLES = "tables"
"""Folder of the tables, beside the report."""
_MARKDOWN = re.compile(r"([\\`*_{}\[\]<>|~#&$])")


def write_tables(sweep: Sweep, folder: Path) -> None:
    """Write scores.tex, scores.md and scores.csv.

    Raises:
        StoreError: A file cannot be written.
    """
    texts = {"tex": latex_of(sweep), "md": markdown_of(sweep)}
    for ending, text in texts.items():
        write_atomic(folder / f"scores.{ending}", [text.encode("utf-8", "replace")])
    write_atomic(folder / "scores.csv", [score_rows(sweep).to_csv()])


def score_rows(sweep: Sweep) -> Rows:
    """Return the scores in full precision, one row per candidate.

    `lr` is missing where nothing was trained, `seed_sd` where there is one seed.
    """
    extras = extra_metrics(sweep)
    has_deviation = len(seeds_of(sweep)) > 1
    columns = ("candidate", "layer", "lr", "dev", "test", "low", "high", "seed_sd", *extras)
    rows = [
        (
            candidate_name(score.layer, sweep),
            score.layer if isinstance(score.layer, int) else None,
            score.lr if score.lr != NO_RATE else None,
            score.dev,
            score.test,
            score.low,
            score.high,
            score.seed_sd if has_deviation else None,
            *(score.extra.get(name) for name in extras),
            score.layer == sweep.best,
        )
        for score in sweep.scores
    ]
    return Rows((*columns, "is_best"), rows)


def latex_of(sweep: Sweep) -> str:
    """Return the table in LaTeX, to be read by the command input."""
    columns = re.sub(r"[^a-z0-9]+", "-", "-".join([sweep.task, *sweep.labels]).casefold())
    made = f"Strata {sweep.setup.version}".strip()
    head, rows = _cells(sweep)
    blocks = [rows, _baselines(sweep, len(head))] if sweep.baselines else [rows]
    return latex_table(
        caption(sweep),
        f"tab:{columns.strip('-')}",
        head,
        blocks,
        [score.layer for score in sweep.scores].index(sweep.best),
        f"Made by {made}.",
    )


def markdown_of(sweep: Sweep) -> str:
    """Return the table in Markdown, with its caption."""
    head, rows = _cells(sweep)
    lines = [_escaped(caption(sweep)), "", f"| {' | '.join(map(_escaped, head))} |"]
    lines.append("|---" + "|--:" * (len(head) - 1) + "|")
    for score, row in zip(sweep.scores, rows, strict=True):
        cells = [_escaped(cell) for cell in row]
        if score.layer == sweep.best:
            cells = [f"**{cell}**" if cell else "" for cell in cells]
        lines.append(f"| {' | '.join(cells)} |")
    lines += [f"| {' | '.join(map(_escaped, row))} |" for row in _baselines(sweep, len(head))]
    return "\n".join(lines) + "\n"


def caption(sweep: Sweep) -> str:
    """Return the caption: encoder, task, metric, split, sizes, seeds, interval, test."""
    direction = "higher" if sweep.higher_is_better else "lower"
    n_trials = sum(len(part) for part in sweep.truth)
    tested = counted(sweep.n_test, "test utterance")
    if sweep.metric in DETECTION:
        tested = f"{counted(n_trials, 'trial')} of {tested}"
    seeds = seeds_of(sweep)
    runs = f"Means over {len(seeds)} seeds ({listed(seeds)}); " if len(seeds) > 1 else ""
    if len(seeds) == 1:
        runs = f"Seed {seeds[0]}; "
    folds = f"{len(sweep.test_ids)} folds, " if len(sweep.test_ids) > 1 else ""
    lines = [
        f"{_capitalised(metric_name(sweep.metric))} ({direction} is better) on dev and test by "
        f"layer of {model_name(sweep)}; task {sweep.task}, labels {listed(sweep.labels)}.",
        f"{runs}{folds}{tested}; split: {sweep.split.rstrip('.')}.",
        f"Intervals: 95 % bootstrap over the test {sweep.groups}, {N_RESAMPLES:,} resamples.",
        "Bold: the best candidate on dev.",
    ]
    if sweep.comparison is not None and not math.isnan(sweep.comparison.p_value):
        lines.append(
            f"Test of its difference to {candidate_in_sentence(sweep.comparison.second, sweep)}, "
            "the "
            f"second on dev: {p_value_text(sweep.comparison.p_value, sweep.comparison.test)} "
            f"({sweep.comparison.test})."
        )
    return " ".join(lines)


def _cells(sweep: Sweep) -> tuple[list[str], list[list[str]]]:
    """Return headings, and the cells of each candidate as text."""
    extras, n_seeds = extra_metrics(sweep), len(seeds_of(sweep))
    head = ["candidate", *(["learning rate"] if n_seeds else []), "dev", "test", "95 % interval"]
    head += ["sd over seeds"] if n_seeds > 1 else []
    head += [f"test {metric_name(name)}" for name in extras]

    def cells(score: CandidateScore) -> list[str]:
        return [
            candidate_name(score.layer, sweep),
            *([f"{score.lr:g}"] if n_seeds else []),
            f"{score.dev:.3f}",
            f"{score.test:.3f}",
            f"[{score.low:.3f}, {score.high:.3f}]",
            *([f"{score.seed_sd:.3f}"] if n_seeds > 1 else []),
            *(f"{score.extra[name]:.3f}" if name in score.extra else "" for name in extras),
        ]

    return head, [cells(score) for score in sweep.scores]


def _baselines(sweep: Sweep, n_columns: int) -> list[list[str]]:
    at = 3 if seeds_of(sweep) else 2  # column of the test score
    return [
        [name, *[""] * (at - 1), f"{value:.3f}", *[""] * (n_columns - at - 1)]
        for name, value in sweep.baselines.items()
    ]


def extra_metrics(sweep: Sweep) -> list[str]:
    """Return the names of the further test scores, in the order of their first candidate."""
    return list(dict.fromkeys(name for score in sweep.scores for name in score.extra))


def _escaped(text: str) -> str:
    """Return text as Markdown that shows it, on one line."""
    return _MARKDOWN.sub(r"\\\1", " ".join(text.split()))


def _capitalised(text: str) -> str:
    return text[:1].upper() + text[1:]
