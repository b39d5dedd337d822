"""Warnings about speaker-independent tests on few speakers."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.config import TaskConfig
from pipeline.errors import counted
from pipeline.probing.labels import Fold
from pipeline.probing.splits.speakers import read_speakers, speaker_setting
from pipeline.store.read.features import FeatureStore

_FEW = 10
"""Test speakers below which a warning is given."""
_MOST_GROUPS = 20
"""Largest number of speakers for which the warning recommends one fold per speaker."""
_FOLDS = 5
"""Number of folds that the warning recommends for more speakers than that."""
_OVER_SPEAKERS = ("verification", "abx")
"""Kinds of tasks with intervals over speakers; they have a warning of their own."""


def few_speaker_warnings(
    store: FeatureStore, task: TaskConfig, column: str | None, folds: Sequence[Fold]
) -> list[str]:
    """Return a warning if the test utterances of all folds are of few speakers.

    Args:
        store: The store.
        task: Settings of the task.
        column: Column of the speakers; None if they are not known, or if it does not matter.
        folds: The folds.
    """
    if column is None or task.kind in _OVER_SPEAKERS:
        return []
    speakers = read_speakers(store, column)
    tested = {speakers[i] for fold in folds for i in fold.test.tolist()} - {None}
    if not 0 < len(tested) < _FEW:
        return []
    parts = [part for fold in folds for part in (fold.train, fold.dev, fold.test)]
    known = {speakers[i] for part in parts for i in part.tolist()} - {None}
    warning = (
        f"only {counted(len(tested), 'test speaker')} (column {column}): intervals over utterances "
        "say nothing about other speakers"
    )
    if len(tested) < len(known):
        how = "groups" if len(known) <= _MOST_GROUPS else _FOLDS
        warning += (
            f"; split.column=null {speaker_setting(column)} split.folds={how} tests each of the "
            f"{len(known):,} speakers once"
        )
    return [warning]
