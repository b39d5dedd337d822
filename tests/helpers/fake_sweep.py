"""Invented results of sweeps, in the shape of real ones."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from pipeline.probing.results import WEIGHTED, CandidateScore, Comparison, HeadResult, Sweep

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def class_sweep(n_layers=12, classes=DIGITS, n_test=400, seeds=(0, 1, 2), level=0.75) -> Sweep:
    """Return an utterance task whose accuracy rises to layer 9 of 12 and falls again."""
    random = np.random.default_rng(0)
    layers = tuple(range(1, n_layers + 1))
    heads, scores = [], []
    for layer in (*layers, WEIGHTED):
        depth = 0.8 if layer == WEIGHTED else layer / n_layers
        accuracy = level + 0.2 * (1 - 2.5 * (depth - 0.75) ** 2)
        for seed in seeds:
            for lr in (1e-2, 1e-3):
                test = accuracy + 0.008 * random.standard_normal() - 0.02 * (lr == 1e-2)
                heads.append(_head(layer, lr, seed, test, n_layers, random))
        own = [head.test for head in heads if head.layer == layer and head.lr == 1e-3]
        mean = float(np.mean(own))
        half = 1.96 * math.sqrt(mean * (1 - mean) / n_test)
        extra = {"macro_f1": mean - 0.011}
        sd = float(np.std(own))
        scores.append(
            CandidateScore(layer, 1e-3, mean + 0.006, mean, mean - half, mean + half, sd, extra)
        )
    ranked = sorted(scores, key=lambda score: -score.dev)
    first, second = ranked[0], ranked[1]
    n = len(classes)
    confusion = random.poisson(0.35 if n < 40 else 0.02, (n, n))
    np.fill_diagonal(confusion, random.poisson(3 * n_test / n / 1.2, n))
    weights = np.exp(-0.5 * ((np.arange(n_layers) - 0.7 * n_layers) / (n_layers / 5)) ** 2)
    return Sweep(
        task="ks",
        store="features/hubert_base",
        encoder="hubert_base, pretrained (sha256 1a2b3c4d), fp32",
        warnings=(),
        labels=("word",),
        metric="accuracy",
        higher_is_better=True,
        layers=layers,
        n_train=1600,
        n_dev=200,
        n_test=n_test,
        split="by the column split",
        classes=(tuple(classes),),
        test_ids=(tuple(f"clip-{i}" for i in range(n_test)),),
        truth=(tuple((i % n,) for i in range(n_test)),),
        scores=tuple(scores),
        best=first.layer,
        comparison=Comparison(
            first.layer, second.layer, first.test - second.test, 0.41, "McNemar's test"
        ),
        baselines={"chance": 1 / n, "majority class": 0.13, "logistic regression": level + 0.16},
        layer_weights=tuple((weights / weights.sum()).tolist()),
        confusion=tuple(tuple(int(count) for count in row) for row in confusion),
        heads=tuple(heads),
        seconds={"read": 1.8, "train": 31.2, "score": 2.4},
        trained=len(heads),
        reused=0,
    )


def text_sweep(**options) -> Sweep:
    """Return a frame task with character error rates, where lower is better."""
    made = class_sweep(**options)
    texts = tuple(f"the {DIGITS[i % 10]} of {DIGITS[i % 7]}" for i in range(60))
    predictions = tuple(text.replace("o", "", 1) for text in texts)
    heads = tuple(
        replace(
            head,
            dev=1 - head.dev,
            test=1 - head.test,
            predictions=predictions,
            curve=tuple((step, 400 * loss**3, 1 - dev) for step, loss, dev in head.curve),
        )
        for head in made.heads
    )
    scores = tuple(
        replace(
            score,
            dev=1 - score.dev,
            test=1 - score.test,
            low=1 - score.high,
            high=1 - score.low,
            extra={"wer": 2.4 * (1 - score.test)},
        )
        for score in made.scores
    )
    comparison = replace(made.comparison, difference=-0.003, p_value=0.002, test="paired bootstrap")
    return replace(
        made,
        task="asr",
        labels=("text",),
        metric="cer",
        higher_is_better=False,
        classes=(tuple("abcdefghijklmnopqrstuvwxyz' "),),
        n_test=60,
        test_ids=(tuple(f"clip-{i}" for i in range(60)),),
        truth=(texts,),
        scores=scores,
        comparison=comparison,
        baselines={"an untrained head": 0.98},
        confusion=None,
        heads=heads,
    )


def _head(layer, lr, seed, test, n_layers, random) -> HeadResult:
    steps = range(50, 1001, 50)
    rate = 180 if lr == 1e-3 else 120
    curve = tuple(
        (
            step,
            2.3 * math.exp(-step / rate) + 0.1 + 0.02 * random.random(),
            test * (1 - math.exp(-step / rate)) + 0.004 * random.standard_normal(),
        )
        for step in steps
    )
    best = max(curve, key=lambda point: point[2])
    weights = None
    if layer == WEIGHTED:
        raw = np.exp(-0.5 * ((np.arange(n_layers) - 0.7 * n_layers) / (n_layers / 5)) ** 2)
        raw += 0.05 * random.random(n_layers)
        weights = tuple((raw / raw.sum()).tolist())
    return HeadResult(layer, lr, seed, 0, best[0], best[2], test, curve, (), weights)
