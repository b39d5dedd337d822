"""Labels of new recordings, by a head of a sweep and the encoder that it was trained on."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from pipeline.errors import ConfigError
from pipeline.events import Observer
from pipeline.heads.facts import FRAMEWISE, SPANS
from pipeline.heads.prediction import Prediction
from pipeline.heads.trained import TrainedHead
from pipeline.predict.encoding import HeadEncoder, check_features
from pipeline.predict.heads import BEST, open_head
from pipeline.predict.recordings import find_recordings
from pipeline.store.backend.base import Location
from pipeline.store.read.features import FeatureStore
from pipeline.store.read.opening import open_store


@dataclass(frozen=True)
class Predicted:
    """A recording, or an utterance of a store, with its prediction.

    Attributes:
        name: Path of the file as given, or id of the utterance.
        prediction: The prediction; None if there is an error.
        error: Why the recording could not be encoded.
    """

    name: str
    prediction: Prediction | None = None
    error: str | None = None


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

    Raises:
        ConfigError: The folder has no such head.

    Attributes:
        head: The head; `head.facts` says what it is.

    Example:
        >>> predictor = pipeline.Predictor("sweeps/features/ks-digit")
        >>> [prediction] = predictor([waveform])  # float32 [n_samples] at 16 kHz
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
    ) -> None:
        self.head: TrainedHead = open_head(folder, layer)
        if self.head.facts.kind in (SPANS, FRAMEWISE):
            raise ConfigError(f"{folder}: heads of {self.head.facts.kind} cannot be used yet")
        self._overrides, self._observer = tuple(overrides), observer or Observer()
        self._loaded: HeadEncoder | None = None

    def __call__(self, waveforms: Iterable[Tensor]) -> list[Prediction]:
        """Predict from waveforms, each encoded by itself.

        Args:
            waveforms: float32 [n_samples] each, at the encoder's rate, 16 kHz; of any length.

        Raises:
            StrataError: The encoder cannot be loaded, is not that of the sweep, or a waveform
                cannot be encoded.
        """
        return [self._of_waveform(waveform) for waveform in waveforms]

    def predict_files(self, paths: Sequence[str | Path]) -> list[Predicted]:
        """Predict from audio files, or the audio files in folders.

        They are decoded, resampled and encoded as `strata extract` does it, in batches.

        Args:
            paths: Files and folders.

        Returns:
            One item per file; those of a folder are sorted. A file that cannot be decoded has an
            error.

        Raises:
            StrataError: There are no such files, or the encoder cannot be loaded or is not that of
                the sweep.
        """
        files = [(str(path), path.absolute()) for path in find_recordings(paths)]
        found: list[Predicted] = []
        for encoded in self._encoder.encode(files, self._observer):
            names = [name for name in encoded.names if name not in encoded.reasons]
            predictions = dict(zip(names, self._of_store(encoded.store, names), strict=True))
            found += [
                Predicted(name, predictions.get(name), encoded.reasons.get(name))
                for name in encoded.names
            ]
        return found

    def predict_store(
        self, store: FeatureStore | Location | Iterable[Location], ids: Sequence[str] | None = None
    ) -> list[Predicted]:
        """Predict from stored features, without the encoder.

        Args:
            store: A store, or where one or several are, of the encoder of the sweep.
            ids: Utterances; None for all, in the order of the store.

        Raises:
            IdentityError: Another encoder made the features.
            ConfigError: The store lacks the layer.
            StoreError: It lacks frames or statistics that the head needs.
            UtteranceNotFoundError: It lacks an utterance.
        """
        opened = store if isinstance(store, FeatureStore) else open_store(store)
        check_features(self.head.facts, opened, self._observer)
        names = list(opened.ids if ids is None else ids)
        found = zip(names, self._of_store(opened, names), strict=True)
        return [Predicted(name, prediction) for name, prediction in found]

    @property
    def _encoder(self) -> HeadEncoder:
        """The encoder, loaded on first use."""
        if self._loaded is None:
            self._loaded = HeadEncoder(self.head.facts, self._overrides, self._observer)
        return self._loaded

    def _of_waveform(self, waveform: Tensor) -> Prediction:
        features = self._encoder.features(torch.as_tensor(waveform))
        if not self.head.facts.is_pooled:
            return self.head(features)
        return self.head.of_pooled(self._encoder.statistics(features).unsqueeze(0))[0]

    def _of_store(self, store: FeatureStore, names: Sequence[str]) -> list[Prediction]:
        """Predict utterances of a store that has the layers of the head."""
        facts = self.head.facts
        if not names:
            return []
        if not facts.is_pooled:
            store.check_frames()
            return [self.head(store.read(name, facts.layers)) for name in names]
        at = torch.tensor([store.position(name) for name in names])
        parts = [store.pooled(facts.layers, statistic=name) for name in facts.pooling]
        return self.head.of_pooled(torch.cat(parts, dim=-1)[at])


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
