"""Data of a frame task: transcripts of the three parts, and batches of frames."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor, nn

from pipeline.config import TaskConfig
from pipeline.errors import ConfigError, counted, first_few
from pipeline.feed.batch import Batch
from pipeline.feed.dataset import FeatureDataset
from pipeline.feed.loader import FeatureLoader, make_loader
from pipeline.heads.ctc import Target, ctc_bytes, min_frames
from pipeline.heads.vocabulary import Vocabulary
from pipeline.probing.labels import Fold, IntArray
from pipeline.store.read.features import FeatureStore

MAX_CTC_BYTES = 1 << 30
"""Largest size of the CTC tables of one utterance and head; it grows with frames × symbols."""


@dataclass(frozen=True)
class Transcripts:
    """Normalised transcripts of train, dev and test.

    Attributes:
        vocabulary: Symbols of the training transcripts.
        train: Target symbols of each training utterance, by id.
        dev: Text of each dev utterance, by id.
        dev_targets: Target symbols of the dev utterances for which CTC is defined, by id.
        test: Text of each test utterance, by id.
        short: Ids of training utterances that are left out: more symbols than frames.
        large: Ids of training utterances that are left out: CTC would take too much memory.
        unknown: Number of each symbol of dev and of test that no training transcript has.
    """

    vocabulary: Vocabulary
    train: dict[str, Target]
    dev: dict[str, str]
    dev_targets: dict[str, Target]
    test: dict[str, str]
    short: tuple[str, ...]
    large: tuple[str, ...]
    unknown: dict[str, Counter[str]]


class FrameData:
    """Features and transcripts of a frame task.

    Attributes:
        layers: Layers that are read, in this order.
        dim: Features per frame.
        transcripts: The transcripts.
        task: Settings of the task.
        device: Device of the frames.
    """

    def __init__(
        self,
        store: FeatureStore,
        task: TaskConfig,
        transcripts: Transcripts,
        layers: Sequence[int],
        device: torch.device,
    ) -> None:
        self.layers = tuple(layers)
        self.dim = store.feature_dim
        self.transcripts = transcripts
        self.task = task
        self.device = device
        self._store = store

    def epochs(self, seed: int) -> Iterator[Batch]:
        """Yield training batches without end, epoch by epoch, in the order of a seed."""
        loader = self.batches(self.transcripts.train, shuffle=True, seed=seed)
        while True:
            yield from loader

    def batches(self, ids: Collection[str], shuffle: bool = False, seed: int = 0) -> FeatureLoader:
        """Return a loader of the utterances `ids`; without `shuffle` in the order of the store."""
        return make_loader(
            FeatureDataset(self._store.select(id=list(ids)), layers=self.layers),
            max_frames_per_batch=self.task.batch,
            shuffle=shuffle,
            seed=seed,
            pin_memory=self.device.type == "cuda",
        )

    def frames(self, batch: Batch) -> Tensor:
        """Concatenate the valid frames of a batch: float32 [n_layers, n_frames, dim]."""
        features = batch.features.to(self.device, non_blocking=True)
        parts = [features[i, :, :n] for i, n in enumerate(batch.lengths.tolist())]
        frames = torch.cat(parts, dim=1).float()
        return nn.functional.layer_norm(frames, [self.dim]) if self.task.normalize else frames


def prepare_transcripts(
    store: FeatureStore, task: TaskConfig, fold: Fold, texts: Sequence[str | None]
) -> Transcripts:
    """Build the vocabulary and drop the training transcripts that CTC cannot use.

    CTC cannot align a transcript with more symbols than frames, and its tables for a very long
    utterance do not fit in memory. Such utterances are dropped from training, not from dev and
    test. A symbol of dev or test that no training transcript has counts as an error of every head.

    Args:
        store: The store.
        task: Settings of the task; `tokens` defines a symbol.
        fold: Positions of the utterances of each part.
        texts: Transcript of every utterance of the store, by position.

    Raises:
        ConfigError: A transcript is missing, a part is empty, or no transcript can be trained on.
    """
    train, dev, test = (
        _texts_of(name, positions, store.ids, texts)
        for name, positions in (("train", fold.train), ("dev", fold.dev), ("test", fold.test))
    )
    vocabulary = Vocabulary.of(train.values(), task.tokens)
    targets = {key: vocabulary.encode(text) for key, text in train.items()}
    dev_targets = {key: vocabulary.encode(text, skip_unknown=True) for key, text in dev.items()}
    short, large = _unusable(store, targets)
    usable = _without(targets, (short, large))
    if not usable:
        raise ConfigError(
            f"nothing to train on: of {counted(len(train), 'transcript')} {len(short)} with more "
            f"symbols than frames ({first_few(short)}) and {len(large)} with too much memory "
            f"({first_few(large)})"
        )
    return Transcripts(
        vocabulary=vocabulary,
        train=usable,
        dev={key: vocabulary.normalize(text) for key, text in dev.items()},
        dev_targets=_without(dev_targets, _unusable(store, dev_targets)),
        test={key: vocabulary.normalize(text) for key, text in test.items()},
        short=tuple(short),
        large=tuple(large),
        unknown={
            "dev": vocabulary.unknown(dev.values()),
            "test": vocabulary.unknown(test.values()),
        },
    )


def transcript_warnings(folds: Sequence[Transcripts]) -> list[str]:
    """Return the warnings about the transcripts of all folds together, to show before the scores.

    An utterance that several folds leave out is counted once.
    """
    short = list(dict.fromkeys(chain(*(fold.short for fold in folds))))
    large = list(dict.fromkeys(chain(*(fold.large for fold in folds))))
    return [
        *_dropped(short, "their transcripts have more symbols than frames"),
        *_dropped(large, "CTC over so many frames and symbols takes too much memory; cut them"),
        *_unseen("dev", folds),
        *_unseen("test", folds),
    ]


def _unusable(store: FeatureStore, targets: Mapping[str, Target]) -> tuple[list[str], list[str]]:
    """Return the ids of utterances with too few frames for CTC, and with too large tables."""
    short, large = [], []
    for key, target in targets.items():
        n_frames = store.n_frames(key)
        if n_frames < min_frames(target):
            short.append(key)
        elif ctc_bytes(n_frames, len(target)) > MAX_CTC_BYTES:
            large.append(key)
    return short, large


def _without(targets: Mapping[str, Target], dropped: Iterable[Sequence[str]]) -> dict[str, Target]:
    ids = set(chain(*dropped))
    return {key: target for key, target in targets.items() if key not in ids}


def _texts_of(
    part: str, positions: IntArray, ids: Sequence[str], texts: Sequence[str | None]
) -> dict[str, str]:
    """Return the transcripts of a part, by id."""
    if not len(positions):
        raise ConfigError(f"no utterance is in {part}; a frame task needs train, dev and test")
    by_id = {}
    for position in positions.tolist():
        text = texts[position]
        if text is None:
            raise ConfigError(f"utterance {ids[position]!r} of {part} has no transcript")
        by_id[ids[position]] = text
    return by_id


def _dropped(ids: list[str], reason: str) -> list[str]:
    """Return a warning about utterances that are not trained on, if there are any."""
    if not ids:
        return []
    return [f"{counted(len(ids), 'utterance')} left out of training ({first_few(ids)}): {reason}"]


def _unseen(part: str, folds: Sequence[Transcripts]) -> list[str]:
    """Return a warning about symbols that no training transcript has, if there are any."""
    unknown: Counter[str] = sum((fold.unknown[part] for fold in folds), Counter())
    if not unknown:
        return []
    listed = first_few(sorted(map(repr, unknown)))
    where = " of the same fold" if len(folds) > 1 else ""
    return [
        f"{counted(unknown.total(), 'symbol')} of {part} ({listed}) in no training "
        f"transcript{where}: no head can predict what it is not trained on, and each counts as an "
        "error"
    ]
