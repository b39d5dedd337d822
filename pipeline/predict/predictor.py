"""Labels of new recordings, by a head of a sweep and the encoder that it was trained on."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from pipeline.errors import ConfigError, counted, first_few
from pipeline.events import Observer
from pipeline.heads.facts import SPANS
from pipeline.heads.prediction import Prediction
from pipeline.heads.trained import TrainedHead
from pipeline.predict.encoding import HeadEncoder, check_features
from pipeline.predict.given_spans import (
    GivenSpans,
    check_spans,
    predict_spans,
    predict_stored_spans,
)
from pipeline.predict.heads import BEST, open_head
from pipeline.predict.recordings import find_recordings
from pipeline.predict.waveforms import as_waveform, check_rate
from pipeline.spans.placing import UTTERANCE
from pipeline.spans.table import Spans
from pipeline.store.backend.base import Location
from pipeline.store.read.features import FeatureStore
from pipeline.store.read.opening import open_store

if TYPE_CHECKING:
    from numpy.typing import NDArray

_PART_CELLS = 1 << 27  # features of a long recording that are read at a time: 512 MiB as float32


@dataclass(frozen=True)
class Predicted:
    """A recording, or an utterance of a store, with its prediction.

    Attributes:
        name: Path of the file as given, or id of the utterance.
        prediction: The prediction; None if there is an error.
        error: Why the recording could not be encoded.
        without_frames: Start and stop, in seconds, of given spans that have no class, since no
            frame's centre is in them.
    """

    name: str
    prediction: Prediction | None = None
    error: str | None = None
    without_frames: tuple[tuple[float, float], ...] = ()


class Predictor:
    """Predicts with a trained head of a sweep.

    Recordings and waveforms are encoded by the encoder of the sweep, which is loaded when it is
    first needed. Its weights are compared with those of the sweep by their hash.

    Args:
        folder: The folder of a sweep, or one that `strata export-head` wrote.
        layer: Which head: "best" (by dev), "weighted", "collapsed" or a layer.
        overrides: Settings of the encoder, as on the command line: another place of its weights
            (`model.weights=PATH`, or `model=hf model.name=DIR`), `engine.threads=N`,
            `engine.device=cpu`, `extract.precision=fp32` or `extract.max_batch_s=N`.
        observer: Receives notes and progress; None prints nothing.
        allow_code: Whether code may run that `model.target` names in `overrides`. What the sweep
            names never runs.

    Raises:
        ConfigError: The folder has no such head.

    Attributes:
        head: The head; `head.facts` says what it is.

    Example:
        >>> predictor = pipeline.Predictor("sweeps/features/ks-digit")
        >>> [prediction] = predictor([waveform], sample_rate=44_100)  # [n_samples]
        >>> prediction.labels, prediction.scores
        (('seven',), (0.98,))
    """

    def __init__(
        self,
        folder: str | Path,
        layer: int | str = BEST,
        *,
        overrides: Sequence[str] = (),
        observer: Observer | None = None,
        allow_code: bool = False,
    ) -> None:
        self.head: TrainedHead = open_head(folder, layer)
        self._overrides, self._observer = tuple(overrides), observer or Observer()
        self._allow_code = allow_code
        self._loaded: HeadEncoder | None = None

    def __call__(
        self,
        waveforms: Iterable[Tensor | NDArray[Any]],
        sample_rate: int | None = None,
        *,
        spans: Iterable[Sequence[Any]] | None = None,
    ) -> list[Prediction]:
        """Predict from waveforms, each encoded by itself.

        Args:
            waveforms: Tensors or arrays [n_samples], each of any length: floats, or int16 or int32,
                which are scaled to [-1, 1) as an extraction does it.
            sample_rate: Samples per second of all of them; other rates than the encoder's are
                resampled as an extraction does it. None: they have the encoder's rate, 16 kHz.
            spans: For a head on spans, those of each waveform: pairs (start_s, stop_s), or rows of
                `Spans`.

        Raises:
            ConfigError: Spans are missing or of no use, or a span has no frame.
            StrataError: The encoder cannot be loaded, is not that of the sweep, or a waveform
                cannot be encoded.
        """
        check_rate(sample_rate)
        check_spans(self.head.facts, spans is not None)
        if isinstance(waveforms, Tensor | np.ndarray) and waveforms.ndim == 1:
            raise ConfigError("expected a list of waveforms, not one; write [waveform]")
        given = list(waveforms)
        of_each = [()] * len(given) if spans is None else list(spans)
        if len(of_each) != len(given):
            raise ConfigError(
                f"there are {counted(len(given), 'waveform')} and spans of {len(of_each)}; give a "
                "list of spans for each waveform"
            )
        rate_hz = self._encoder.geometry.sample_rate_hz
        ready = [as_waveform(item, sample_rate, rate_hz, i) for i, item in enumerate(given)]
        pairs = zip(ready, of_each, strict=True)
        return [self._of_waveform(waveform, own, i) for i, (waveform, own) in enumerate(pairs)]

    def predict_files(
        self, paths: Sequence[str | Path], spans: Spans | GivenSpans | str | Path | None = None
    ) -> list[Predicted]:
        """Predict from audio files, or the audio files in folders.

        They are decoded, resampled and encoded as `strata extract` does it, in batches.

        Args:
            paths: Files and folders.
            spans: For a head on spans, the intervals to label, or a file of them. Their ids are
                paths, or ends of paths, with or without extension. Files without spans are not
                encoded.

        Returns:
            One item per file; those of a folder are sorted. A file that cannot be decoded has an
            error.

        Raises:
            StrataError: There are no such files, or the encoder cannot be loaded or is not that of
                the sweep; or spans are missing or of no use.
        """
        check_spans(self.head.facts, spans is not None)
        files = [(str(path), path.absolute()) for path in find_recordings(paths)]
        names = [name for name, _ in files]
        given = None
        if spans is not None:
            given = GivenSpans.of(spans).of_recordings(names, self._observer)
            self._note_without(names, given)
            with_spans = set(given.spans.utterances)
            files = [item for item in files if item[0] in with_spans]
        found = {name: Predicted(name, Prediction()) for name in names}
        with closing(self._encoder.encode(files, self._observer)) as parts:
            for encoded in parts:
                own = [name for name in encoded.names if name not in encoded.reasons]
                predicted = self._of_store(encoded.store, own, given and given.of_names(own))
                found |= {item.name: item for item in predicted}
                found |= {name: Predicted(name, error=why) for name, why in encoded.reasons.items()}
        return list(found.values())

    def predict_store(
        self,
        store: FeatureStore | Location | Iterable[Location],
        ids: Sequence[str] | None = None,
        spans: Spans | GivenSpans | str | Path | None = None,
    ) -> list[Predicted]:
        """Predict from stored features, without the encoder.

        Args:
            store: A store, or where one or several are, of the encoder of the sweep.
            ids: Utterances; None for all, in the order of the store.
            spans: For a head on spans, the intervals to label, or a file of them, with the ids of
                the store.

        Raises:
            IdentityError: Another encoder made the features.
            ConfigError: The store lacks the layer; or spans are missing or of no use.
            StoreError: It lacks frames or statistics that the head needs.
            SourceError: No span is of these utterances, or has a frame.
            UtteranceNotFoundError: It lacks an utterance.
        """
        check_spans(self.head.facts, spans is not None)
        opened = store if isinstance(store, FeatureStore) else open_store(store)
        check_features(self.head.facts, opened, self._observer)
        names = list(opened.ids if ids is None else ids)
        given = None if spans is None else GivenSpans.of(spans)
        if given is not None and ids is not None:
            opened = opened.take([opened.position(name) for name in names])
        return self._of_store(opened, names, given, self._observer)

    @property
    def _encoder(self) -> HeadEncoder:
        """The encoder, loaded on first use."""
        if self._loaded is None:
            self._loaded = HeadEncoder(
                self.head.facts, self._overrides, self._observer, self._allow_code
            )
        return self._loaded

    def _of_waveform(self, waveform: Tensor, spans: Sequence[Any], number: int) -> Prediction:
        features = self._encoder.features(waveform)
        if self.head.facts.kind == SPANS:
            return predict_spans(self.head, features, spans, self._encoder.geometry, number)
        if not self.head.facts.is_pooled:
            return self.head(features)
        return self.head.of_pooled(self._encoder.statistics(features).unsqueeze(0))[0]

    def _of_store(
        self,
        store: FeatureStore,
        names: Sequence[str],
        given: GivenSpans | None,
        observer: Observer | None = None,
    ) -> list[Predicted]:
        """Predict utterances of a store that has the layers of the head.

        Args:
            store: The store.
            names: Utterances of it.
            given: Spans, for a head on these.
            observer: Receives notes about spans; None if these have been matched before.
        """
        facts = self.head.facts
        if not names:
            return []
        if given is not None:
            found = predict_stored_spans(self.head, store, given, observer)
            if observer is not None:
                self._note_without(names, given)
            return [
                Predicted(
                    name,
                    Prediction(spans=found.spans.get(name, ())),
                    without_frames=found.without_frames.get(name, ()),
                )
                for name in names
            ]
        if facts.is_pooled:
            at = torch.tensor([store.position(name) for name in names])
            parts = [store.pooled(facts.layers, statistic=name) for name in facts.pooling]
            predictions = self.head.of_pooled(torch.cat(parts, dim=-1)[at])
        else:
            store.check_frames()
            n_read = max(1, _PART_CELLS // (len(facts.layers) * facts.dim))
            predictions = [
                self.head.of_frames(
                    store.read(name, facts.layers, start, start + n_read)
                    for start in range(0, store.n_frames(name), n_read)
                )
                for name in names
            ]
        return [Predicted(*pair) for pair in zip(names, predictions, strict=True)]

    def _note_without(self, names: Sequence[str], given: GivenSpans) -> None:
        """Note the recordings that no span is of."""
        without = sorted(set(names) - set(given.spans.utterances))
        if without and given.placing.get("times", UTTERANCE) == UTTERANCE:
            self._observer.note(
                f"{counted(len(without), 'recording')} of {len(names):,} without a span: "
                f"{first_few(without)}"
            )


def score_pairs(
    predicted: Sequence[Predicted], pairs: Sequence[tuple[str, str]]
) -> list[float | None]:
    """Return the verification score of each pair of recordings; None if one has an error.

    Raises:
        ConfigError: A recording of a pair was not predicted.
    """
    by_name = {item.name: item.prediction for item in predicted}
    missing = [name for pair in pairs for name in pair if name not in by_name]
    if missing:
        raise ConfigError(f"no prediction of {missing[0]}; expected one of {len(by_name)} names")
    found = [(by_name[first], by_name[second]) for first, second in pairs]
    return [first.cosine(second) if first and second else None for first, second in found]
