"""Spans that a head labels: read, matched with recordings, and predicted."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.errors import ConfigError, SourceError, counted, first_few
from pipeline.events import Observer
from pipeline.heads.facts import SPANS, HeadFacts
from pipeline.heads.prediction import LabelledSpan, Prediction
from pipeline.heads.trained import TrainedHead
from pipeline.predict.pairs import name_ends, named
from pipeline.spans.placing import UTTERANCE, PlacedSpans, place_spans
from pipeline.spans.pooling import iter_pooled_spans
from pipeline.spans.reading import read_spans
from pipeline.spans.table import Spans
from pipeline.store.format.geometry import FrameGeometry
from pipeline.store.read.features import FeatureStore
from pipeline.store.read.timing import frames_between, span_times

_CELLS = 1 << 26  # statistics of spans in memory at a time: 256 MiB
_FORMATS = "TextGrid, CTM, RTTM, csv, tsv, parquet or jsonl"


@dataclass(frozen=True)
class GivenSpans:
    """Spans to label.

    Attributes:
        spans: The spans; their labels have no effect.
        placing: Settings of `place_spans`: `times` and `segment_start`.
    """

    spans: Spans
    placing: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, spans: Spans | GivenSpans | str | Path) -> GivenSpans:
        """Return spans as given, or of a file or folder, read with the usual settings.

        Raises:
            SourceError: The file cannot be read.
            ConfigError: There are no spans.
        """
        if isinstance(spans, GivenSpans):
            return spans
        found = spans if isinstance(spans, Spans) else read_spans(spans)
        if not len(found):
            raise ConfigError("spans= has no spans; give at least one")
        return cls(found)

    def of_recordings(self, names: Sequence[str], observer: Observer) -> GivenSpans:
        """Return the spans of recordings, with the names of these as ids.

        Args:
            names: Paths. The id of a span is one, or the end of one after a slash, with or without
                its extension.
            observer: Notes how many spans are of no recording.

        Raises:
            ConfigError: An id may be several of the recordings, no span is of one, or the times are
                those of recordings that a store has in segments.
        """
        if self.placing.get("times", UTTERANCE) != UTTERANCE or "segment_start" in self.placing:
            raise ConfigError(
                "spans.times=recording and spans.segment_start= are for stores of segments; the "
                "times of spans count from the start of each file"
            )
        ends = name_ends(names)
        found: dict[str, str] = {}
        for one in self.spans.utterances:
            matches = named(one, ends)
            if len(matches) > 1:
                raise ConfigError(
                    f"spans of {one!r} may be of any of {first_few(matches)}; give longer ids "
                    "(spans.id_form=), or fewer recordings"
                )
            if matches:
                found[one] = matches[0]
        others = [one for one in self.spans.utterances if one not in found]
        if not found:
            raise ConfigError(
                f"no span is of the recordings: the ids of the spans are such as {others[0]!r}, "
                f"and the recordings such as {names[0]!r}; an id is a path or the end of one, with "
                "or without its extension (spans.id_form= changes ids)"
            )
        kept = np.array([one in found for one in self.spans.utterances])[self.spans.utterance]
        if not kept.all():
            observer.note(
                f"{counted(int((~kept).sum()), 'span')} of {len(self.spans):,} are of other "
                f"recordings: {first_few(others)}"
            )
        own = self.spans.take(np.flatnonzero(kept))
        return replace(self, spans=own.with_ids(found.__getitem__))

    def of_names(self, names: Sequence[str]) -> GivenSpans:
        """Return the spans with some ids."""
        wanted = set(names)
        kept = np.array([one in wanted for one in self.spans.utterances], bool)
        return replace(self, spans=self.spans.take(np.flatnonzero(kept[self.spans.utterance])))


@dataclass(frozen=True)
class SpanPredictions:
    """What is predicted for spans, by utterance.

    Attributes:
        spans: The spans with their classes, in the order of the file.
        without_frames: Start and stop of the spans in which no frame's centre is.
    """

    spans: dict[str, tuple[LabelledSpan, ...]]
    without_frames: dict[str, tuple[tuple[float, float], ...]]


def check_spans(facts: HeadFacts, are_given: bool) -> None:
    """Check that spans are given if the head labels spans, and only then.

    Raises:
        ConfigError: They are not.
    """
    if facts.kind == SPANS and not are_given:
        raise ConfigError(
            f"the heads of {facts.task} label given intervals; give spans=FILE ({_FORMATS}), in "
            "Python spans="
        )
    if facts.kind != SPANS and are_given:
        raise ConfigError(
            f"spans= is for heads on spans (task=word or phone), and this is one of "
            f"{facts.task}; leave it out"
        )


def predict_stored_spans(
    head: TrainedHead, store: FeatureStore, given: GivenSpans, observer: Observer | None
) -> SpanPredictions:
    """Predict the class of spans from stored features, in one pass.

    Args:
        head: A head on spans.
        store: A store with the layers of the head.
        given: The spans.
        observer: Receives notes about spans that cannot be used; None if it is to be left to the
            caller that no span has a frame.

    Raises:
        SourceError: No span is of the store, or has a frame.
        StoreError: The store keeps no frames.
    """
    store.check_frames()
    spans = given.spans
    try:
        placed = place_spans(store, spans, **given.placing)
    except SourceError:
        if observer is not None:
            raise
        placed = None
    if placed is not None and observer is not None:
        for note in placed.notes:
            observer.note(note)
    labelled: dict[str, list[tuple[int, LabelledSpan]]] = {}
    for some, predictions in _predicted(head, store, placed) if placed else ():
        for at, prediction in enumerate(predictions):
            row, first, last = int(some.row[at]), int(some.first[at]), int(some.last[at])
            times = float(spans.start_s[row]), float(spans.stop_s[row])
            found = LabelledSpan(*times, prediction.labels[0], prediction.scores[0], first, last)
            labelled.setdefault(store.ids[int(some.position[at])], []).append((row, found))
    without: dict[str, list[tuple[float, float]]] = {}
    if given.placing.get("times", UTTERANCE) == UTTERANCE:
        ids, rows = set(store.ids), set(placed.row.tolist() if placed else ())
        for row in range(len(spans)):
            span = spans[row]
            if row not in rows and span.id in ids:
                without.setdefault(span.id, []).append((span.start_s, span.stop_s))
    return SpanPredictions(
        {name: tuple(item for _, item in sorted(some)) for name, some in labelled.items()},
        {name: tuple(some) for name, some in without.items()},
    )


def predict_spans(
    head: TrainedHead, features: Tensor, spans: Sequence[Any], geometry: FrameGeometry, number: int
) -> Prediction:
    """Predict the class of spans of one waveform.

    Args:
        head: A head on spans.
        features: Of the waveform, [n_layers, n_frames, dim].
        spans: Pairs (start_s, stop_s), or rows of `Spans`.
        geometry: Of the encoder.
        number: Of the waveform, for messages.

    Raises:
        ConfigError: A span is no pair of times, or no frame's centre is in it.
    """
    found = []
    for span in spans:
        start_s, stop_s = span_times(span)
        first, last = frames_between(geometry, start_s, stop_s)
        assert first is not None
        assert last is not None
        last = min(last, features.shape[1])
        if last <= first:
            raise ConfigError(
                f"waveform {number}: no frame's centre is between {start_s:g} and {stop_s:g} s; "
                f"frames are {1 / geometry.frame_rate_hz:g} s apart, and there are "
                f"{features.shape[1]}. Give a longer span"
            )
        one = head(features[:, first:last])
        found.append(LabelledSpan(start_s, stop_s, one.labels[0], one.scores[0], first, last))
    return Prediction(spans=tuple(found))


def _predicted(
    head: TrainedHead, store: FeatureStore, placed: PlacedSpans
) -> Iterator[tuple[PlacedSpans, list[Prediction]]]:
    """Yield some of the spans with their predictions, until all are done."""
    facts = head.facts
    placed = placed.take(np.lexsort((placed.last, placed.first, placed.position)))
    n_layers = len(facts.layers)
    n_some = max(1, _CELLS // (n_layers * facts.n_inputs))
    for start in range(0, len(placed), n_some):
        some = placed.take(np.arange(start, min(start + n_some, len(placed))))
        statistics = torch.empty(len(some), n_layers, facts.n_inputs)
        for i, name in enumerate(facts.pooling):
            place = slice(i * facts.dim, (i + 1) * facts.dim)
            for rows, values in iter_pooled_spans(store, some, facts.layers, name):
                statistics[torch.from_numpy(rows), :, place] = values
        yield some, head.of_pooled(statistics)
