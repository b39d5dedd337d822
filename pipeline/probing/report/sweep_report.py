"""The report of a sweep: one page that says which layer to use, and how sure that is."""

from __future__ import annotations

import shlex
from pathlib import Path

from pipeline.probing.report.html import (
    Markup,
    element,
    facts,
    figure,
    join,
    section,
    table,
    warnings_box,
    write_page,
)
from pipeline.probing.report.sweep_charts import (
    MOST_CLASSES,
    best_heads,
    candidate_name,
    charts_of,
    metric_name,
    the,
)
from pipeline.probing.results import WEIGHTED, Sweep

CERTAIN = 0.05
"""p from which a difference is not taken for one."""
_MOST_PAIRS = 20
_N_EXAMPLES = 8


def write_report(sweep: Sweep, folder: Path) -> Path:
    """Writes report.html, and its charts as SVG and PNG beside it; the same sweep, the same bytes.

    Returns:
        Path of report.html.

    Raises:
        StoreError: The folder cannot be written to.
    """
    charts = charts_of(sweep)
    figures = {name: figure(chart, _CAPTIONS[name]) for name, chart in charts.items()}
    title = f"Which layer for {sweep.task}?"
    body = join(
        [
            warnings_box(sweep.warnings),
            element("h1", title),
            element("p", answer(sweep), kind="lead"),
            *(element("p", line) for line in certainty(sweep)),
            section("Score of each layer", figures["scores"], _scores(sweep), _yardsticks(sweep)),
            _weights(sweep, figures.get("weights")),
            section("Learning curves", figures["curves"]),
            _errors(sweep, figures.get("confusion")),
            section("How to go on", *_next_steps(sweep)),
            section("What was run", _facts(sweep)),
        ]
    )
    return write_page(folder, f"{title} {sweep.encoder}", body, charts.values())


_CAPTIONS = {
    "scores": "Intervals: 95 % bootstrap over the test utterances. Dev chose the learning rate, "
    "the step and the best candidate; test only reports. Band and solid line: the weighted sum on "
    "test; dashed: on dev. Dotted: yardsticks; an arrow means that one lies outside of the chart.",
    "weights": "Softmax over the layers, mean over the heads of the chosen learning rate. A layer "
    "of larger norm needs less weight to count as much: a weight is not a layer's importance.",
    "curves": "The best head of each candidate; dots: the step that dev chose.",
    "confusion": "Test utterances of the best candidate, over all seeds and folds.",
}


def answer(sweep: Sweep) -> str:
    """The result in a sentence."""
    best = sweep.score(sweep.best)
    return (
        f"By dev, {the(sweep.best)} is best: test {metric_name(sweep.metric)} {best.test:.3f} "
        f"(95 % interval {best.low:.3f} to {best.high:.3f}, {sweep.n_test} test utterances)."
    )


def certainty(sweep: Sweep) -> list[str]:
    """How sure it is that the best is the best, in plain words."""
    found = sweep.comparison
    if found is None:
        return ["There is only one candidate, so there is nothing to compare it with."]
    best, second = the(found.best), the(found.second)
    ahead = found.difference if sweep.higher_is_better else -found.difference
    side = "better" if ahead > 0 else "worse" if ahead < 0 else "neither better nor worse"
    first = (
        f"Second by dev is {second}. On test, {best} is {side}"
        + (f" by {_amount(abs(ahead))}" if ahead else "")
        + f" (p = {found.p_value:.2g}, {found.test}): "
    )
    if not found.p_value < CERTAIN:
        meaning = (
            f"the data do not tell {best} from {second}. More test utterances might; "
            "until then, either will do."
        )
    elif ahead < 0:
        meaning = f"{second} may be the better choice; a larger dev set would tell."
    else:
        meaning = "more than chance explains."
    lines = [first + meaning]
    score = sweep.score(sweep.best)
    alike = [
        the(other.layer)
        for other in sweep.scores
        if other.layer != sweep.best and score.low <= other.test <= score.high
    ]
    if alike:
        lines.append(f"Test scores within the interval of the best: {', '.join(alike)}.")
    return lines


def _amount(value: float) -> str:
    return f"{value:.3f}" if value >= 0.0005 else "less than 0.001"


def _scores(sweep: Sweep) -> Markup:
    extras = list(dict.fromkeys(name for score in sweep.scores for name in score.extra))
    head = ["candidate", "learning rate", "dev", "test", "95 % interval", "sd over seeds"]
    n_seeds = len({made.seed for made in sweep.heads})
    rows = [
        [
            candidate_name(score.layer) + (", best by dev" if score.layer == sweep.best else ""),
            f"{score.lr:g}",
            score.dev,
            score.test,
            f"{score.low:.3f} to {score.high:.3f}",
            score.seed_sd if n_seeds > 1 else None,
            *(score.extra.get(name) for name in extras),
        ]
        for score in sweep.scores
    ]
    at = [score.layer for score in sweep.scores].index(sweep.best)
    return table([*head, *(f"test {metric_name(name)}" for name in extras)], rows, at)


def _yardsticks(sweep: Sweep) -> Markup:
    if not sweep.yardsticks:
        return Markup()
    rows = [[name, value] for name, value in sweep.yardsticks.items()]
    return table(["yardstick", f"test {metric_name(sweep.metric)}"], rows)


def _weights(sweep: Sweep, drawn: Markup | None) -> Markup:
    if drawn is None or sweep.layer_weights is None:
        return Markup()
    head = ["layer", *(str(layer) for layer in sweep.layers)]
    return section("Learned weights", drawn, table(head, [["weight", *sweep.layer_weights]]))


def _errors(sweep: Sweep, drawn: Markup | None) -> Markup:
    """Confusions of classes, or examples of texts."""
    if sweep.confusion is None:
        return _examples(sweep)
    parts = [] if drawn is None else [drawn]
    if len(sweep.confusion) > MOST_CLASSES:
        note = f"{len(sweep.confusion)} classes are too many to draw; the most frequent confusions:"
        parts.append(element("p", note, kind="note"))
    if len(sweep.confusion) > 10:
        parts.append(_confused(sweep))
    return section("What it confuses", *parts)


def _confused(sweep: Sweep) -> Markup:
    """The pairs of classes that are confused most often."""
    counts, names = sweep.confusion or (), sweep.classes[0]
    pairs = [
        (count, right, said)
        for right, row in enumerate(counts)
        for said, count in enumerate(row)
        if count and right != said
    ]
    rows = [
        [names[right], names[said], count, count / sum(counts[right])]
        for count, right, said in sorted(pairs, key=lambda pair: (-pair[0], pair[1:]))[:_MOST_PAIRS]
    ]
    if not rows:
        return element("p", "No test utterance was confused.")
    return table(["right", "predicted", "times", "share of the right class"], rows)


def _examples(sweep: Sweep) -> Markup:
    """What the best candidate's head says of some test utterances."""
    head = best_heads(sweep).get(sweep.best)
    if head is None:
        return Markup()
    ids, truth = sweep.test_ids[head.fold], sweep.truth[head.fold]
    step = max(1, len(ids) // _N_EXAMPLES)
    rows = [[ids[i], truth[i], head.predictions[i]] for i in range(0, len(ids), step)[:_N_EXAMPLES]]
    note = "Evenly spaced test utterances, and what the best head of the best candidate says."
    listed = table(["utterance", "right", "predicted"], rows)
    return section("What it says", element("p", note, kind="note"), listed)


def _next_steps(sweep: Sweep) -> list[Markup]:
    """Commands and code that use what was found."""
    store = shlex.quote(sweep.store)
    begin = f"import pipeline\n\nstore = pipeline.open_store({sweep.store!r})\n"
    columns = list(sweep.labels)
    if sweep.best == WEIGHTED:
        use = (
            "import json\n\n"
            f"{begin}weights = json.load(open('weights.json'))  # beside this page\n"
            "features = store.weighted_sum(store.ids[0], weights)  # [n_frames, dim]\n"
        )
    else:
        layers = "" if sweep.best == "collapsed" else f", layers=[{sweep.best}]"
        use = (
            f"{begin}features = store.read(store.ids[0]{layers})  # [1, n_frames, dim]\n"
            f"dataset = pipeline.FeatureDataset(store{layers}, columns={columns})\n"
        )
    parts = [element("p", "Read the best:"), element("pre", use)]
    if sweep.layer_weights is not None:
        parts += [
            element(
                "p",
                "Or write the weighted sum as a store of one layer, which costs its readers no "
                "more than a layer does (weights.json lies beside this page):",
            ),
            element("pre", f"strata collapse {store} OUT weights=weights.json"),
        ]
    more = element("code", f"strata layers {store}")
    return [*parts, element("p", "What the layers look like without labels: ", more)]


def _facts(sweep: Sweep) -> Markup:
    seeds = sorted({head.seed for head in sweep.heads})
    folds = {head.fold for head in sweep.heads}
    rates = sorted({head.lr for head in sweep.heads}, reverse=True)
    classes = ", ".join(
        f"{label}: {len(names)}" for label, names in zip(sweep.labels, sweep.classes, strict=True)
    )
    values: dict[str, object] = {
        "store": sweep.store,
        "encoder": sweep.encoder,
        "task": sweep.task,
        "labels": ", ".join(sweep.labels),
        "classes" if sweep.confusion is not None else "symbols": classes,
        "metric": f"{metric_name(sweep.metric)}, "
        + ("higher is better" if sweep.higher_is_better else "lower is better"),
        "layers": ", ".join(str(layer) for layer in sweep.layers),
        "split": sweep.split,
        "utterances": f"{sweep.n_train} train, {sweep.n_dev} dev, {sweep.n_test} test",
        "folds": len(folds),
        "learning rates": ", ".join(f"{rate:g}" for rate in rates),
        "seeds": ", ".join(str(seed) for seed in seeds),
        "heads": f"{sweep.trained} trained, {sweep.reused} taken from an earlier run",
        "time": ", ".join(f"{name} {took:.1f} s" for name, took in sweep.seconds.items()),
    }
    return facts({name: value for name, value in values.items() if value != ""})
