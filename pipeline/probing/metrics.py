"""Metrics on test predictions, their confidence intervals, and significance tests.

A score is a ratio over test utterances: `counts.sum() / sizes.sum()`. For an accuracy, a count is 1
if the prediction is correct, else 0, and every size is 1. For an error rate, a count is the number
of errors and a size is the number of reference symbols.

With several seeds, `counts` is the mean over seeds, per utterance. All seeds are tested on the same
utterances, so the bootstrap draws utterances only, and more seeds do not narrow an interval. The
deviation between seeds is reported separately.

Transcripts are aligned by jiwer; this is the only module that uses it.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.config import did_you_mean
from pipeline.errors import ConfigError

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

N_RESAMPLES = 2_000
"""Bootstrap samples of an interval."""
N_FLIPS = 20_000
"""Random sign flips of a paired test."""
PAIRED_TEST = "paired sign-flip test over utterances"
"""Name of the test of `paired_p_value`, for `Comparison.test`."""

_CELLS_PER_CHUNK = 1 << 22
"""Largest number of resamples × utterances that is drawn at once: 32 MiB of float64."""


def error_counts(
    metric: str, references: Sequence[str], predictions: Sequence[str]
) -> tuple[IntArray, IntArray]:
    """Count the errors of each utterance.

    Texts are compared unchanged; normalise both first (`Vocabulary.normalize`).

    Args:
        metric: "cer" counts characters, including spaces; "wer" and "per" count space-separated
            tokens.
        references: Reference transcripts, [n_utterances].
        predictions: Predicted transcripts, [n_utterances].

    Returns:
        Two arrays, int64 [n_utterances]: substitutions + insertions + deletions, and the length of
        the reference. An empty reference has length 0; each predicted symbol is an insertion.

    Raises:
        ConfigError: The metric is unknown.
    """
    import jiwer

    process: dict[str, Callable[..., Any]] = {
        "cer": jiwer.process_characters,
        "wer": jiwer.process_words,
        "per": jiwer.process_words,
    }
    if metric not in process:
        raise ConfigError(f"metric is {metric!r}{did_you_mean(metric, process)}")
    if not len(references):
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    aligned = process[metric](list(references), list(predictions))
    errors = [
        sum(
            max(chunk.ref_end_idx - chunk.ref_start_idx, chunk.hyp_end_idx - chunk.hyp_start_idx)
            for chunk in chunks
            if chunk.type != "equal"
        )
        for chunks in aligned.alignments
    ]
    lengths = [len(reference) for reference in aligned.references]
    return np.array(errors, np.int64), np.array(lengths, np.int64)


def error_rate(metric: str, references: Sequence[str], predictions: Sequence[str]) -> float:
    """Return the error rate of a corpus: total errors divided by total reference symbols.

    Long utterances weigh more. If all references are empty, the result is the number of errors.
    """
    errors, lengths = error_counts(metric, references, predictions)
    return overall_score(errors, lengths)


def overall_score(counts: npt.NDArray[np.generic], sizes: npt.NDArray[np.generic]) -> float:
    """Return `counts.sum() / sizes.sum()`. A total size of 0 counts as 1.

    Args:
        counts: [n_utterances].
        sizes: [n_utterances].
    """
    return float(counts.sum()) / max(1.0, float(sizes.sum()))


def bootstrap_intervals(
    counts: FloatArray, sizes: IntArray, seed: int = 0, level: float = 0.95
) -> FloatArray:
    """Return percentile bootstrap intervals over utterances, of several candidates.

    Efron & Tibshirani, "An introduction to the bootstrap", chapter 13.

    Args:
        counts: Counts of each candidate and utterance, [n_candidates, n_utterances].
        sizes: Size of each utterance, [n_utterances].
        seed: Seed of the draws. All candidates share the draws.
        level: Confidence level, between 0 and 1.

    Returns:
        Lower and upper bounds, [n_candidates, 2].
    """
    random = np.random.default_rng(seed)
    n = len(sizes)
    n_per_chunk = max(1, _CELLS_PER_CHUNK // n)
    scores = []
    for start in range(0, N_RESAMPLES, n_per_chunk):
        n_rows = min(n_per_chunk, N_RESAMPLES - start)
        # number of times that each utterance is drawn: [n_rows, n_utterances]
        times = random.multinomial(n, np.full(n, 1 / n), size=n_rows).astype(np.float64)
        scores.append(times @ counts.T / np.maximum(1.0, times @ sizes)[:, None])
    tail = (1 - level) / 2
    return np.quantile(np.concatenate(scores), [tail, 1 - tail], axis=0).T


def paired_p_value(counts_a: FloatArray, counts_b: FloatArray, seed: int = 0) -> float:
    """Return the two-sided p-value of the difference of two candidates on the same utterances.

    Under the null hypothesis the two are exchangeable in each utterance, so each difference is
    equally likely to have either sign. For accuracies of one seed this approximates McNemar's exact
    test, with `N_FLIPS` random flips. For the k differences of one size, the k random signs are
    drawn as one binomial(k, 0.5).

    Args:
        counts_a: Counts of one candidate, [n_utterances].
        counts_b: Counts of the other candidate, [n_utterances].
        seed: Seed of the flips.
    """
    differences = np.round(counts_a - counts_b, 9)
    sizes, n_of_size = np.unique(np.abs(differences[differences != 0]), return_counts=True)
    random = np.random.default_rng(seed)
    total = np.zeros(N_FLIPS)
    for size, number in zip(sizes.tolist(), n_of_size.tolist(), strict=True):
        total += size * (2 * random.binomial(number, 0.5, N_FLIPS) - number)
    extreme = np.abs(total) >= abs(float(differences.sum())) - 1e-6
    return (1 + int(extreme.sum())) / (1 + N_FLIPS)


def macro_f1(references: IntArray, predictions: IntArray) -> float:
    """Return the F1 score, averaged over classes and then over label columns.

    Args:
        references: Classes, int64 [n_utterances, n_columns].
        predictions: Predicted classes, int64 [n_utterances, n_columns].
    """
    from sklearn.metrics import f1_score

    columns = zip(references.T, predictions.T, strict=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # many classes for the number of utterances
        scores = [f1_score(a, b, average="macro", zero_division=0.0) for a, b in columns]
    return float(np.mean(scores))


def confusion_matrix(references: IntArray, predictions: IntArray, n_classes: int) -> IntArray:
    """Count each pair of reference and predicted class.

    Args:
        references: Classes, int64 [n].
        predictions: Predicted classes, int64 [n].
        n_classes: Number of classes.

    Returns:
        int64 [n_classes, n_classes]: references by row, predictions by column.
    """
    matrix = np.zeros((n_classes, n_classes), np.int64)
    np.add.at(matrix, (references, predictions), 1)
    return matrix


def seed_deviation(scores: Sequence[float]) -> float:
    """Return the sample standard deviation over seeds; 0 for one seed."""
    return float(np.std(scores, ddof=1)) if len(scores) > 1 else 0.0
