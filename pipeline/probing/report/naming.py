"""Names of metrics and candidates in reports."""

from __future__ import annotations

from pipeline.probing.results import WEIGHTED, Candidate, Sweep
from pipeline.store.format.layers import layer_text

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
_SUM, _COLLAPSED = "weighted sum", "collapsed layer"
DETECTION = ("eer", "min_dcf")
"""Metrics of trials."""


def metric_name(name: str) -> str:
    """Return the full name of a metric."""
    return METRICS.get(name, name.replace("_", " "))


def candidate_name(layer: Candidate, sweep: Sweep) -> str:
    """Return the name of a candidate of a sweep: layer 6, conv, weighted sum."""
    if layer == WEIGHTED:
        return _SUM
    if not isinstance(layer, int):
        return _COLLAPSED
    return layer_text(sweep.layer_labels.get(layer, str(layer)))


def candidate_in_sentence(layer: Candidate, sweep: Sweep) -> str:
    """Return the name of a candidate, with an article if the name needs one."""
    return with_article(candidate_name(layer, sweep))


def with_article(name: str) -> str:
    """Return the name of a candidate with an article if it needs one."""
    return f"the {name}" if name in (_SUM, _COLLAPSED) else name
