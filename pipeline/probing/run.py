"""A sweep: find the best layer of a store for a task, and compare it with a weighted sum of layers.

A head is trained for each candidate (every layer and the weighted sum) × learning rate × seed ×
fold. Dev selects the step of each head, and the learning rate and rank of each candidate. Test is
only reported. A sweep with other settings gets an output folder of its own. Trained heads are
cached in the folder that was asked for, so a changed sweep trains only the heads that are new.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from pipeline.config import SweepConfig
from pipeline.config.sizes import parse_bytes
from pipeline.devices import choose_device
from pipeline.errors import ConfigError, StoreError, counted
from pipeline.events import Observer, announced
from pipeline.probing.baselines import baseline_warnings
from pipeline.probing.encoder_description import (
    describe_encoder,
    describe_setup,
    encoder_warnings,
)
from pipeline.probing.head_cache import HeadCache
from pipeline.probing.labels import Labels
from pipeline.probing.output_folder import (
    claim_folder,
    given_paths,
    learned_from,
    output_folder,
    source_of,
)
from pipeline.probing.ranking import Ranking, best_single_layer, rank
from pipeline.probing.result_files import write_result
from pipeline.probing.results import (
    NO_RATE,
    WEIGHTED,
    Candidate,
    HeadResult,
    HeadSpec,
    Sweep,
    stored_layer,
)
from pipeline.probing.splits import Split, make_split
from pipeline.probing.splits.shares import take_share
from pipeline.probing.tasks.abx import AbxTask
from pipeline.probing.tasks.base import Task, TaskData, TaskFactory
from pipeline.probing.tasks.frame import FrameTask
from pipeline.probing.tasks.framewise import FramewiseTask
from pipeline.probing.tasks.regression import RegressionTask
from pipeline.probing.tasks.spans import SpanTask
from pipeline.probing.tasks.spans_data import SpanData, read_task_labels
from pipeline.probing.tasks.utterance import UtteranceTask
from pipeline.probing.tasks.verification import VerificationTask
from pipeline.probing.trainers.kept_heads import KeptHeads
from pipeline.probing.trainers.native.heads import stale_note
from pipeline.probing.trainers.pooled import resolve_steps
from pipeline.store.format.layers import number_layers
from pipeline.store.maintain.status import read_status
from pipeline.store.read.features import FeatureStore
from pipeline.store.read.opening import open_store

HEADS = "heads"
"""Folder of the cached heads in the output folder."""

TASK_KINDS: dict[str, TaskFactory] = {
    "utterance": UtteranceTask,
    "regression": RegressionTask,
    "verification": VerificationTask,
    "frames": FrameTask,
    "spans": SpanTask,
    "framewise": FramewiseTask,
    "abx": AbxTask,
}
"""Implementations of `Task` by `task.kind`."""

_MIN_TEST = 100
"""Number of test utterances below which a warning is given."""


@dataclass(frozen=True)
class _SweepPlan:
    """A sweep before training.

    Attributes:
        data: Features, labels and folds, as the task has them.
        store: The features.
        paths: Path of the store, or those of several, as given.
        config: Settings of the sweep.
        layers: Swept layers of the store.
        labels: Labels of every utterance.
        split: The folds.
        task: The task that the heads learn.
        specs: Settings of the heads.
        folder: Output folder.
        cache: The cached heads.
    """

    data: TaskData
    store: FeatureStore
    paths: tuple[str, ...]
    config: SweepConfig
    layers: tuple[int, ...]
    labels: Labels
    split: Split
    task: Task
    specs: tuple[HeadSpec, ...]
    folder: Path
    cache: HeadCache


def sweep(
    source: FeatureStore | str | Path | Sequence[str | Path],
    config: SweepConfig,
    observer: Observer | None = None,
    *,
    paths: Sequence[object] | None = None,
) -> tuple[Sweep, Path]:
    """Train the heads that are not cached, score all heads, and write the results.

    `weights.json` is written only if there is a weighted sum. The best head of each candidate is
    written for `strata predict`.

    Args:
        source: The store, or several that are read as one; they are not changed. An open store is
            used as it is: of a selection, only its utterances.
        config: The task and the settings of the sweep.
        observer: Receives notes and progress.
        paths: Paths of an open store as they were given, for the report; None: those that it has.

    Returns:
        The results and the output folder; pass both to `report.write_report`.

    Raises:
        ConfigError: The store lacks the labels or layers, or cannot be split as configured.
        StoreError: There is no such store, it is empty, or the output cannot be written.
    """
    if len(config.variants) > 1:
        raise ConfigError(
            "heads and fractions with several values are several sweeps; `strata sweep` and "
            "`pipeline.sweep` run them, and compare them"
        )
    [config] = config.variants
    observer = observer or Observer()
    times = [time.perf_counter()]
    with announced(observer, "reading the features and the labels"):
        plan = _prepare(source, config, observer)
        if paths is not None:
            plan = replace(plan, paths=tuple(map(str, paths)))
    times.append(time.perf_counter())
    kept = KeptHeads(plan.task, plan.cache.key)
    heads, n_reused = _train(plan, kept, observer)
    times.append(time.perf_counter())
    with announced(observer, "scoring the heads and computing baselines"):
        ranking = rank(plan.task, heads, list(dict.fromkeys(spec.layer for spec in plan.specs)))
        layer = best_single_layer(ranking.scores, plan.task.higher_is_better)
        label = plan.store.layer_labels[stored_layer(layer)]
        baselines = {
            name.replace(f"layer {layer}", f"layer {label}"): score
            for name, score in plan.task.baselines(layer).items()
        }
    times.append(time.perf_counter())
    seconds = dict(zip(("read", "train", "score"), np.diff(times).tolist(), strict=True))
    result = _result(plan, heads, ranking, baselines, seconds, n_reused)
    write_result(result, plan.folder, plan.store.layers)
    plan.task.write_files(plan.folder)
    kept.write(plan.folder, plan.data, ranking, observer.note)
    return result, plan.folder


def _prepare(
    source: FeatureStore | str | Path | Sequence[str | Path],
    config: SweepConfig,
    observer: Observer,
) -> _SweepPlan:
    """Read labels and features, split the utterances, list the heads, and claim the folder."""
    store = source if isinstance(source, FeatureStore) else open_store(source)
    if not len(store):
        if isinstance(source, FeatureStore) and len(source.whole()):
            raise StoreError(f"the selection of {store.location} has no utterances; select others")
        raise StoreError(
            f"{store.location} has no complete utterances yet; run `strata extract` first"
        )
    layers = choose_layers(store, config)
    labels, spans = read_task_labels(store, config, len(layers))
    for line in () if spans is None else spans.notes:
        observer.note(line)
    asked = output_folder(store, config, labels)
    settings = _settings(store, config, layers, labels, spans)
    split = make_split(store, config.task, config.split, labels)
    split = take_share(split, config.task, labels, config.fraction, config.split.seed)
    items = [fold if spans is None else spans.fold_of(fold) for fold in split.folds]
    n_train = max(1, *(len(fold.train) for fold in items))
    if config.task.is_trained:
        config = replace(config, task=resolve_steps(config.task, n_train))
    kind = TASK_KINDS[config.task.kind]
    device, memory = choose_device(config.device), parse_bytes(config.memory)
    data = TaskData(store, config.task, labels, split.folds, layers, device, spans, memory)
    task = kind(data)
    if task.items:
        split = replace(split, description=f"{split.description}; {task.items}")
    specs = list_heads(config, data.candidates, len(split.folds))
    paths, folds = given_paths(source), split.folds
    settings |= learned_from(labels, folds, task.fingerprint)
    folder, note = claim_folder(asked, settings)
    if note:
        observer.note(note)
    cache = HeadCache(asked / HEADS, store, config.task, labels, folds, layers, task.fingerprint)
    return _SweepPlan(data, store, paths, config, layers, labels, split, task, specs, folder, cache)


def _settings(
    store: FeatureStore,
    config: SweepConfig,
    layers: Sequence[int],
    labels: Labels,
    spans: SpanData | None,
) -> dict[str, Any]:
    """Return all that distinguishes the results of a sweep from those of others."""
    own: dict[str, Any] = {} if config.fraction == 1 else {"fraction": config.fraction}
    if spans is not None:
        own |= {"spans": spans.digest, "memory": config.memory}
    return (
        source_of(store)
        | own
        | {
            "task": asdict(config.task),
            "labels": labels.columns,
            "layers": layers,
            "weighted": config.weighted,
            "seeds": config.seeds,
            "split": asdict(config.split),
        }
    )


def _train(plan: _SweepPlan, kept: KeptHeads, observer: Observer) -> tuple[list[HeadResult], int]:
    """Train the heads that are not cached.

    Returns:
        All heads, in the order of the specs, and the number of cached ones.
    """
    cached = {spec: plan.cache.load(spec) for spec in plan.specs}
    heads = {spec: head for spec, head in cached.items() if head is not None}
    n_reused = len(heads)
    observer.head_trained(n_reused, len(plan.specs))

    def on_head(
        spec: HeadSpec, head: HeadResult, parameters: Mapping[str, Tensor] | None = None, /
    ) -> None:
        kept.add(spec, head, parameters)
        plan.cache.save(spec, head)
        heads[spec] = head
        observer.head_trained(len(heads), len(plan.specs))

    missing = [spec for spec in plan.specs if spec not in heads]
    if missing:
        if plan.config.task.is_trained and (note := stale_note()):
            observer.note(note)
        plan.task.train(missing, on_head, observer.note)
    return [heads[spec] for spec in plan.specs], n_reused


def _result(
    plan: _SweepPlan,
    heads: Sequence[HeadResult],
    ranking: Ranking,
    baselines: dict[str, float],
    seconds: dict[str, float],
    n_reused: int,
) -> Sweep:
    ids, folds = plan.store.ids, plan.split.folds
    chosen = [head for folds in ranking.chosen[ranking.best] for head in folds]
    best = next(score for score in ranking.scores if score.layer == ranking.best)
    steps, higher = plan.config.task.steps, plan.task.higher_is_better
    beaten = baseline_warnings(best, chosen, baselines, steps, higher)
    return Sweep(
        task=plan.config.task.name,
        store=plan.paths[0] if len(plan.paths) == 1 else plan.paths,
        encoder=describe_encoder(plan.store.attributes),
        warnings=(*_warnings(plan), *beaten),
        labels=plan.labels.columns,
        metric=plan.config.task.metric,
        higher_is_better=higher,
        layers=plan.layers,
        layer_names=tuple(plan.store.named_layers[layer] for layer in plan.layers),
        n_train=round(sum(len(fold.train) for fold in folds) / len(folds)),
        n_dev=round(sum(len(fold.dev) for fold in folds) / len(folds)),
        n_test=sum(len(fold.test) for fold in folds),
        split=plan.split.description,
        classes=plan.task.classes,
        test_ids=tuple(tuple(ids[i] for i in fold.test.tolist()) for fold in folds),
        truth=plan.task.truth,
        units=plan.task.units,
        scores=ranking.scores,
        best=ranking.best,
        comparison=ranking.comparison,
        baselines=baselines,
        layer_weights=_mean_weights(ranking),
        confusion=plan.task.confusion(chosen),
        heads=tuple(heads),
        seconds=seconds,
        trained=len(heads) - n_reused,
        reused=n_reused,
        spans=plan.config.spans.path,
        groups=ranking.groups,
        setup=describe_setup(plan.store, plan.config, plan.labels.columns, folds),
    )


def list_heads(
    config: SweepConfig, layers: Sequence[Candidate], n_folds: int
) -> tuple[HeadSpec, ...]:
    """Return the heads of a sweep, in the order in which they are reported."""
    candidates = list(layers)
    if not config.task.is_trained:
        return tuple(
            HeadSpec(layer, NO_RATE, 0, fold) for layer in candidates for fold in range(n_folds)
        )
    if config.weighted and len(layers) > 1:
        candidates.append(WEIGHTED)
    return tuple(
        HeadSpec(layer, lr, seed, fold)
        for layer in candidates
        for lr in config.task.lrs
        for seed in config.seeds
        for fold in range(n_folds)
    )


def choose_layers(store: FeatureStore, config: SweepConfig) -> tuple[int, ...]:
    """Return the swept layers, in the order of the store.

    Raises:
        ConfigError: One is not in the store.
    """
    if isinstance(config.layers, str):
        return store.layers
    numbers = number_layers(config.layers, store.named_layers, error=ConfigError)
    return tuple(layer for layer in store.layers if layer in numbers)


def _mean_weights(ranking: Ranking) -> tuple[float, ...] | None:
    """Average the learned layer weights over the chosen heads of the weighted sum."""
    if WEIGHTED not in ranking.chosen:
        return None
    weights = [head.layer_weights for folds in ranking.chosen[WEIGHTED] for head in folds]
    return tuple(np.mean([item for item in weights if item is not None], axis=0).tolist())


def _warnings(plan: _SweepPlan) -> list[str]:
    """Return the warnings to show before the scores, most severe first."""
    warnings = list(encoder_warnings(plan.store.attributes))
    for backend in plan.store.backends:
        status = read_status(backend)
        missing = status.utterances_total - status.utterances_ok - status.utterances_quarantined
        if missing:
            name = f"store {backend}" if len(plan.paths) > 1 else "the store"
            warnings.append(
                f"{name} is not complete: {missing:,} of "
                f"{counted(status.utterances_total, 'utterance')} not extracted yet, and not in "
                "the scores"
            )
    warnings += [*plan.split.warnings, *plan.task.warnings]
    n_test = sum(len(fold.test) for fold in plan.split.folds)
    return [*warnings, *size_warnings(n_test)]


def size_warnings(n_test: int) -> tuple[str, ...]:
    """Return a warning if there are few test utterances."""
    if n_test >= _MIN_TEST:
        return ()
    return (f"only {counted(n_test, 'test utterance')}: look at the intervals before the scores",)
