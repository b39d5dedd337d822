"""The report of a sweep: a page with the best layer, its significance, and all scores."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path

from markupsafe import Markup

from pipeline.errors import counted
from pipeline.files import write_atomic
from pipeline.probing.report.charts import Chart
from pipeline.probing.report.html import (
    element,
    facts,
    figure,
    join,
    section,
    table,
    warnings_box,
    write_page,
)
from pipeline.probing.report.methods import methods, seeds_of
from pipeline.probing.report.naming import candidate_in_sentence, candidate_name, metric_name
from pipeline.probing.report.p_values import p_value_text
from pipeline.probing.report.score_tables import TABLES, extra_metrics, write_tables
from pipeline.probing.report.sweep_charts import MAX_CLASSES, best_heads, draw_charts
from pipeline.probing.results import NO_RATE, SIGNIFICANCE_LEVEL, WEIGHTED, Candidate, Sweep

METHODS = "methods.txt"
"""File of the methods paragraph, beside the report."""
_MAX_PAIRS = 20
_N_EXAMPLES = 8


def write_report(sweep: Sweep, folder: Path) -> Path:
    """Write report.html, its charts, the tables and methods.txt. Equal sweeps give equal bytes.

    Args:
        sweep: Results of the sweep.
        folder: Folder of all files.

    Returns:
        Path of report.html.

    Raises:
        StoreError: A file cannot be written.
    """
    charts = draw_charts(sweep)
    write_tables(sweep, folder / TABLES)
    write_atomic(folder / METHODS, [f"{methods(sweep)}\n".encode("utf-8", "replace")])
    title = f"{_title(sweep)} {sweep.encoder}"
    return write_page(folder, title, report_body(sweep, charts), charts.values())


def report_body(sweep: Sweep, charts: Mapping[str, Chart]) -> Markup:
    """Return the body of the page, with the charts that `draw_charts` drew."""
    captions = _CAPTIONS | {"scores": _scores_caption(sweep)}
    figures = {name: figure(chart, captions[name]) for name, chart in charts.items()}
    return join(
        [
            warnings_box(sweep.warnings),
            element("h1", _title(sweep)),
            element("p", headline(sweep), kind="lead"),
            *(element("p", line) for line in significance(sweep)),
            section("Scores by layer", figures["scores"], _scores(sweep), _baselines(sweep)),
            _weights(sweep, figures.get("weights")),
            section("Learning curves", figures["curves"]) if "curves" in figures else Markup(),
            _errors(sweep, figures.get("confusion"), figures.get("predictions")),
            section("Errors", figures["detection"]) if "detection" in figures else Markup(),
            section("Next steps", *_next_steps(sweep)),
            section("Methods", element("p", methods(sweep)), element("p", *_files(), kind="note")),
            section("Settings", _facts(sweep)),
        ]
    )


_CAPTIONS = {
    "weights": "Softmax over the layers, mean over the heads of the chosen learning rate. A layer "
    "with a larger norm needs less weight for the same effect, so a weight does not measure the "
    "importance of a layer.",
    "curves": "The best head of each candidate. Dots: the step with the best dev score.",
    "confusion": "What is tested (utterances, spans or frames), by the best candidate. Counts are "
    "sums over all seeds and folds.",
    "detection": "Detection error trade-off (DET) of the best candidate, test trials. Both "
    "axes are scaled by normal deviates: normally distributed scores give a straight line. Dot: "
    "the equal error rate.",
    "predictions": "Test utterances of the best candidate, first seed. Dotted line: a perfect "
    "prediction.",
}


def _scores_caption(sweep: Sweep) -> str:
    """Return the caption of the scores; it names only what the sweep has."""
    selected = "the learning rate, the step and " if sweep.is_trained else ""
    lines = [
        f"Intervals: 95 % bootstrap over the test {sweep.groups}.",
        "The best candidate is chosen on the test set that is reported."
        if sweep.is_dev_test
        else f"Dev selects {selected}the best candidate; test is only reported.",
    ]
    if any(score.layer == WEIGHTED for score in sweep.scores):
        lines.append("Band and solid line: the weighted sum on test; dashed line: on dev.")
    if sweep.baselines:
        lines.append("Dotted lines: baselines; an arrow marks a baseline outside the chart.")
    return " ".join(lines)


def _files() -> list[object]:
    """Return the note that says where the text and the tables are."""
    return [
        "For a paper: this paragraph is in ",
        element("code", METHODS),
        ", and the scores are in ",
        element("code", f"{TABLES}/scores.tex"),
        ", .md and .csv beside this page.",
    ]


def _title(sweep: Sweep) -> str:
    return f"Which layer is best for {sweep.task}?"


def headline(sweep: Sweep) -> str:
    """Return the result in a sentence."""
    best = sweep.score(sweep.best)
    return (
        f"{_capitalised(sweep.best, sweep)} has the best dev score: test "
        f"{metric_name(sweep.metric)} {best.test:.3f} (95 % interval {best.low:.3f} to "
        f"{best.high:.3f}, {counted(sweep.n_test, 'test utterance')})."
    )


def significance(sweep: Sweep) -> list[str]:
    """Describe the comparison of the best candidate with the others."""
    comparison = sweep.comparison
    if comparison is None:
        return ["There is only one candidate, so there is nothing to compare it with."]
    best = candidate_in_sentence(comparison.best, sweep)
    second = candidate_in_sentence(comparison.second, sweep)
    lead = comparison.difference if sweep.higher_is_better else -comparison.difference
    relation = "better" if lead > 0 else "worse" if lead < 0 else "neither better nor worse"
    measured = (
        f"{_capitalised(comparison.second, sweep)} has the second-best dev score. On test, {best} "
        "is "
        + relation
        + (f" by {_amount(abs(lead))}" if lead else "")
        + f" ({p_value_text(comparison.p_value, comparison.test)}, {comparison.test})"
    )
    if not comparison.p_value < SIGNIFICANCE_LEVEL:
        meaning = (
            f"the difference between {best} and {second} is not significant. Use either, or test "
            "on more utterances."
        )
    elif lead < 0:
        meaning = f"{second} may be the better choice; a larger dev set would decide."
    else:
        meaning = "the difference is significant."
    lines = [f"{measured}: {meaning}"]
    score = sweep.score(sweep.best)
    similar = [
        candidate_in_sentence(other.layer, sweep)
        for other in sweep.scores
        if other.layer != sweep.best and score.low <= other.test <= score.high
    ]
    if similar:
        lines.append(f"Test scores within the interval of the best: {', '.join(similar)}.")
    return lines


def _capitalised(layer: Candidate, sweep: Sweep) -> str:
    name = candidate_in_sentence(layer, sweep)
    return name[0].upper() + name[1:]


def _amount(value: float) -> str:
    return f"{value:.3f}" if value >= 0.0005 else "less than 0.001"


def _scores(sweep: Sweep) -> Markup:
    extras = extra_metrics(sweep)
    has_seeds = len({head.seed for head in sweep.heads}) > 1
    columns = [
        "candidate",
        *(["learning rate"] if sweep.is_trained else []),
        *("dev", "test", "95 % interval"),
        *(["sd over seeds"] if has_seeds else []),
    ]
    rows = [
        [
            candidate_name(score.layer, sweep)
            + (", best by dev" if score.layer == sweep.best else ""),
            *([f"{score.lr:g}" if score.lr != NO_RATE else None] if sweep.is_trained else []),
            score.dev,
            score.test,
            f"{score.low:.3f} to {score.high:.3f}",
            *([score.seed_sd] if has_seeds else []),
            *(score.extra.get(name) for name in extras),
        ]
        for score in sweep.scores
    ]
    at = [score.layer for score in sweep.scores].index(sweep.best)
    heading = [*columns, *(f"test {metric_name(name)}" for name in extras)]
    return table(heading, rows, at, is_sortable=True)


def _baselines(sweep: Sweep) -> Markup:
    if not sweep.baselines:
        return Markup()
    rows = [[name, value] for name, value in sweep.baselines.items()]
    return table(["baseline", f"test {metric_name(sweep.metric)}"], rows)


def _weights(sweep: Sweep, chart: Markup | None) -> Markup:
    if chart is None or sweep.layer_weights is None:
        return Markup()
    head = ["layer", *sweep.layer_labels.values()]
    return section("Learned weights", chart, table(head, [["weight", *sweep.layer_weights]]))


def _errors(sweep: Sweep, chart: Markup | None, predictions: Markup | None) -> Markup:
    """Return the section with the confusions of classes, or with examples of predictions."""
    if sweep.confusion is None:
        return join([predictions or Markup(), _examples(sweep)])
    parts = [] if chart is None else [chart]
    if len(sweep.confusion) > MAX_CLASSES:
        note = f"{len(sweep.confusion)} classes are too many to draw; the most frequent confusions:"
        parts.append(element("p", note, kind="note"))
    if len(sweep.confusion) > 10:
        parts.append(_frequent_confusions(sweep))
    return section("Confusions", *parts)


def _frequent_confusions(sweep: Sweep) -> Markup:
    """Return a table of the pairs of classes that are confused most often."""
    counts, names = sweep.confusion or (), sweep.classes[0]
    pairs = [
        (count, true, predicted)
        for true, row in enumerate(counts)
        for predicted, count in enumerate(row)
        if count and true != predicted
    ]
    rows = [
        [names[true], names[predicted], count, count / sum(counts[true])]
        for count, true, predicted in sorted(pairs, key=lambda pair: (-pair[0], pair[1:]))
    ]
    if not rows:
        return element("p", "No test utterance was confused.")
    n_seeds = len(seeds_of(sweep))
    count = f"count, sum of {n_seeds} seeds" if n_seeds > 1 else "count"
    heading = ["true class", "predicted class", count, "share of the true class"]
    return table(heading, rows[:_MAX_PAIRS])


def _examples(sweep: Sweep) -> Markup:
    """Return the section with references and predictions of some test utterances."""
    head = best_heads(sweep).get(sweep.best)
    if head is None:
        return Markup()
    ids, truth = sweep.test_ids[head.fold], sweep.truth[head.fold]
    step = max(1, len(ids) // _N_EXAMPLES)
    rows = [
        [ids[i], _shown(truth[i]), _shown(head.predictions[i])]
        for i in range(0, len(ids), step)[:_N_EXAMPLES]
    ]
    note = "Evenly spaced test utterances, with the predictions of the best head."
    examples = table(["utterance", "reference", "predicted"], rows)
    return section("Example predictions", element("p", note, kind="note"), examples)


def _shown(prediction: str | tuple[float, ...]) -> str:
    """Return a transcript, or numbers, as text."""
    if isinstance(prediction, str):
        return prediction
    return ", ".join(f"{number:.4g}" for number in prediction)


def _next_steps(sweep: Sweep) -> list[Markup]:
    """Return commands and code that use the result."""
    paths = [sweep.store] if isinstance(sweep.store, str) else list(sweep.store)
    given = repr(paths[0] if len(paths) == 1 else paths)
    opening = f"import pipeline\n\nstore = pipeline.open_store({given})\n"
    stores = store = shlex.join(paths)
    columns = list(sweep.labels)
    if sweep.best == WEIGHTED:
        use = (
            "import json\n\n"
            f"{opening}weights = json.load(open('weights.json'))  # in the folder of this page\n"
            "features = store.weighted_sum(store.ids[0], weights)  # [n_frames, dim]\n"
        )
    else:
        layers = "" if sweep.best == "collapsed" else f", layers=[{sweep.best}]"
        use = f"{opening}features = store.read(store.ids[0]{layers})  # [1, n_frames, dim]\n"
        if sweep.spans is None:
            use += f"dataset = pipeline.FeatureDataset(store{layers}, columns={columns})\n"
        else:
            use += (
                f"spans = pipeline.read_spans({sweep.spans!r})  # with the options of the sweep\n"
                f"means = pipeline.pool_spans(store, spans{layers})  # [n_spans, 1, dim]\n"
            )
    parts = [element("p", "Read the best features:"), element("pre", use)]
    if sweep.layer_weights is not None:
        first = ""
        if len(paths) > 1:
            store, first = "JOINED", f"strata copy {stores} JOINED\n"
        parts += [
            element(
                "p",
                "Or write the weighted sum as a store with one layer, which is as fast to read as "
                "any single layer (weights.json is in the folder of this page):",
            ),
            element("pre", f"{first}strata collapse {store} OUT weights=weights.json"),
        ]
    more = element("code", f"strata layers {stores}")
    return [*parts, element("p", "For statistics of the layers without labels, run ", more)]


def _facts(sweep: Sweep) -> Markup:
    seeds = sorted({head.seed for head in sweep.heads})
    folds = {head.fold for head in sweep.heads}
    rates = sorted({head.lr for head in sweep.heads}, reverse=True)
    classes = ", ".join(
        f"{label}: {len(names)}" for label, names in zip(sweep.labels, sweep.classes, strict=True)
    )
    kind = "classes" if sweep.confusion is not None else "symbols"
    is_trained, setup = sweep.is_trained, sweep.setup
    done = "trained" if is_trained else "evaluated"
    values: dict[str, object] = {
        "store": sweep.store if isinstance(sweep.store, str) else ", ".join(sweep.store),
        "encoder": sweep.encoder,
        "task": sweep.task,
        "labels": ", ".join(sweep.labels),
        kind: classes if any(sweep.classes) else "",
        "metric": f"{metric_name(sweep.metric)}, "
        + ("higher is better" if sweep.higher_is_better else "lower is better"),
        "layers": ", ".join(sweep.layer_labels.values()),
        "split": sweep.split,
        "utterances": (f"{sweep.n_train:,} train, " if sweep.n_train else "")
        + f"{sweep.n_dev:,} dev, {sweep.n_test:,} test",
        "folds": len(folds),
        "learning rates": ", ".join(f"{rate:g}" for rate in rates) if is_trained else "",
        "seeds": ", ".join(str(seed) for seed in seeds) if is_trained else "",
        "heads": f"{sweep.trained} {done}, {sweep.reused} taken from an earlier run",
        "selection": ""
        if setup.n_used == setup.n_stored
        else f"{setup.n_used:,} of {setup.n_stored:,} utterances",
        "Strata": setup.version,
        "time": ", ".join(
            f"{done if name == 'train' else name} {took:.1f} s"
            for name, took in sweep.seconds.items()
        ),
    }
    return facts({name: value for name, value in values.items() if value != ""})
