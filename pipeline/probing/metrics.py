"""Metrics of predictions.

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

AGREEMENT = ("ccc", "pearson", "mae")
"""Metrics of predicted numbers."""


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


def class_counts(cells: IntArray) -> FloatArray:
    """Return what `macro_f1_of_sums` needs of a confusion matrix: [..., 3 * n_classes].

    Args:
        cells: Counts [..., n_classes, n_classes], references by row, predictions by column.

    Returns:
        True positives of each class, then all references, then all predictions of each class.
    """
    correct = np.diagonal(cells, axis1=-2, axis2=-1)
    parts = (correct, cells.sum(-1), cells.sum(-2))
    return np.concatenate(parts, axis=-1).astype(np.float64)


def macro_f1_of_sums(sums: FloatArray) -> FloatArray:
    """Return the mean F1 score over the classes that occur in references or predictions.

    Args:
        sums: Sums of `class_counts`, [n_draws, 3 * n_classes].

    Returns:
        [n_draws]; 0 if there is nothing.
    """
    correct, references, predictions = np.split(sums, 3, axis=1)
    total = references + predictions
    scores = 2 * correct / np.where(total > 0, total, 1.0)
    return np.asarray(scores.sum(1) / np.maximum(1, (total > 0).sum(1)))


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


def agreement_sums(references: FloatArray, predictions: FloatArray) -> FloatArray:
    """Return what `agreement_of_sums` needs of each utterance.

    Args:
        references: Numbers, [n_columns, n].
        predictions: [n_columns, n].

    Returns:
        [n, 1 + 6 * n_columns]: 1, then per column x, y, xx, yy, xy and |x - y|. x and y are centred
        by the mean of the references, so that sums of squares lose no digits.
    """
    middle = references.mean(1, keepdims=True)
    x, y = predictions - middle, references - middle
    columns = np.stack([x, y, x * x, y * y, x * y, np.abs(x - y)])  # [6, n_columns, n]
    ones = np.ones((references.shape[1], 1))
    return np.hstack([ones, columns.transpose(2, 1, 0).reshape(len(ones), -1)])


def agreement_of_sums(metric: str, sums: FloatArray) -> FloatArray:
    """Return a metric of predicted numbers from sums over utterances.

    Args:
        metric: "ccc" is the concordance correlation coefficient (Lin, "A concordance correlation
            coefficient to evaluate reproducibility", Biometrics 1989), "pearson" the correlation,
            "mae" the mean absolute error. A correlation of constant numbers is 0.
        sums: Sums of `agreement_sums`, [n_draws, 1 + 6 * n_columns].

    Returns:
        [n_draws, n_columns].

    Raises:
        ConfigError: The metric is unknown.
    """
    if metric not in AGREEMENT:
        raise ConfigError(f"metric is {metric!r}{did_you_mean(metric, AGREEMENT)}")
    n = np.maximum(1.0, sums[:, :1, None])
    means = sums[:, 1:].reshape(len(sums), -1, 6) / n
    x, y, xx, yy, xy, error = np.moveaxis(means, 2, 0)
    if metric == "mae":
        return np.asarray(error)
    variances = np.maximum(xx - x * x, 0.0), np.maximum(yy - y * y, 0.0)
    covariance = xy - x * y
    if metric == "ccc":
        scale = variances[0] + variances[1] + (x - y) ** 2
        return np.asarray(2 * covariance / np.where(scale > 0, scale, 1.0))
    scale = np.sqrt(variances[0] * variances[1])
    defined = scale > 1e-12 * np.maximum(1e-300, np.sqrt(xx * yy))
    return np.where(defined, covariance / np.where(defined, scale, 1.0), 0.0)


def agreement(metric: str, references: FloatArray, predictions: FloatArray) -> FloatArray:
    """Return a metric of predicted numbers, [n_columns].

    Args:
        metric: As for `agreement_of_sums`.
        references: [n_columns, n].
        predictions: [n_columns, n].
    """
    sums = agreement_sums(references, predictions).sum(0)[None]
    return np.asarray(agreement_of_sums(metric, sums)[0])
