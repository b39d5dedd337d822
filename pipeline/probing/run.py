"""A sweep: which layer of a store carries a task best, and does a weighted sum of them do better?

A head is trained for every layer and the weighted sum × learning rate × seed × fold. Dev chooses
the step of each head and the learning rate and rank of each candidate; test is only reported.
Trained heads stay in the output folder, so that a changed sweep trains what is new.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline import files
from pipeline.config import SweepConfig
from pipeline.errors import ConfigError, StoreError
from pipeline.events import Observer
from pipeline.probing.encoder_description import encoder_in_words, warnings_of
from pipeline.probing.head_cache import HeadsCache
from pipeline.probing.labels import HeadSpec, Labels, read_labels
from pipeline.probing.ranking import Ranking, best_layer, grid, rank
from pipeline.probing.results import WEIGHTED, HeadResult, Layer, Sweep
from pipeline.probing.splits import Split, make_split
from pipeline.probing.tasks.tasks import FrameTask, Task, UtteranceTask, candidate
from pipeline.probing.trainers.pooled import fitted
from pipeline.store.maintain.status import read_status
from pipeline.store.read.features import FeatureStore, open_store

HEADS, RESULT, WEIGHTS = "heads", "sweep.json", "weights.json"
VOCABULARY = "vocabulary.json"
"""What is in the output folder, beside the report."""

_FEW = 100  # test utterances, fewer than which are said to be few


@dataclass(frozen=True)
class _Sweeping:
    """A sweep before its heads are trained.

    Attributes:
        store: The features.
        path: Of the store, as given.
        config: What is swept.
        layers: Layers of the store that are swept.
        labels: Of every utterance.
        split: Who trains, selects and is reported.
        task: What the heads learn.
        specs: The heads.
        folder: Of the output.
    """

    store: FeatureStore
    path: str
    config: SweepConfig
    layers: tuple[int, ...]
    labels: Labels
    split: Split
    task: Task
    specs: tuple[HeadSpec, ...]
    folder: Path


def sweep(
    store_path: str | Path, config: SweepConfig, observer: Observer | None = None
) -> tuple[Sweep, Path]:
    """Trains what is missing, scores, and writes `sweep.json` and `weights.json`.

    Args:
        store_path: The store; nothing is written into it.
        config: The task, and how to sweep it.
        observer: Receives notes and progress.

    Returns:
        All that was found, and the folder with the output. `report.write_report` takes both.

    Raises:
        ConfigError: The store has no such labels or layers, or cannot be split as asked.
        StoreError: There is no such store, nothing in it, or the output cannot be written.
    """
    times = [time.perf_counter()]
    here = _prepare(store_path, config)
    times.append(time.perf_counter())
    heads, n_reused = _train(here, observer or Observer())
    times.append(time.perf_counter())
    ranking = rank(here.task, heads, list(dict.fromkeys(spec.layer for spec in here.specs)))
    layer = best_layer(ranking.scores, here.task.higher_is_better)
    yardsticks = here.task.yardsticks(layer)
    times.append(time.perf_counter())
    seconds = dict(zip(("read", "train", "score"), np.diff(times).tolist(), strict=True))
    found = _result(here, heads, ranking, yardsticks, seconds, n_reused)
    _write(found, here)
    return found, here.folder


def output_folder(store: FeatureStore, config: SweepConfig, labels: Labels) -> Path:
    """Where a sweep is written.

    Raises:
        ConfigError: That is inside the store.
    """
    names = re.sub(r"[^\w.+-]", "_", "+".join(labels.columns))
    default = Path("sweeps", store.root.resolve().name, f"{config.task.name}-{names}")
    folder = default if config.out is None else Path(config.out)
    if folder.resolve().is_relative_to(store.root.resolve()):
        raise ConfigError(f"out={folder} is inside the store; give another out=FOLDER")
    return folder


def summary(found: Sweep) -> dict[str, Any]:
    """What programs want of a sweep, ready for JSON: all but the heads themselves."""
    whole = {item.name: getattr(found, item.name) for item in fields(found)}
    for name in ("heads", "truth", "test_ids"):
        del whole[name]
    return {
        "best_layer": best_layer(found.scores, found.higher_is_better),
        "results": grid(found.heads),
        **whole,
        "scores": [asdict(score) for score in found.scores],
        "comparison": None if found.comparison is None else asdict(found.comparison),
    }


def _prepare(store_path: str | Path, config: SweepConfig) -> _Sweeping:
    store = open_store(store_path)
    if not len(store):
        raise StoreError(f"{store_path} has no complete utterances yet; run `strata extract` first")
    layers = _layers(store, config)
    labels = read_labels(store, config.task, config.labels)
    folder = output_folder(store, config, labels)
    split = make_split(store, config.task, config.split, labels)
    n_train = max(len(fold.train) for fold in split.folds)
    config = replace(config, task=fitted(config.task, n_train))
    kind = UtteranceTask if config.task.kind == "utterance" else FrameTask
    task = kind(store, config.task, labels, split.folds, layers, _device(config.device))
    candidates: list[Layer] = [candidate(layer) for layer in layers]
    if config.weighted and len(layers) > 1:
        candidates.append(WEIGHTED)
    specs = tuple(
        HeadSpec(layer, lr, seed, fold)
        for layer in candidates
        for lr in config.task.lrs
        for seed in config.seeds
        for fold in range(len(split.folds))
    )
    path = str(store_path)
    return _Sweeping(store, path, config, layers, labels, split, task, specs, folder)


def _train(here: _Sweeping, observer: Observer) -> tuple[list[HeadResult], int]:
    """All heads, in the order of the specs, and how many were there before."""
    cache = HeadsCache(
        here.folder / HEADS,
        here.store,
        here.config.task,
        here.labels,
        here.split.folds,
        here.layers,
    )
    kept = {spec: cache.load(spec) for spec in here.specs}
    found = {spec: head for spec, head in kept.items() if head is not None}
    n_reused = len(found)
    observer.head_trained(n_reused, len(here.specs))

    def done(spec: HeadSpec, head: HeadResult) -> None:
        cache.save(spec, head)
        found[spec] = head
        observer.head_trained(len(found), len(here.specs))

    missing = [spec for spec in here.specs if spec not in found]
    if missing:
        here.task.train(missing, done, observer.note)
    return [found[spec] for spec in here.specs], n_reused


def _result(
    here: _Sweeping,
    heads: Sequence[HeadResult],
    ranking: Ranking,
    yardsticks: dict[str, float],
    seconds: dict[str, float],
    n_reused: int,
) -> Sweep:
    ids, folds = here.store.ids, here.split.folds
    chosen = [head for run in ranking.chosen[ranking.best] for head in run]
    return Sweep(
        task=here.config.task.name,
        store=here.path,
        encoder=encoder_in_words(here.store.attributes),
        warnings=tuple(_warnings(here)),
        labels=here.labels.columns,
        metric=here.config.task.metric,
        higher_is_better=here.task.higher_is_better,
        layers=here.layers,
        n_train=round(sum(len(fold.train) for fold in folds) / len(folds)),
        n_dev=round(sum(len(fold.dev) for fold in folds) / len(folds)),
        n_test=sum(len(fold.test) for fold in folds),
        split=here.split.words,
        classes=here.task.classes,
        test_ids=tuple(tuple(ids[i] for i in fold.test.tolist()) for fold in folds),
        truth=here.task.truth,
        scores=ranking.scores,
        best=ranking.best,
        comparison=ranking.comparison,
        yardsticks=yardsticks,
        layer_weights=_mean_weights(ranking),
        confusion=here.task.confusion(chosen),
        heads=tuple(heads),
        seconds=seconds,
        trained=len(heads) - n_reused,
        reused=n_reused,
    )


def _layers(store: FeatureStore, config: SweepConfig) -> tuple[int, ...]:
    if isinstance(config.layers, str):
        return store.layers
    unknown = [layer for layer in config.layers if layer not in store.layers]
    if unknown:
        raise ConfigError(f"no layers {unknown} in the store; it has {list(store.layers)}")
    return tuple(layer for layer in store.layers if layer in config.layers)


def _device(name: str) -> torch.device:
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device is cuda and torch finds no GPU; say device=cpu")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


def _mean_weights(ranking: Ranking) -> tuple[float, ...] | None:
    """Learned weights of the layers, at the learning rate that dev chose for the weighted sum."""
    if WEIGHTED not in ranking.chosen:
        return None
    weights = [head.layer_weights for run in ranking.chosen[WEIGHTED] for head in run]
    return tuple(np.mean([item for item in weights if item is not None], axis=0).tolist())


def _warnings(here: _Sweeping) -> list[str]:
    """What a reader of the scores must know, the gravest first."""
    warnings = list(warnings_of(here.store.attributes))
    status = read_status(here.store.root)
    missing = status.utterances_total - status.utterances_ok - status.utterances_quarantined
    if missing:
        warnings.append(
            f"the store is not complete: {missing:,} of {status.utterances_total:,} utterances are "
            "not extracted yet, and the scores are without them"
        )
    warnings += [*here.split.warnings, *here.task.warnings]
    n_test = sum(len(fold.test) for fold in here.split.folds)
    if n_test < _FEW:
        warnings.append(f"only {n_test} test utterances: look at the intervals before the scores")
    return warnings


def _write(found: Sweep, here: _Sweeping) -> None:
    text = json.dumps(asdict(found) | summary(found), allow_nan=False)
    files.write_atomic(here.folder / RESULT, [text.encode()])
    if isinstance(here.task, FrameTask):
        here.task.vocabulary.save(here.folder / VOCABULARY)
    if found.layer_weights is None:
        (here.folder / WEIGHTS).unlink(missing_ok=True)  # of an earlier sweep
        return
    swept = dict(zip(found.layers, found.layer_weights, strict=True))
    weights = [swept.get(layer, 0.0) for layer in here.store.layers]
    files.write_atomic(here.folder / WEIGHTS, [files.json_bytes(weights)])
