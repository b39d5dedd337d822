"""Names of metrics and candidates in reports."""

from __future__ import annotations

from pipeline.probing.results import WEIGHTED, Candidate

METRICS = {
    "f1": "macro-F1",
    "accuracy": "accuracy",
    "cer": "character error rate",
    "wer": "word error rate",
    "per": "phone error rate",
    "macro_f1": "macro-F1",
    "ccc": "concordance correlation",
    "pearson": "Pearson correlation",
    "mae": "mean absolute error",
    "eer": "equal error rate",
    "min_dcf": "minimum detection cost",
    "abx_within": "ABX error within speakers",
    "abx_across": "ABX error across speakers",
}
"""Full names of metrics."""
DETECTION = ("eer", "min_dcf")
"""Metrics of trials."""


def metric_name(name: str) -> str:
    """Return the full name of a metric."""
    return METRICS.get(name, name.replace("_", " "))


def candidate_name(layer: Candidate) -> str:
    """Return the name of a candidate."""
    if layer == WEIGHTED:
        return "weighted sum"
    return f"layer {layer}" if isinstance(layer, int) else "collapsed layer"


def candidate_in_sentence(layer: Candidate) -> str:
    """Return the name of a candidate, with an article if the name needs one."""
    name = candidate_name(layer)
    return name if isinstance(layer, int) else f"the {name}"
