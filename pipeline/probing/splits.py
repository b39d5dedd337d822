"""Which utterances train, which select, and which are reported.

The corpus's own split is taken where a column has it; else one is made, stratified by label, and by
speaker when a speaker column is named. Speakers on both sides of a split are the classic error: a
split that is made here refuses them, the corpus's own is used and warned of.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from pipeline.config import SplitConfig, TaskConfig
from pipeline.errors import ConfigError
from pipeline.probing.labels import Fold, IntArray, Labels, read_texts
from pipeline.probing.leakage import (
    SPEAKER_NAMES,
    column_called,
    some,
    source_warnings,
    speaker_warning,
    straddling,
)
from pipeline.probing.stratified_split import deal, deal_groups
from pipeline.store.read.features import FeatureStore

_COLUMN = "split"  # what a corpus usually calls it


@dataclass(frozen=True)
class Split:
    """All folds of a sweep.

    Attributes:
        folds: One, or those of a cross-validation.
        words: How they came about.
        warnings: What is wrong with them.
    """

    folds: tuple[Fold, ...]
    words: str
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Corpus:
    """What a split is made from.

    Attributes:
        config: How it is asked for.
        usable: Positions of the utterances that have their labels, ascending.
        classes: Of every utterance of the store, to stratify by.
        grouped_by: Column whose values stay on one side; None if none does.
        groups: Its values, of every utterance.
    """

    config: SplitConfig
    usable: IntArray
    classes: IntArray
    grouped_by: str | None
    groups: tuple[str, ...]

    @property
    def how(self) -> str:
        """In words, how utterances are dealt out."""
        by = f" and by {self.grouped_by}" if self.grouped_by else ""
        return f"by label{by}, seed {self.config.seed}"

    def deal(self, positions: IntArray, shares: Sequence[float], keep_first: bool) -> IntArray:
        """Part of each of these utterances."""
        seed, classes = self.config.seed, self.classes[positions]
        if self.grouped_by is None:
            return deal(classes, shares, seed, keep_first)
        names, groups = np.unique([self.groups[i] for i in positions], return_inverse=True)
        if len(names) < len(shares):
            raise ConfigError(
                f"{self.grouped_by} has {len(names)} values ({some(names.tolist())}), too few for "
                f"{len(shares)} parts. Give another split.speaker or split.column, or "
                "task.speaker_independent=false and no split.speaker to split at random"
            )
        return deal_groups(classes, groups.astype(np.int64), shares, seed)


def make_split(store: FeatureStore, task: TaskConfig, config: SplitConfig, labels: Labels) -> Split:
    """Assigns the utterances of a store to train, dev and test.

    Args:
        store: The store.
        task: Says whether speakers must not straddle.
        config: How.
        labels: Utterances that lack one are left out.

    Raises:
        ConfigError: It cannot be done as asked, or would put speakers on both sides.
    """
    if config.speaker in labels.columns:
        raise ConfigError(
            f"split.speaker={config.speaker} is what task {task.name} learns: no class would be "
            "in train and in test. Leave split.speaker out"
        )
    speaker = config.speaker or column_called(store, SPEAKER_NAMES)
    private = speaker if task.speaker_independent and speaker not in labels.columns else None
    corpus = _corpus(store, task, config, labels)
    column = _split_column(store, config)
    split = _from_column(store, corpus, column, private) if column else _made(corpus)
    for number, fold in enumerate(split.folds):
        _check_filled(fold, number, split)
    warnings = _check_speakers(store, task, split, private, refuse=column is None)
    left_out = len(store) - len(corpus.usable)
    if left_out:
        warnings.insert(0, f"{left_out} utterances have no label and are left out")
    return replace(split, warnings=(*warnings, *source_warnings(store, split.folds)))


def _corpus(store: FeatureStore, task: TaskConfig, config: SplitConfig, labels: Labels) -> _Corpus:
    usable = np.flatnonzero(labels.labelled())
    if not len(usable):
        raise ConfigError(
            f"no utterance has a label in {', '.join(labels.columns)}; say labels=[COLUMN]"
        )
    texts = labels.joined() if task.kind == "utterance" else [""] * len(store)
    classes = np.unique(texts, return_inverse=True)[1].astype(np.int64)
    groups = () if config.speaker is None else tuple(map(str, read_texts(store, config.speaker)))
    return _Corpus(config, usable, classes, config.speaker, groups)


def _split_column(store: FeatureStore, config: SplitConfig) -> str | None:
    """The column with the corpus's own split, if it is to be used."""
    if config.column != "auto":
        return config.column
    if config.folds is not None or _COLUMN not in store.metadata.column_names:
        return None
    values = set(read_texts(store, _COLUMN))
    if values & _values(config.train) and values & _values(config.test):
        return _COLUMN
    return None


def _from_column(store: FeatureStore, corpus: _Corpus, column: str, private: str | None) -> Split:
    values, config = read_texts(store, column), corpus.config
    parts = {}
    for name, wanted in (("train", config.train), ("dev", config.dev), ("test", config.test)):
        names = _values(wanted)
        parts[name] = np.array([i for i in corpus.usable.tolist() if values[i] in names], np.int64)
    for name in ("train", "test"):
        if not len(parts[name]):
            found = sorted({str(values[i]) for i in corpus.usable.tolist()})
            wanted = ", ".join(sorted(map(str, _values(getattr(config, name)))))
            raise ConfigError(
                f"no labelled utterance has {column} = {wanted}; its values are {some(found)}. "
                f"Say split.{name}=VALUE, or split.column=null to split here"
            )
    words = f"column {column}"
    unused = len(corpus.usable) - sum(len(part) for part in parts.values())
    if unused:
        words += f" ({unused} utterances with other values are not used)"
    if len(parts["dev"]):
        return Split((Fold(parts["train"], parts["dev"], parts["test"]),), words)
    if corpus.grouped_by is None and private is not None:
        corpus = _as_the_corpus_does(store, corpus, private, parts["train"], parts["test"])
    train, dev = _cut_dev(corpus, parts["train"])
    return Split((Fold(train, dev, parts["test"]),), f"{words}, dev cut from train {corpus.how}")


def _as_the_corpus_does(
    store: FeatureStore, corpus: _Corpus, speaker: str, train: IntArray, test: IntArray
) -> _Corpus:
    """Keeps speakers of train and dev apart if the corpus keeps those of train and test apart."""
    speakers = read_texts(store, speaker)
    if straddling(speakers, [Fold(train, train[:0], test)]):
        return corpus
    if len({speakers[i] for i in train.tolist()}) < 2:
        return corpus
    return replace(corpus, grouped_by=speaker, groups=tuple(map(str, speakers)))


def _made(corpus: _Corpus) -> Split:
    config, usable = corpus.config, corpus.usable
    if config.folds is None:
        parts = corpus.deal(usable, config.ratios, keep_first=True)
        fold = Fold(usable[parts == 0], usable[parts == 1], usable[parts == 2])
        return Split((fold,), f"made here {corpus.how}")
    if isinstance(config.folds, int):
        shares = [1 / config.folds] * config.folds
        parts = corpus.deal(usable, shares, keep_first=False)
        words = f"{config.folds} folds {corpus.how}"
    else:
        names, parts = np.unique([corpus.groups[i] for i in usable], return_inverse=True)
        words = f"each of the {len(names)} values of {config.speaker} is the test set once"
        if len(names) == 1:
            raise ConfigError(f"split.folds=groups: {config.speaker} is {names[0]} everywhere")
    folds = []
    for part in range(int(parts.max()) + 1):
        train, dev = _cut_dev(corpus, usable[parts != part])
        folds.append(Fold(train, dev, usable[parts == part]))
    return Split(tuple(folds), f"{words}, dev cut from train {corpus.how}")


def _cut_dev(corpus: _Corpus, train: IntArray) -> tuple[IntArray, IntArray]:
    share = corpus.config.ratios[1] / (corpus.config.ratios[0] + corpus.config.ratios[1])
    parts = corpus.deal(train, (1 - share, share), keep_first=True)
    return train[parts == 0], train[parts == 1]


def _values(value: str | tuple[str, ...]) -> set[str | None]:
    return {value} if isinstance(value, str) else set(value)


def _check_filled(fold: Fold, number: int, split: Split) -> None:
    for name in ("train", "dev", "test"):
        if not len(getattr(fold, name)):
            where = f" of fold {number}" if len(split.folds) > 1 else ""
            raise ConfigError(
                f"no utterance is left for {name}{where} ({split.words}); give more utterances, "
                "other split.ratios or fewer split.folds"
            )


def _check_speakers(
    store: FeatureStore, task: TaskConfig, split: Split, column: str | None, refuse: bool
) -> list[str]:
    """Refuses speakers on both sides of a split that is made here, warns of the corpus's own."""
    if column is None:
        return []
    speakers = read_texts(store, column)
    both = straddling(speakers, split.folds)
    if refuse and both:
        raise ConfigError(
            f"task {task.name} should not know its speakers, and a split at random puts "
            f"{len(both)} of them ({some(both)}) on both sides. Say split.speaker={column} "
            "to keep each on one side, or task.speaker_independent=false if that is meant"
        )
    return speaker_warning(speakers, split.folds, column)
