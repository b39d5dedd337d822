"""Error rates of transcripts, counted by jiwer; the only module that uses it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.config import nearest
from pipeline.errors import ConfigError

IntArray = npt.NDArray[np.int64]


def error_counts(
    metric: str, truth: Sequence[str], said: Sequence[str]
) -> tuple[IntArray, IntArray]:
    """Errors of each utterance, so that any selection of utterances has its rate.

    Texts are compared as they are: bring both to one form before (`Vocabulary.normalise`).

    Args:
        metric: cer counts characters, spaces too; wer and per what stands between spaces.
        truth: What is right, [n_utterances].
        said: What a head says, likewise.

    Returns:
        Substitutions, insertions and deletions together, and the length of the truth: both int64
        [n_utterances]. An empty truth has length 0, and all that is said of it is in error.

    Raises:
        ConfigError: No such metric.
    """
    import jiwer

    process: dict[str, Callable[..., Any]] = {
        "cer": jiwer.process_characters,
        "wer": jiwer.process_words,
        "per": jiwer.process_words,
    }
    if metric not in process:
        raise ConfigError(f"metric is {metric!r}{nearest(metric, process)}")
    if not len(truth):
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    found = process[metric](list(truth), list(said))
    errors = [
        sum(
            max(part.ref_end_idx - part.ref_start_idx, part.hyp_end_idx - part.hyp_start_idx)
            for part in parts
            if part.type != "equal"
        )
        for parts in found.alignments
    ]
    lengths = [len(reference) for reference in found.references]
    return np.array(errors, np.int64), np.array(lengths, np.int64)


def error_rate(metric: str, truth: Sequence[str], said: Sequence[str]) -> float:
    """Rate over a corpus: all errors by all symbols, so that long utterances count for more.

    Where there is nothing to say in any of them, it is the number of errors.
    """
    errors, lengths = error_counts(metric, truth, said)
    return float(errors.sum()) / max(1, int(lengths.sum()))
