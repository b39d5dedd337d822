"""Evaluations of finished sweeps, rebuilt from predictions and references.

They equal those that the sweep made its scores from, except for the order of the test utterances,
which is that of their ids, so that sweeps of stores in other orders can be tested in pairs. A score
that differs from the stored one shows a damaged file.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from pipeline.errors import ConfigError
from pipeline.probing.abx.errors import CellIndex, MinimalPairs, joined
from pipeline.probing.evaluation import Evaluation, FloatArray, Ratio, Sums
from pipeline.probing.metrics import (
    agreement_of_sums,
    agreement_sums,
    error_counts,
    macro_f1_of_sums,
)
from pipeline.probing.ranking import HeadsBySeed
from pipeline.probing.results import Candidate, HeadResult, Sweep
from pipeline.probing.significance import mean_score
from pipeline.probing.tasks.verification import Detection

_TOLERANCE = 1e-6  # of a score that is computed again
NEEDS_UNITS = ("verification", "abx")
"""Kinds of tasks whose evaluations need `Sweep.units`, which earlier versions did not store."""


def kind_of(sweep: Sweep) -> str:
    """Return the kind of the task, as `TaskConfig.kind`."""
    return str(sweep.setup.recipe.get("kind"))


def can_evaluate(sweep: Sweep) -> bool:
    """Whether the stored results have what evaluations need."""
    is_complete = kind_of(sweep) not in NEEDS_UNITS or len(sweep.units) == len(sweep.truth)
    return kind_of(sweep) in _EVALUATIONS and is_complete


def evaluations(sweep: Sweep, layer: Candidate) -> list[Evaluation]:
    """Return the evaluation of each seed of a candidate, at the learning rate that dev has chosen.

    Args:
        sweep: Results for which `can_evaluate`.
        layer: The candidate.

    Raises:
        ConfigError: They do not give the stored test score.
    """
    chosen, evaluate = sweep.score(layer), _EVALUATIONS[kind_of(sweep)]
    by_seed: dict[int, list[HeadResult]] = defaultdict(list)
    for head in sweep.heads:
        if (head.layer, head.lr) == (layer, chosen.lr):
            by_seed[head.seed].append(head)
    heads: HeadsBySeed = [sorted(group, key=lambda h: h.fold) for group in by_seed.values()]
    with _damage_named(sweep):
        orders = [_order(ids) for ids in sweep.test_ids]
        found = [evaluate(sweep, group, orders) for group in heads]
    if not found or not abs(mean_score(found) - chosen.test) <= _TOLERANCE:  # NaN is damage
        score = f"{mean_score(found):.6f}" if found else "nothing"
        raise ConfigError(
            f"the predictions on {layer} of the sweep of {sweep.task} on {sweep.store} score "
            f"{score}, and its test score is {chosen.test:.6f}: its sweep.json is damaged; run the "
            "same `strata sweep` again"
        )
    return found


def fingerprint(sweep: Sweep) -> str:
    """Return a hash of what is tested: equal ones can be tested in pairs.

    It has the metric, the ids of the test utterances of each fold in any order, and their
    references with the names of classes. The frames of an utterance may differ in number.

    Raises:
        ConfigError: The references are damaged.
    """
    kind = kind_of(sweep)
    with _damage_named(sweep):
        parts: list[Any] = [kind, sweep.metric, _CONTENTS.get(kind, _references)(sweep)]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


@contextmanager
def _damage_named(sweep: Sweep) -> Iterator[None]:
    """Turn the errors that other references or predictions than a sweep writes lead to into one."""
    try:
        yield
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise ConfigError(
            f"references or predictions of the sweep of {sweep.task} on {sweep.store} cannot be "
            f"evaluated ({type(error).__name__}: {error}): its sweep.json is damaged; run the same "
            "`strata sweep` again"
        ) from error


Orders = Sequence[Sequence[int]]
"""Positions of the test utterances of each fold, by ascending id."""


def _order(ids: Sequence[str]) -> list[int]:
    return sorted(range(len(ids)), key=ids.__getitem__)


def _pairs(
    sweep: Sweep, heads: Sequence[HeadResult], orders: Orders
) -> tuple[list[Any], list[Any]]:
    """Return references and predictions of all folds, one per test utterance."""
    truth, found = [], []
    for head in heads:
        order, references = orders[head.fold], sweep.truth[head.fold]
        truth += [references[i] for i in order]
        found += [head.predictions[i] for i in order]
    return truth, found


def _utterance(sweep: Sweep, heads: Sequence[HeadResult], orders: Orders) -> Evaluation:
    truth, found = (np.array(rows, np.int64) for rows in _pairs(sweep, heads, orders))
    return Ratio((truth == found).all(1), np.ones(len(truth)))


def _regression(sweep: Sweep, heads: Sequence[HeadResult], orders: Orders) -> Evaluation:
    truth, found = (np.array(rows, np.float64).T for rows in _pairs(sweep, heads, orders))
    metric = sweep.metric
    sums = agreement_sums(truth, found)
    return Sums(sums, lambda total: agreement_of_sums(metric, total).mean(1))


def _frames(sweep: Sweep, heads: Sequence[HeadResult], orders: Orders) -> Evaluation:
    return Ratio(*error_counts(sweep.metric, *_pairs(sweep, heads, orders)))


def _spans(sweep: Sweep, heads: Sequence[HeadResult], orders: Orders) -> Evaluation:
    pairs = list(zip(*_pairs(sweep, heads, orders), strict=True))
    correct = [sum(a == b for a, b in zip(truth, found, strict=True)) for truth, found in pairs]
    return Ratio(np.array(correct), np.array([len(truth) for truth, _ in pairs]))


def _framewise(sweep: Sweep, heads: Sequence[HeadResult], orders: Orders) -> Evaluation:
    _, found = _pairs(sweep, heads, orders)
    rows = [np.array(triples, np.int64).reshape(-1, 3).T for triples in found]
    if sweep.metric == "accuracy":
        correct = [int(counts[a == b].sum()) for a, b, counts in rows]
        return Ratio(np.array(correct), np.array([int(counts.sum()) for *_, counts in rows]))
    n = len(sweep.classes[0])
    values = np.zeros((len(rows), 3, n))  # as `class_counts` has them
    for out, (a, b, counts) in zip(values, rows, strict=True):
        for at, which in ((0, a == b), (1, slice(None)), (2, slice(None))):
            np.add.at(out[at], (b if at == 2 else a)[which], counts[which])
    return Sums(values.reshape(len(rows), -1), macro_f1_of_sums)


def _verification(sweep: Sweep, heads: Sequence[HeadResult], _: Orders) -> Evaluation:
    scores, targets, pairs = [], [], []
    for head in heads:
        unit = sweep.units[head.fold]
        speakers = np.array([f"{head.fold} {name}" for name in unit["speakers"]])
        scores.append(np.array(head.predictions, np.float64)[:, 0])
        targets.append(np.array(sweep.truth[head.fold], np.float64)[:, 0] > 0)
        pairs.append(speakers[np.array(unit["trials"], np.int64)])
    numbers = np.unique(np.concatenate(pairs), return_inverse=True)[1].reshape(-1, 2)
    every = np.concatenate(scores), np.concatenate(targets)
    return Detection(*every, numbers.astype(np.int64), sweep.metric)


def _abx(sweep: Sweep, heads: Sequence[HeadResult], _: Orders) -> Evaluation:
    cells, errors = [], []
    for head in heads:
        found: dict[str, Any] = sweep.units[head.fold]["cells"]
        ends = np.cumsum([len(part["pair"]) for part in found.values()])[:-1]
        values: list[FloatArray] = np.split(np.array(head.predictions, np.float64)[:, 0], ends)
        cells.append(CellIndex.from_dict(found[sweep.metric]))
        errors.append(dict(zip(found, values, strict=True))[sweep.metric])
    return MinimalPairs(joined(cells), np.concatenate(errors))


_EVALUATIONS: Mapping[str, Callable[[Sweep, Sequence[HeadResult], Orders], Evaluation]] = {
    "utterance": _utterance,
    "regression": _regression,
    "frames": _frames,
    "spans": _spans,
    "framewise": _framewise,
    "verification": _verification,
    "abx": _abx,
}


def _references(sweep: Sweep) -> list[Any]:
    """Return id and reference of each test utterance; classes have their names."""
    folds = []
    for ids, truth in zip(sweep.test_ids, sweep.truth, strict=True):
        folds.append([[ids[i], _named(sweep, truth[i])] for i in _order(ids)])
    return folds


def _named(sweep: Sweep, reference: Any) -> Any:
    kind = kind_of(sweep)
    if kind == "utterance":
        return [names[i] for names, i in zip(sweep.classes, reference, strict=True)]
    if kind == "spans":
        return [sweep.classes[0][i] for i in reference]
    return reference


def _framewise_content(sweep: Sweep) -> list[Any]:
    """Return the classes and the ids of the test utterances."""
    return [sorted(sweep.classes[0]), *(sorted(ids) for ids in sweep.test_ids)]


def _trials_content(sweep: Sweep) -> list[Any]:
    """Return the trials as pairs of ids, in any order."""
    folds = []
    for ids, truth, unit in zip(sweep.test_ids, sweep.truth, sweep.units, strict=True):
        trials = Counter(
            (*sorted((ids[a], ids[b])), target)
            for (a, b), (target,) in zip(unit["trials"], truth, strict=True)
        )
        folds.append([sorted(trials.items()), sorted(zip(ids, unit["speakers"], strict=True))])
    return folds


def _abx_content(sweep: Sweep) -> list[Any]:
    """Return the items that are compared, and the cells of the metric."""
    return [[unit["items"], unit["cells"][sweep.metric]] for unit in sweep.units]


_CONTENTS: Mapping[str, Callable[[Sweep], list[Any]]] = {
    "framewise": _framewise_content,
    "verification": _trials_content,
    "abx": _abx_content,
}
