"""What a head predicts for an item: classes, a transcript, numbers, spans or a vector."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from pipeline.errors import ConfigError


class LabelledSpan(NamedTuple):
    """A part of an utterance with its class.

    Attributes:
        start_s: Start in seconds, from the start of the utterance.
        stop_s: End in seconds.
        label: The most probable class; over runs of frames that of each frame.
        score: Its probability; of a run of frames the mean over these.
        first: First frame.
        last: One past the last frame.
    """

    start_s: float
    stop_s: float
    label: str
    score: float
    first: int
    last: int


@dataclass(frozen=True)
class Prediction:
    """The prediction of a head for one utterance, or for one span.

    Attributes:
        labels: The most probable class in each label column.
        scores: Its probability.
        transcript: The transcript, of a head with CTC.
        values: The number in each label column, of a regression.
        embedding: Vector of length 1 for verification, float64 [k].
        spans: Of a framewise head the runs of frames of one class, which cover the utterance;
            of a head on spans, the spans that were given, each with its class.
    """

    labels: tuple[str, ...] = ()
    scores: tuple[float, ...] = ()
    transcript: str | None = None
    values: tuple[float, ...] = ()
    embedding: Tensor | None = None
    spans: tuple[LabelledSpan, ...] = ()

    def cosine(self, other: Prediction) -> float:
        """Return the score of two utterances in verification: higher for one speaker.

        Raises:
            ConfigError: The head is not one for verification.
        """
        if self.embedding is None or other.embedding is None:
            raise ConfigError("only the predictions of a verification head have a cosine")
        return float(self.embedding @ other.embedding)
