"""Frame tasks: a transcript per utterance, by CTC over its frames."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pipeline.config.sweep_schema import LINEAR
from pipeline.errors import ConfigError
from pipeline.probing.evaluation import Ratio
from pipeline.probing.metrics import error_counts
from pipeline.probing.results import Candidate, HeadResult, HeadSpec, Note, OnHead, stored_layer
from pipeline.probing.tasks.base import Task, TaskData
from pipeline.probing.tasks.inputs import check_units, sequence_data
from pipeline.probing.trainers import sequences
from pipeline.probing.trainers.ctc import train_ctc_heads, untrained_error_rate
from pipeline.probing.trainers.frame_data import prepare_transcripts, transcript_warnings
from pipeline.probing.trainers.frame_lessons import TranscriptLesson
from pipeline.probing.trainers.sequence_data import SequenceData
from pipeline.store.format.pooling import MEAN

VOCABULARY = "vocabulary.json"


class FrameTask(Task):
    """Transcription of utterances, scored by an error rate."""

    higher_is_better = False

    def __init__(self, data: TaskData) -> None:
        """Prepare the transcripts of each fold.

        Args:
            data: What to learn from; the labels are transcripts, in one column.

        Raises:
            StoreError: The store keeps no frames.
            ConfigError: A transcript is missing, a part is empty, no transcript can be trained on,
                or a setting does not fit the task or the head.
        """
        self._data, self._config = data, data.config
        if data.config.pooling != (MEAN,):
            raise ConfigError(
                f"task {data.config.name} gets frames; task.pooling is for tasks on utterances"
            )
        check_units(data.config)
        data.store.check_frames()
        texts = data.labels.texts[0]
        self._transcripts = [
            prepare_transcripts(data.store, data.config, fold, texts) for fold in data.folds
        ]
        self._sequences: SequenceData | None = None
        if data.config.head != LINEAR:
            lessons = [TranscriptLesson(data.store, data.config, of) for of in self._transcripts]
            self._sequences = sequence_data(data, lessons)
        self.warnings = tuple(transcript_warnings(self._transcripts))
        self.vocabulary = self._transcripts[0].vocabulary
        self.classes = (self.vocabulary.symbols,)
        self.truth = tuple(tuple(part.test.values()) for part in self._transcripts)

    def train(self, specs: Sequence[HeadSpec], on_head: OnHead, note: Note) -> None:
        """Train linear heads fold by fold and seed by seed, others layer by layer.

        An interruption keeps what is trained.
        """
        if self._sequences is not None:
            sequences.train_sequence_heads(self._sequences, specs, on_head, note)
            return
        for fold, seed in dict.fromkeys((spec.fold, spec.seed) for spec in specs):
            group = [spec for spec in specs if (spec.fold, spec.seed) == (fold, seed)]
            train_ctc_heads(
                self._data.store,
                self._config,
                self._transcripts[fold],
                self._data.layers,
                group,
                self._data.device,
                note,
                on_head,
            )

    def evaluate(self, heads: Sequence[HeadResult]) -> Ratio:
        """Return the error rate: the errors of each test utterance, and its number of symbols."""
        return self._error_rate(self._config.metric, heads)

    def extra(self, heads: Sequence[HeadResult]) -> dict[str, float]:
        """Return the word error rate, if the metric is the character error rate."""
        if self._config.metric != "cer":
            return {}
        return {"wer": self._error_rate("wer", heads).score}

    def baselines(self, layer: Candidate) -> dict[str, float]:
        """Return the error rates of an untrained head and of empty predictions."""
        if self._sequences is not None:
            rate = sequences.untrained_score(self._sequences, layer)
        else:
            rate = untrained_error_rate(
                self._data.store,
                self._config,
                self._transcripts[0],
                stored_layer(layer),
                self._data.device,
            )
        return {f"untrained head, layer {layer}": rate, "empty predictions": 1.0}

    def confusion(self, heads: Sequence[HeadResult]) -> None:
        """Return None: transcripts have no confusion matrix."""
        return

    def classes_of_fold(self, fold: int) -> tuple[tuple[str, ...], ...]:
        """Return the symbols of the training transcripts of a fold."""
        return (self._transcripts[fold].vocabulary.symbols,)

    def write_files(self, folder: Path) -> None:
        """Write the vocabulary."""
        self.vocabulary.save(folder / VOCABULARY)

    def _error_rate(self, metric: str, heads: Sequence[HeadResult]) -> Ratio:
        pairs = [
            error_counts(
                metric,
                list(self._transcripts[head.fold].test.values()),
                [str(text) for text in head.predictions],
            )
            for head in heads
        ]
        errors, lengths = (np.concatenate(part) for part in zip(*pairs, strict=True))
        return Ratio(errors, lengths)
