"""Assignment of utterances to train, dev and test.

The corpus's own split is used if a metadata column has one. Otherwise a random split is drawn,
stratified by label; with `split.speaker`, all utterances of a speaker are in one part. If the task
is speaker-independent, a speaker in more than one part raises ConfigError in a random split, and
gives a warning in the corpus's own split. A random split for such a task needs to know the column
of the speakers, or `split.speaker=none`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from pipeline.config import SplitConfig, TaskConfig
from pipeline.errors import ConfigError, counted, first_few
from pipeline.probing.labels import Fold, IntArray, Labels
from pipeline.probing.results import DEV_IS_TEST
from pipeline.probing.splits.alike import alike_warnings
from pipeline.probing.splits.corpus import (
    CorpusSplit,
    find_corpus_split,
    no_utterance,
    unused_values,
)
from pipeline.probing.splits.few_speakers import few_speaker_warnings
from pipeline.probing.splits.leakage import (
    recording_and_audio_warnings,
    shared_values,
    speaker_warnings,
)
from pipeline.probing.splits.speakers import (
    NO_SPEAKER,
    ask_for_speaker,
    find_speaker_column,
    grouping_columns,
    is_certain,
    read_speakers,
    speaker_setting,
    unknown_in_parts,
    unknown_speakers,
)
from pipeline.probing.splits.stratified import (
    have_equal_shares,
    stratified_group_split,
    stratified_split,
)
from pipeline.probing.splits.trials import read_trials
from pipeline.store.read.features import FeatureStore

_MIN_SPEAKERS = 20
"""Speakers outside a list of trials from which dev is taken."""


@dataclass(frozen=True)
class Split:
    """The folds of a sweep.

    Attributes:
        folds: One fold, or those of a cross-validation.
        description: Text that describes how the folds were made.
        warnings: Warnings about the folds.
    """

    folds: tuple[Fold, ...]
    description: str
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Utterances:
    """Utterances to be split.

    Attributes:
        config: Settings of the split.
        usable: Positions of the utterances that have all labels, ascending.
        classes: Class of every utterance of the store, to stratify by: int64 [n_utterances].
        grouped_by: Column whose values must not be shared between parts; None for no constraint.
        groups: Value of that column for every utterance, [n_utterances]; None where it is empty.
    """

    config: SplitConfig
    usable: IntArray
    classes: IntArray
    grouped_by: str | None
    groups: tuple[str | None, ...]

    def describe(self, folds: Sequence[Sequence[IntArray]], where: str = "in two parts") -> str:
        """Return the text that describes how utterances are assigned.

        Args:
            folds: The parts that were assigned, of each fold.
            where: Where no group is.
        """
        separate = f", no {self.grouped_by} {where}" if self.grouped_by else ""
        if len(np.unique(self.classes[self.usable])) == 1:  # transcripts have none
            how = "at random"
        elif self.grouped_by is None or all(
            have_equal_shares([self.classes[part] for part in parts]) for parts in folds
        ):
            how = "stratified by label"
        else:
            how = "with unequal shares of the labels"
        return f"{how}{separate}, seed {self.config.seed}"

    def assign(
        self, positions: IntArray, shares: Sequence[float], keep_first: bool, where: str = ""
    ) -> IntArray:
        """Assign utterances to parts.

        Args:
            positions: Positions of the utterances, int64 [n].
            shares: Share of each part; they sum to one.
            keep_first: Whether part 0 must have every class; without effect on groups.
            where: What the positions are if not all usable ones, for the message of an error.

        Returns:
            Part of each utterance, int64 [n].

        Raises:
            ConfigError: There are fewer groups than parts.
        """
        seed, classes = self.config.seed, self.classes[positions]
        if self.grouped_by is None:
            return stratified_split(classes, shares, seed, keep_first)
        names, groups = np.unique([self.groups[i] or "" for i in positions], return_inverse=True)
        if len(names) < len(shares):
            values = sorted({self.groups[i] or "" for i in self.usable.tolist()})
            left = f"of which {len(names)} is {where}, " if where else ""
            raise ConfigError(
                f"{self.grouped_by} has {counted(len(values), 'value')} ({first_few(values)}), "
                f"{left}too few for {len(shares)} parts. Give another split.speaker or "
                f"split.column, or split.speaker={NO_SPEAKER} to split at random"
            )
        return stratified_group_split(classes, groups.astype(np.int64), shares, seed)


def make_split(store: FeatureStore, task: TaskConfig, config: SplitConfig, labels: Labels) -> Split:
    """Assign the utterances of a store to train, dev and test.

    Args:
        store: The store.
        task: Settings of the task. With `speaker_independent`, parts must not share speakers.
        config: Settings of the split.
        labels: Labels of every utterance; utterances without a label in every column are left out.

    Raises:
        ConfigError: The split is impossible; or the task is speaker-independent, and a random split
            has speakers in more than one part, or it is not known which column has the speakers.
    """
    config = _with_speaker(store, task, config, labels)
    is_free = config.speaker == NO_SPEAKER
    if is_free:
        config = replace(config, speaker=None)
    is_independent = task.speaker_independent and not is_free
    speaker = config.speaker or find_speaker_column(store)
    is_learned = config.speaker is None and speaker in labels.columns
    separated = speaker if is_independent and not is_learned else None  # not to be in two parts
    utterances = _utterances(store, task, config, labels)
    unlabelled = [*_unlabelled(store, utterances), *alike_warnings(task, labels)]
    if task.trials is not None:
        split = _split_by_trials(store, task, utterances, task.trials)
        return replace(split, warnings=(*unlabelled, *split.warnings))
    corpus, unused = find_corpus_split(store, config)
    if corpus is not None:
        split = _split_by_column(store, utterances, corpus, separated)
        unused = unused_values(corpus, utterances.usable.tolist())
        if is_independent and speaker is None:
            split = replace(split, description=f"{split.description}; speakers unknown")
    elif is_independent and speaker is None:
        asked = ask_for_speaker(task.name, grouping_columns(store, labels))
        raise ConfigError(". ".join((*unused, asked)))
    else:
        utterances, left_out = _with_known_groups(utterances)
        split = replace(_new_split(utterances), warnings=left_out)
    _check_parts(split, utterances)
    if task.kind == "abx":  # nothing is trained: dev is all that is not test
        folds = [
            Fold(fold.train[:0], np.union1d(fold.train, fold.dev), fold.test)
            for fold in split.folds
        ]
        split = replace(split, folds=tuple(folds))
    shared = _check_speakers(store, task, config, split, separated, is_random=corpus is None)
    few = [] if shared else few_speaker_warnings(store, task, separated, split.folds)
    unknown = unknown_in_parts(store, separated, split.folds)
    leaked = recording_and_audio_warnings(store, split.folds)
    noted = (*unlabelled, *unused, *split.warnings, *unknown, *shared, *few, *leaked)
    return replace(split, warnings=noted)


def _with_speaker(
    store: FeatureStore, task: TaskConfig, config: SplitConfig, labels: Labels
) -> SplitConfig:
    """Return the settings, with the column of the speaker for tasks that compare speakers.

    Raises:
        ConfigError: Utterances are to be grouped by what the task learns.
    """
    if task.kind == "verification":  # its labels are the speakers
        return replace(config, speaker=labels.columns[0])
    if config.speaker in labels.columns:
        raise ConfigError(
            f"split.speaker={config.speaker} is what task {task.name} learns: no class would be "
            "in train and in test. Leave split.speaker out"
        )
    if task.kind == "abx" and config.speaker is None:
        return replace(config, speaker=task.speaker_column or find_speaker_column(store))
    return config


def _unlabelled(store: FeatureStore, utterances: _Utterances) -> list[str]:
    """Return a warning about utterances without a label, if there are any."""
    n = len(store) - len(utterances.usable)
    return [f"{counted(n, 'utterance')} without a label left out"] if n else []


def _utterances(
    store: FeatureStore, task: TaskConfig, config: SplitConfig, labels: Labels
) -> _Utterances:
    """Collect the usable utterances with their classes and groups."""
    usable = np.flatnonzero(labels.labelled())
    if not len(usable):
        raise ConfigError(
            f"no utterance has a label in {', '.join(labels.columns)}; set labels=[COLUMN]"
        )
    classes = labels.strata(task.kind)
    groups = () if config.speaker is None else tuple(read_speakers(store, config.speaker))
    return _Utterances(config, usable, classes, config.speaker, groups)


def _with_known_groups(utterances: _Utterances) -> tuple[_Utterances, tuple[str, ...]]:
    """Leave out utterances that cannot be kept apart from others, and warn of them.

    Raises:
        ConfigError: None is left.
    """
    column, usable = utterances.grouped_by, utterances.usable
    if column is None:
        return utterances, ()
    known = usable[[utterances.groups[i] is not None for i in usable.tolist()]]
    if not len(known):
        raise ConfigError(
            f"no utterance with a label has a value in split.speaker={column}; give another "
            f"column, or split.speaker={NO_SPEAKER} to split at random"
        )
    warnings = unknown_speakers(utterances.groups, usable, column, "left out")
    return replace(utterances, usable=known), tuple(warnings)


def _split_by_column(
    store: FeatureStore, utterances: _Utterances, corpus: CorpusSplit, separated: str | None
) -> Split:
    """Use the corpus's own split, and take dev from train if the corpus has none."""
    usable = utterances.usable.tolist()
    parts = {}
    for name, values in zip(("train", "dev", "test"), corpus.names, strict=True):
        parts[name] = np.array([i for i in usable if corpus.values[i] in values], np.int64)
    for name in ("train", "test"):
        if not len(parts[name]):
            raise ConfigError(no_utterance(corpus, name, utterances.config, usable))
    description = corpus.description
    n_unused = len(usable) - sum(len(part) for part in parts.values())
    if n_unused:
        description += f" ({counted(n_unused, 'utterance')} with other values not used)"
    if len(parts["dev"]):
        return Split((Fold(parts["train"], parts["dev"], parts["test"]),), description)
    if utterances.grouped_by is None and separated is not None:
        utterances = _group_if_corpus_does(
            store, utterances, separated, parts["train"], parts["test"]
        )
    train, dev = _take_dev(utterances, parts["train"], "in train, from which dev is taken")
    description += f", dev taken from train {utterances.describe([(train, dev)], 'in both')}"
    return Split((Fold(train, dev, parts["test"]),), description)


def _split_by_trials(
    store: FeatureStore, task: TaskConfig, utterances: _Utterances, path: str
) -> Split:
    """Take test from a list of trials, and train and dev from the other speakers."""
    test = read_trials(path, store.ids, task.skip_missing_trials, task.trial_id_form)[0].positions
    unknown = np.setdiff1d(test, utterances.usable)
    if len(unknown):
        raise ConfigError(
            f"{path} has {counted(len(unknown), 'utterance')} without a speaker in column "
            f"{utterances.grouped_by!r}, e.g. {store.ids[int(unknown[0])]}"
        )
    tested = {utterances.groups[i] for i in test.tolist()}
    others = [i for i in utterances.usable.tolist() if utterances.groups[i] not in tested]
    rest = np.array(others, np.int64)
    if len({utterances.groups[i] for i in others}) < _MIN_SPEAKERS:
        warning = (
            f"fewer than {_MIN_SPEAKERS} speakers are not in {path}: dev is test, so the best "
            "layer is chosen on the trials that are reported. Extract other speakers, too"
        )
        if not len(rest):
            warning += "; without any, no mean is subtracted from the features"
        return Split((Fold(rest, test, test),), f"trials {path}, {DEV_IS_TEST}", (warning,))
    train, dev = _take_dev(utterances, rest, "outside the trials")
    description = f"trials {path}, dev taken from the other speakers, seed {utterances.config.seed}"
    return Split((Fold(train, dev, test),), description)


def _group_if_corpus_does(
    store: FeatureStore, utterances: _Utterances, speaker: str, train: IntArray, test: IntArray
) -> _Utterances:
    """Group by speaker if the corpus's own train and test share no speaker."""
    speakers = read_speakers(store, speaker)
    if shared_values(speakers, [Fold(train, train[:0], test)]):
        return utterances
    if len({speakers[i] for i in train.tolist()}) < 2:
        return utterances
    return replace(utterances, grouped_by=speaker, groups=tuple(speakers))


def _new_split(utterances: _Utterances) -> Split:
    """Draw a random split by ratios, or the folds of a cross-validation."""
    config, usable = utterances.config, utterances.usable
    if config.folds is None:
        parts = utterances.assign(usable, config.ratios, keep_first=True)
        fold = Fold(usable[parts == 0], usable[parts == 1], usable[parts == 2])
        described = utterances.describe([(fold.train, fold.dev, fold.test)])
        return Split((fold,), f"new split {described}")
    if isinstance(config.folds, int):
        shares = [1 / config.folds] * config.folds
        parts = utterances.assign(usable, shares, keep_first=False)
        tested = [usable[parts == part] for part in range(config.folds)]
        description = f"{counted(config.folds, 'fold')} {utterances.describe([tested])}"
    else:
        names, parts = np.unique([utterances.groups[i] for i in usable], return_inverse=True)
        description = f"each of the {len(names)} values of {config.speaker} is the test set once"
        if len(names) == 1:
            raise ConfigError(f"split.folds=groups: {config.speaker} is {names[0]} everywhere")
    folds = []
    for part in range(int(parts.max()) + 1):
        train, dev = _take_dev(utterances, usable[parts != part], "outside the test set of a fold")
        folds.append(Fold(train, dev, usable[parts == part]))
    how = utterances.describe([(fold.train, fold.dev) for fold in folds], "in both")
    return Split(tuple(folds), f"{description}, dev taken from train {how}")


def _take_dev(utterances: _Utterances, train: IntArray, where: str) -> tuple[IntArray, IntArray]:
    """Split train into train and dev; dev gets ratios[1] / (ratios[0] + ratios[1])."""
    ratios = utterances.config.ratios
    share = ratios[1] / (ratios[0] + ratios[1])
    parts = utterances.assign(train, (1 - share, share), True, where)
    return train[parts == 0], train[parts == 1]


def _check_parts(split: Split, utterances: _Utterances) -> None:
    """Raise ConfigError if a part is empty, in any fold."""
    sizes = np.unique(utterances.classes[utterances.usable], return_counts=True)[1]
    n_single = int((sizes == 1).sum())
    are_labels = f" {n_single:,} of {len(sizes):,} classes have one utterance: are these labels?"
    hint = are_labels if 2 * n_single > len(sizes) > 1 else ""
    for name in ("train", "dev", "test"):
        n_empty = sum(not len(getattr(fold, name)) for fold in split.folds)
        if n_empty:
            where = f" in {n_empty} of {len(split.folds)} folds" if len(split.folds) > 1 else ""
            raise ConfigError(
                f"no utterance is left for {name}{where} ({split.description}); give more "
                f"utterances, other split.ratios or fewer split.folds.{hint}"
            )


def _check_speakers(
    store: FeatureStore,
    task: TaskConfig,
    config: SplitConfig,
    split: Split,
    column: str | None,
    is_random: bool,
) -> list[str]:
    """Return warnings about speakers in more than one part.

    Args:
        store: The store.
        task: The task.
        config: Settings of the split.
        split: The split.
        column: Speaker column; None if parts may share speakers.
        is_random: Whether the split is not the corpus's own.

    Raises:
        ConfigError: A speaker is in more than one part of a random split.
    """
    if column is None:
        return []
    speakers = read_speakers(store, column)
    shared = shared_values(speakers, split.folds)
    if shared and is_random:
        raise ConfigError(
            f"task {task.name} should be independent of the speaker, and a random split puts "
            f"{counted(len(shared), 'speaker')} ({first_few(shared)}) into several parts. Set "
            f"{speaker_setting(column)} to keep each in one part, or split.speaker={NO_SPEAKER} "
            "(or task.speaker_independent=false) to allow it"
        )
    is_guess = config.speaker is None and not is_certain(column)
    return speaker_warnings(speakers, split.folds, column, is_guess)
