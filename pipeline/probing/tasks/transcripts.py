"""What a frame task is trained and scored on: the transcripts of three sets of utterances."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

from pipeline.config import TaskConfig
from pipeline.errors import ConfigError
from pipeline.heads.ctc import Target, ctc_bytes, needed_frames
from pipeline.heads.vocabulary import Vocabulary
from pipeline.probing.labels import Fold, IntArray
from pipeline.probing.leakage import some
from pipeline.store.read.features import FeatureStore

MAX_CTC_BYTES = 1 << 30
"""Memory that CTC may take for one utterance of one head; it grows with frames × symbols."""


@dataclass(frozen=True)
class Transcripts:
    """Transcripts of the three sets, brought to one form.

    Attributes:
        vocabulary: Symbols of the training transcripts.
        train: Symbols of each utterance to train on, by id.
        dev: Text of each dev utterance, by id.
        dev_targets: Symbols of those dev utterances that have a loss, by id.
        test: Text of each test utterance, by id.
        warnings: What a reader of the scores must know.
    """

    vocabulary: Vocabulary
    train: dict[str, Target]
    dev: dict[str, str]
    dev_targets: dict[str, Target]
    test: dict[str, str]
    warnings: tuple[str, ...]


def prepare_transcripts(
    store: FeatureStore, task: TaskConfig, fold: Fold, texts: Sequence[str | None]
) -> Transcripts:
    """Builds the vocabulary from the training transcripts and leaves out what cannot be trained on.

    A transcript with more symbols than there are frames cannot be aligned, and one of very many
    symbols and frames does not fit in memory. Both are left out of training, not of dev and test.
    A symbol that is only in dev or test stays there, and counts as an error of every head.

    Args:
        store: Where the utterances are.
        task: Says what a symbol is.
        fold: Which utterances train, select and are reported.
        texts: Transcript of every utterance of the store, by position.

    Raises:
        ConfigError: A transcript is missing, a set is empty, or nothing can be trained on.
    """
    train, dev, test = (
        _transcripts_of(name, positions, store.ids, texts)
        for name, positions in (("train", fold.train), ("dev", fold.dev), ("test", fold.test))
    )
    vocabulary = Vocabulary.of(train.values(), task.tokens)
    targets = {key: vocabulary.encode(text) for key, text in train.items()}
    dev_targets = {key: vocabulary.encode(text, skip_unknown=True) for key, text in dev.items()}
    short, huge = _unfit(store, targets)
    kept = _without(targets, (short, huge))
    if not kept:
        raise ConfigError(
            f"nothing to train on: of {len(train)} transcripts {len(short)} have more symbols than "
            f"there are frames ({some(short)}), {len(huge)} take too much memory ({some(huge)})"
        )
    warnings = [
        *_left_out(short, "their transcript has more symbols than they have frames"),
        *_left_out(huge, "CTC over so many frames and symbols takes too much memory; cut them"),
        *_unseen(vocabulary, "dev", dev),
        *_unseen(vocabulary, "test", test),
    ]
    return Transcripts(
        vocabulary=vocabulary,
        train=kept,
        dev={key: vocabulary.normalise(text) for key, text in dev.items()},
        dev_targets=_without(dev_targets, _unfit(store, dev_targets)),
        test={key: vocabulary.normalise(text) for key, text in test.items()},
        warnings=tuple(warnings),
    )


def _unfit(store: FeatureStore, targets: Mapping[str, Target]) -> tuple[list[str], list[str]]:
    """Ids of the utterances that have too few frames for CTC, and of those that have too many."""
    short, huge = [], []
    for key, target in targets.items():
        n_frames = store.n_frames(key)
        if n_frames < needed_frames(target):
            short.append(key)
        elif ctc_bytes(n_frames, len(target)) > MAX_CTC_BYTES:
            huge.append(key)
    return short, huge


def _without(targets: Mapping[str, Target], left_out: Iterable[Sequence[str]]) -> dict[str, Target]:
    ids = set(chain(*left_out))
    return {key: target for key, target in targets.items() if key not in ids}


def _transcripts_of(
    name: str, positions: IntArray, ids: Sequence[str], texts: Sequence[str | None]
) -> dict[str, str]:
    if not len(positions):
        raise ConfigError(f"no utterance is in {name}; a frame task needs train, dev and test")
    found = {}
    for position in positions.tolist():
        text = texts[position]
        if text is None:
            raise ConfigError(f"utterance {ids[position]!r} of {name} has no transcript")
        found[ids[position]] = text
    return found


def _left_out(ids: list[str], reason: str) -> list[str]:
    if not ids:
        return []
    return [f"{len(ids)} utterances are left out of training ({some(ids)}): {reason}"]


def _unseen(vocabulary: Vocabulary, name: str, texts: Mapping[str, str]) -> list[str]:
    unknown = vocabulary.unknown(texts.values())
    if not unknown:
        return []
    shown = some(sorted(map(repr, unknown)))
    return [
        f"{unknown.total()} symbols of {name} ({shown}) are in no training transcript; no head can "
        "say them, and they count as errors"
    ]
