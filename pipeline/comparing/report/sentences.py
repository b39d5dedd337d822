"""What a comparison finds, in sentences, and how it was made, for a methods section."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pipeline.comparing.naming import SEPARATOR, percent
from pipeline.comparing.report.grids import metric_line
from pipeline.comparing.results import Comparison, HeadChange, PairTest, TaskComparison
from pipeline.errors import counted
from pipeline.probing.report.methods import listed, method_parts
from pipeline.probing.report.naming import candidate_in_sentence, metric_name, with_article
from pipeline.probing.report.p_values import p_value_text
from pipeline.probing.results import SIGNIFICANCE_LEVEL


def title(comparison: Comparison) -> str:
    """Return the title of the report."""
    tasks = comparison.tasks
    what = f"for {tasks[0].name}" if len(tasks) == 1 else f"over {len(tasks)} tasks"
    if len(comparison.encoders) > 1:
        return f"Which encoder is best {what}?"
    if comparison.names_heads:
        return f"Which head and layer are best {what}?"
    return f"How many labels are needed {what}?" if len(comparison.fractions) > 1 else "Sweeps"


def headline(task: TaskComparison) -> str:
    """Return the best variant of a task in a sentence."""
    winner = task.winner
    score = winner.best
    who = f"{winner.name} with {candidate_in_sentence(score.layer, winner.sweep)}"
    value = (
        f"test {metric_name(task.metric)} {score.test:.3f} (95 % interval {score.low:.3f} to "
        f"{score.high:.3f}, {counted(winner.sweep.n_test, 'test utterance')})"
    )
    others = [variant for variant in task.full if variant != winner]
    if not others:
        return f"{task.name}: {who}: {value}."
    alike = [variant.name for variant in others if task.is_best(variant)]
    worse = [v for v in others if (test := task.test_of(v, winner)) and test.is_significant]
    if alike:
        found = f"not significantly different from {listed(alike)}"
    elif worse and len(worse) == len(others):
        found = f"significantly better than {listed([variant.name for variant in worse])}"
    else:
        found = "not tested against all others"
    return (
        f"{task.name}: of the candidates that dev chose, {who} has the best test score, {value}, "
        f"{found}."
    )


def pair_line(task: TaskComparison, pair: PairTest) -> str:
    """Return the result of a paired test in a sentence."""
    lead = pair.difference if task.higher_is_better else -pair.difference
    relation = "better" if lead > 0 else "worse" if lead < 0 else "neither better nor worse"
    amount = f" by {abs(lead):.3f}" if lead else ""
    sure = "significant" if pair.is_significant else "not significant"
    return (
        f"{pair.first} ({with_article(pair.first_name)}) is {relation}{amount} than "
        f"{pair.second} ({with_article(pair.second_name)}): "
        f"{p_value_text(pair.p_value, pair.test)}, "
        f"corrected {pair.adjusted:.2g} ({pair.test}): {sure}."
    )


def head_line(task: TaskComparison, change: HeadChange) -> str:
    """Return whether the best layer changes with the head, in a sentence."""
    before = change.reference_name
    after = change.name
    rank = change.rank_correlation
    order = (
        ""
        if rank is None
        else f" The dev scores of {change.n_layers} layers have a rank correlation of {rank:.2f}."
    )
    if change.layer == change.reference_layer:
        return (
            f"{change.encoder}: {before} is best with {change.reference} and with {change.head}."
            + order
        )
    line = (
        f"{change.encoder}: {before} is best with {change.reference}, {after} with {change.head}."
    )
    if change.test is None:
        return line + order
    pair = change.test
    lead = pair.difference if task.higher_is_better else -pair.difference
    sure = "significant" if pair.is_significant else "not significant"
    relation = "better" if lead >= 0 else "worse"
    return (
        f"{line} With {change.head}, {after} is {relation} than {before} on test by "
        f"{abs(lead):.3f} (corrected p = {pair.adjusted:.2g}, {pair.test}): {sure}.{order}"
    )


def methods(comparison: Comparison) -> str:
    """Return the methods paragraph: what was compared, and how it was tested."""
    tasks = "; ".join(map(metric_line, comparison.tasks))
    sentences = [
        f"{counted(comparison.n_sweeps, 'sweep')} of {listed(comparison.encoders)} were compared "
        f"on {counted(len(comparison.tasks), 'task')} ({tasks})."
    ]
    if len(comparison.heads) > 1:
        sentences.append(f"Heads: {listed(comparison.heads)}.")
    sentences += _parts(comparison)
    tests = list(dict.fromkeys(pair.test for task in comparison.tasks for pair in task.pairs))
    if tests:
        n_tests = [f"{len(t.pairs)} for {t.name}" for t in comparison.tasks if t.pairs]
        sentences.append(
            "The best candidates of the sweeps were compared on the same test units by "
            f"{listed(tests)}; p-values are corrected by Holm's method for the number of tests of "
            f"a task ({', '.join(n_tests)}), and below {SIGNIFICANCE_LEVEL} a difference is called "
            "significant."
        )
    if len(comparison.fractions) > 1:
        shares = listed([percent(fraction) for fraction in comparison.fractions])
        sentences.append(
            f"Heads were also trained on shares of train ({shares}): utterances drawn with the "
            "seed of the split, in proportion from each class, each set a part of the larger ones; "
            "dev and test are the same. These sweeps are not part of the tests."
        )
    if comparison.version:
        sentences.append(f"All of this was done with Strata {comparison.version}.")
    return " ".join(sentences)


_FACETS = (
    (),
    ("task",),
    ("encoder",),
    ("head",),
    ("task", "head"),
    ("task", "encoder"),
    ("encoder", "head"),
    ("task", "encoder", "head"),
    ("task", "name"),
)
"""What sentences may differ by, in the order in which they are tried."""


def _parts(comparison: Comparison) -> list[str]:
    """Return how the scores of the sweeps were made, each text once, with what it is about."""
    facts = [
        (
            {
                "task": task.name,
                "encoder": variant.encoder,
                "head": variant.head,
                "name": variant.name,
            },
            method_parts(variant.sweep),
        )
        for task in comparison.tasks
        for variant in task.full
    ]
    n_parts = len(facts[0][1])
    return [_told_apart([(names, parts[at]) for names, parts in facts]) for at in range(n_parts)]


def _told_apart(texts: Sequence[tuple[Mapping[str, str], str]]) -> str:
    """Return different texts, each after what it is about; a common text alone."""
    facets = next(
        (
            facets
            for facets in _FACETS
            if len({tuple(names[facet] for facet in facets) for names, _ in texts})
            == len({(*(names[facet] for facet in facets), text) for names, text in texts})
        ),
        _FACETS[-1],
    )
    owners: dict[str, dict[str, None]] = {}
    for names, text in texts:
        owner = SEPARATOR.join(names[facet] for facet in facets)
        owners.setdefault(text, {})[owner] = None
    return " ".join(
        f"{listed(list(of))}: {text}" if facets else text for text, of in owners.items() if text
    )
