"""Invented sweeps whose scores follow from their predictions, as those of real ones do."""

from __future__ import annotations

from functools import cache

import numpy as np

from pipeline.probing.evaluation import Ratio
from pipeline.probing.results import (
    WEIGHTED,
    CandidateScore,
    HeadResult,
    Setup,
    Sweep,
)
from pipeline.probing.significance import interval, resampled_scores

CLASSES = ("no", "stop", "up", "yes")


@cache
def invented_sweep(
    task="ks",
    model="hubert_base",
    n_layers=12,
    level=0.7,
    head="linear",
    fraction=1.0,
    seed=0,
    n_test=200,
    seeds=(0, 1),
    best=None,
    store=None,
    prefix="clip",
    weighted=True,
    **facts,
) -> Sweep:
    """Return a sweep of an utterance task; its accuracy is highest at layer `best`.

    Args:
        task: Name of the task.
        model: Model of the encoder.
        n_layers: Number of layers.
        level: Accuracy at the best layer.
        head: Kind of the head.
        fraction: Share of train.
        seed: Seed of the predictions; the references depend on the task only.
        n_test: Test utterances.
        seeds: Seeds of the heads.
        best: The layer with the highest accuracy; None is three quarters of the depth.
        store: Path of the store; None is named like the model.
        prefix: What the ids of the test utterances begin with.
        weighted: Whether there is a weighted sum.
        facts: Further facts of the encoder.
    """
    truth = np.arange(n_test) % len(CLASSES)
    peak = best or max(1, round(0.75 * n_layers))
    layers = tuple(range(1, n_layers + 1))
    candidates = [*layers, *([WEIGHTED] if weighted else [])]
    heads, runs = [], []
    for at, layer in enumerate(candidates):
        place = peak if layer == WEIGHTED else layer
        accuracy = level - 0.3 * ((place - peak) / n_layers) ** 2 - 0.01 * (layer == WEIGHTED)
        group = []
        for number in seeds:
            random = np.random.default_rng([seed, at, number, round(100 * level), ord(head[0])])
            is_right = random.random(n_test) < accuracy
            found = np.where(is_right, truth, (truth + random.integers(1, 4, n_test)) % 4)
            predictions = tuple((int(value),) for value in found)
            run = Ratio(found == truth, np.ones(n_test))
            weights = (1 / n_layers,) * n_layers if layer == WEIGHTED else None
            heads.append(
                HeadResult(
                    layer, 1e-2, number, 0, 40, accuracy, run.score, (), predictions, weights
                )
            )
            group.append(run)
        runs.append(group)
    bounds = interval(resampled_scores(runs))
    scores = tuple(
        CandidateScore(
            layer,
            1e-2,
            dev=float(np.mean([head.dev for head in heads if head.layer == layer])),
            test=float(np.mean([run.score for run in group])),
            low=float(low),
            high=float(high),
            seed_sd=0.01,
        )
        for layer, group, (low, high) in zip(candidates, runs, bounds, strict=True)
    )
    return Sweep(
        task=task,
        store=store or f"features/{model}",
        encoder=f"{model}, pretrained weights, fp32",
        warnings=(),
        labels=("word",),
        metric="accuracy",
        higher_is_better=True,
        layers=layers,
        n_train=round(1600 * fraction),
        n_dev=200,
        n_test=n_test,
        split="by the column split",
        classes=(CLASSES,),
        test_ids=(tuple(f"{prefix}-{i:04d}" for i in range(n_test)),),
        truth=(tuple((int(value),) for value in truth),),
        scores=scores,
        best=max(scores, key=lambda score: score.dev).layer,
        comparison=None,
        baselines={"chance": 0.25},
        layer_weights=None,
        confusion=None,
        heads=tuple(heads),
        seconds={"read": 1.0, "train": 2.0, "score": 0.5},
        trained=len(heads),
        reused=0,
        setup=Setup(
            recipe={"kind": "utterance", "head": head, "pooling": ("mean",), "projection": 256},
            encoder={
                "model": model,
                "weights": "pretrained",
                "sha256": f"{model:0<16}",
                "precision": "fp32",
                "dtype": "float16",
            }
            | facts,
            n_stored=2000,
            n_used=2000,
            version="0.1.0",
            fraction=fraction,
        ),
    )
