"""Tables of a comparison: leaderboard, paired tests, scores, heads, learning curves."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from pipeline.comparing.heads import MIN_RANKED
from pipeline.comparing.naming import SEPARATOR, percent
from pipeline.comparing.report.grid import Grid
from pipeline.comparing.results import Comparison, PairTest, TaskComparison, Variant
from pipeline.probing.report.naming import candidate_name, metric_name
from pipeline.probing.report.tabular import Rows
from pipeline.probing.results import NO_RATE, SIGNIFICANCE_LEVEL, Candidate, CandidateScore

_TWO_METHODS = (
    "The interval (bootstrap) and the p-value (the test) are of two methods, which can disagree "
    "near the border; the p-value decides."
)
DIRECTIONS = {True: "higher is better", False: "lower is better"}


def draw_grids(comparison: Comparison) -> dict[str, Grid]:
    """Return the tables that a comparison has data for, by name."""
    grids = [leaderboard(comparison), pairs(comparison), scores(comparison)]
    if any(task.head_changes for task in comparison.tasks):
        grids.append(heads(comparison))
    if len(comparison.fractions) > 1:
        grids.append(learning_curves(comparison))
    warning = _random_weights(comparison)
    return {grid.name: _with_warning(grid, warning) for grid in grids if grid.rows}


def _random_weights(comparison: Comparison) -> str:
    """Return a sentence that names the encoders with random weights; nothing without any."""
    names = ", ".join(comparison.random_encoders)
    return f"RANDOM WEIGHTS, so scores say nothing about a trained encoder: {names}. " * bool(names)


def _with_warning(grid: Grid, warning: str) -> Grid:
    """Return a table and its parts with a warning before the caption."""
    parts = tuple(_with_warning(part, warning) for part in grid.parts)
    return replace(grid, caption=f"{warning}{grid.caption}", parts=parts)


def row_name(comparison: Comparison, variant: Variant) -> str:
    """Return the name of an encoder with its head, as the leaderboard shows it."""
    parts = [variant.encoder, *([variant.head] if comparison.names_heads else [])]
    return SEPARATOR.join([*parts, *([variant.setting] if variant.setting else [])])


def leaderboard(comparison: Comparison) -> Grid:
    """Return the scores of each encoder and head, by task: best layer and weighted sum."""
    names = dict.fromkeys(
        row_name(comparison, variant)
        for encoder in comparison.encoders
        for task in comparison.tasks
        for variant in task.full
        if variant.encoder == encoder
    )
    cells: dict[tuple[str, str, bool], str] = {}
    bold_names, long = set(), []
    for task in comparison.tasks:
        for variant in task.full:
            name, is_best = row_name(comparison, variant), task.is_best(variant)
            for score in (variant.best_layer, variant.weighted):
                if score is None:
                    continue
                is_sum, is_chosen = score is not variant.best_layer, score == variant.best
                cells[name, task.name, is_sum] = score_text(score, variant, with_layer=not is_sum)
                if is_best and is_chosen:
                    bold_names.add((name, task.name, is_sum))
                facts = (task.name, task.metric, variant.encoder, variant.head, variant.fraction)
                long.append((*facts, *_numbers(score, variant), is_chosen, is_best and is_chosen))
    columns = [
        (task, is_sum)
        for task in comparison.tasks
        for is_sum in ((False, True) if any(v.weighted for v in task.full) else (False,))
    ]
    rows = [[name, *(cells.get((name, t.name, s), "") for t, s in columns)] for name in names]
    bold = {
        (row, column)
        for row, name in enumerate(names)
        for column, (task, is_sum) in enumerate(columns, 1)
        if (name, task.name, is_sum) in bold_names
    }
    return Grid(
        "leaderboard",
        "Test scores with 95 % bootstrap intervals of the best single layer, which dev chooses, "
        "and of the learned weighted sum of the layers. Bold: the best test score of the task, and "
        "those that do not differ from it significantly (paired tests, p-values corrected by "
        "Holm's method for all pairs of the task). Only the candidate that dev chose can be bold "
        f"in a row, even if the other score is higher. {_metrics(comparison)}",
        (
            "encoder / head" if comparison.names_heads else "encoder",
            *(
                f"{task.name}: {'weighted sum' if is_sum else 'best layer'}"
                for task, is_sum in columns
            ),
        ),
        rows,
        Rows(
            (
                *("task", "metric", "encoder", "head", "fraction"),
                *(*_SCORE_COLUMNS, "is_best_of_row", "is_bold"),
            ),
            long,
        ),
        frozenset(bold),
        _by_task(comparison),
    )


def _by_task(comparison: Comparison) -> tuple[Grid, ...]:
    """Return a leaderboard of each task; none if there is one task."""
    if len(comparison.tasks) == 1:
        return ()
    alone = [leaderboard(replace(comparison, tasks=(task,))) for task in comparison.tasks]
    return tuple(
        replace(grid, name=f"{grid.name}-{number}") for number, grid in enumerate(alone, 1)
    )


def pairs(comparison: Comparison) -> Grid:
    """Return the paired tests of the best candidates."""
    tests = [pair.test for task in comparison.tasks for pair in task.pairs]
    head = ("task", "first", "second", "difference", "95 % interval", "p", "p, corrected")
    rows: list[list[str]] = []
    numbers, bold = [], set()
    for task in comparison.tasks:
        for pair in task.pairs:
            if pair.is_significant:
                bold.add((len(rows), len(head) - 1))
            rows.append([task.name, _side(pair, True), _side(pair, False), *difference(pair)])
            numbers.append((task.name, task.metric, *_pair_numbers(pair)))
    return Grid(
        "pairs",
        "Test score of the first minus that of the second, each by its best candidate on dev, with "
        f"95 % bootstrap interval. {_tests(tests)}p-values are corrected by Holm's method for the "
        f"number of tests of the task; bold: below {SIGNIFICANCE_LEVEL}. {_TWO_METHODS}",
        head,
        rows,
        Rows(("task", "metric", *_PAIR_COLUMNS), numbers),
        frozenset(bold),
    )


def scores(comparison: Comparison) -> Grid:
    """Return the scores of all candidates of all variants."""
    with_heads, with_fractions = len(comparison.heads) > 1, len(comparison.fractions) > 1
    head = ["task", "encoder", *(["head"] if with_heads else [])]
    head += ["share of train"] if with_fractions else []
    head += ["candidate", "dev", "test", "95 % interval"]
    rows: list[list[str]] = []
    numbers, bold = [], set()
    for task in comparison.tasks:
        for variant in task.variants:
            name = (
                f"{variant.encoder}{SEPARATOR}{variant.setting}"
                if variant.setting
                else variant.encoder
            )
            for score in variant.sweep.scores:
                if score == variant.best:
                    bold.add((len(rows), len(head) - 2))
                rows.append(
                    [
                        task.name,
                        name,
                        *([variant.head] if with_heads else []),
                        *([percent(variant.fraction)] if with_fractions else []),
                        candidate_name(score.layer, variant.sweep),
                        f"{score.dev:.3f}",
                        f"{score.test:.3f}",
                        f"{score.low:.3f} to {score.high:.3f}",
                    ]
                )
                facts = (task.name, task.metric, name, variant.head, variant.fraction)
                size = variant.sweep.n_train
                numbers.append((*facts, size, *_numbers(score, variant), score == variant.best))
    columns = ("task", "metric", "encoder", "head", "fraction", "n_train", *_SCORE_COLUMNS)
    return Grid(
        "scores",
        "Scores of every layer and of the weighted sum. Bold: the best candidate on dev.",
        tuple(head),
        rows,
        Rows((*columns, "is_best"), numbers),
        frozenset(bold),
    )


def heads(comparison: Comparison) -> Grid:
    """Return whether other heads have other best layers."""
    tests = [c.test.test for task in comparison.tasks for c in task.head_changes if c.test]
    rows: list[list[str]] = []
    numbers = []
    for task in comparison.tasks:
        for change in task.head_changes:
            test, rank = change.test, change.rank_correlation
            rows.append(
                [
                    task.name,
                    change.encoder,
                    f"{change.reference}: {change.reference_name}",
                    f"{change.head}: {change.name}",
                    "" if rank is None else f"{rank:.2f} (n = {change.n_layers})",
                    *(difference(test) if test else [""] * 4),
                ]
            )
            found = (None,) * len(_PAIR_COLUMNS) if test is None else _pair_numbers(test)
            layers = _number(change.reference_layer), _number(change.layer)
            facts = (task.name, change.encoder, change.reference, change.head, *layers)
            numbers.append((*facts, change.n_layers, rank, *found))
    columns = ("task", "encoder", "reference", "head", "reference_layer", "layer", "n_layers")
    return Grid(
        "heads",
        "Best single layer with each head, by dev; Spearman's correlation of the dev scores of n "
        f"layers, if there are at least {MIN_RANKED}; and, with the other head, the test score of "
        "its best layer minus that of the best layer of the first head, with 95 % bootstrap "
        f"interval. {_tests(tests)}p-values are corrected by Holm's method for the number of these "
        f"tests of the task. {_TWO_METHODS}",
        (
            *("task", "encoder", "first head", "other head", "rank correlation"),
            *("difference", "95 % interval", "p", "p, corrected"),
        ),
        rows,
        Rows((*columns, "rank_correlation", *_PAIR_COLUMNS), numbers),
    )


def learning_curves(comparison: Comparison) -> Grid:
    """Return the scores of the best candidates by number of training utterances."""
    rows: list[list[str]] = []
    numbers = []
    for task in comparison.tasks:
        ordered = sorted(task.variants, key=lambda v: v.fraction)
        for variant in sorted(ordered, key=lambda v: row_name(comparison, v)):
            for score in variant.sweep.scores:
                facts = (task.name, task.metric, variant.encoder, variant.head)
                size = (variant.fraction, variant.sweep.n_train)
                numbers.append((*facts, *size, *_numbers(score, variant), score == variant.best))
            score = variant.best
            rows.append(
                [
                    task.name,
                    row_name(comparison, variant),
                    percent(variant.fraction),
                    f"{variant.sweep.n_train:,}",
                    candidate_name(score.layer, variant.sweep),
                    f"{score.test:.3f}",
                    f"{score.low:.3f} to {score.high:.3f}",
                ]
            )
    columns = ("task", "metric", "encoder", "head", "fraction", "n_train", *_SCORE_COLUMNS)
    return Grid(
        "learning_curves",
        "Test scores by number of training utterances, of the candidate that is best on dev at "
        "each size. Dev and test are the same at all sizes; smaller sets are parts of larger ones.",
        (
            *("task", "encoder", "share of train", "training utterances"),
            *("best on dev", "test", "95 % interval"),
        ),
        rows,
        Rows((*columns, "is_best"), numbers),
    )


def score_text(score: CandidateScore, variant: Variant, with_layer: bool) -> str:
    """Return a test score with its interval, and the layer that it is of."""
    layer = f", {candidate_name(score.layer, variant.sweep)}" if with_layer else ""
    return f"{score.test:.3f} [{score.low:.3f}, {score.high:.3f}]{layer}"


def difference(pair: PairTest) -> list[str]:
    """Return difference, interval, p-value and corrected p-value as text."""
    return [
        f"{pair.difference:+.3f}",
        f"{pair.low:+.3f} to {pair.high:+.3f}",
        f"{pair.p_value:.2g}",
        f"{pair.adjusted:.2g}",
    ]


def _side(pair: PairTest, is_first: bool) -> str:
    name = pair.first if is_first else pair.second
    return f"{name} ({pair.first_name if is_first else pair.second_name})"


_SCORE_COLUMNS = ("candidate", "layer", "lr", "dev", "test", "low", "high", "seed_sd")
_PAIR_COLUMNS = (
    *("first", "first_candidate", "second", "second_candidate", "difference", "low", "high"),
    *("p_value", "p_value_holm", "test"),
)


def _numbers(score: CandidateScore, variant: Variant) -> tuple[object, ...]:
    lr = score.lr if score.lr != NO_RATE else None
    ends = (score.dev, score.test, score.low, score.high, score.seed_sd)
    return (candidate_name(score.layer, variant.sweep), _number(score.layer), lr, *ends)


def _pair_numbers(pair: PairTest) -> tuple[object, ...]:
    sides = pair.first, pair.first_name
    others = pair.second, pair.second_name
    values = pair.difference, pair.low, pair.high, pair.p_value, pair.adjusted
    return (*sides, *others, *values, pair.test)


def _number(layer: Candidate) -> int | None:
    return layer if isinstance(layer, int) else None


def _tests(names: Iterable[str]) -> str:
    """Return a sentence that names tests; nothing without any."""
    found = ", ".join(dict.fromkeys(names))
    return f"{found[:1].upper()}{found[1:]}; " if found else ""


def _metrics(comparison: Comparison) -> str:
    """Return the metric of each task, with its direction."""
    lines = [metric_line(task) for task in comparison.tasks]
    return "; ".join(lines) + "."


def metric_line(task: TaskComparison) -> str:
    """Return the metric of a task with its direction: `ks: accuracy (higher is better)`."""
    return f"{task.name}: {metric_name(task.metric)} ({DIRECTIONS[task.higher_is_better]})"
