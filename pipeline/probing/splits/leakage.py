"""Leakage checks: speakers, recordings or audio clips in more than one part of a split."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence

import numpy as np
import pyarrow.compute as pc

from pipeline.errors import counted, first_few
from pipeline.probing.labels import Fold, read_texts
from pipeline.store.documents import read_plan
from pipeline.store.read.features import FeatureStore

RECORDING_PREFIXES = ("recording", "source")

_N_EXAMPLES = 5
_MAX_DISTANCE = 0.02
"""Largest relative L2 distance of the mean features of identical audio; above bf16's rounding."""


def find_column(store: FeatureStore, prefixes: Iterable[str]) -> str | None:
    """Return the first metadata column whose lower-cased name starts with one of the prefixes."""
    starts = tuple(prefixes)
    names = store.metadata.column_names
    return next((name for name in names if name.lower().startswith(starts)), None)


def shared_values(values: Sequence[Hashable | None], folds: Sequence[Fold]) -> list[Hashable]:
    """Return the values that occur in more than one part of a fold.

    Args:
        values: Value of each utterance of the store, [n_utterances]; None is never returned.
        folds: The folds.
    """
    shared: dict[Hashable, None] = {}
    for fold in folds:
        parts = [{values[i] for i in part.tolist()} for part in (fold.train, fold.dev, fold.test)]
        for value in sorted({v for part in parts for v in part if v is not None}, key=str):
            if sum(value in part for part in parts) > 1:
                shared[value] = None
    return list(shared)


def speaker_warnings(
    values: Sequence[str | None], folds: Sequence[Fold], column: str, is_guess: bool = False
) -> list[str]:
    """Return a warning about speakers in more than one part; an empty list if there are none.

    Args:
        values: Speaker of each utterance of the store, [n_utterances].
        folds: The folds.
        column: Column of the speakers.
        is_guess: Whether only the column's name says that it has the speakers.
    """
    shared = shared_values(values, folds)
    if not shared:
        return []
    guess = f". If {column!r} is not the speaker: split.speaker=COLUMN or none" if is_guess else ""
    n_speakers = len({value for value in values if value is not None})
    return [
        f"LEAKAGE: {len(shared)} of {counted(n_speakers, 'value')} of {column!r} "
        f"({first_few(shared)}) are in more than one part of the split, in a task that should be "
        f"independent of the speaker: the scores do not hold for new speakers{guess}"
    ]


def recording_and_audio_warnings(store: FeatureStore, folds: Sequence[Fold]) -> list[str]:
    """Return warnings about recordings, and about identical audio, in more than one part."""
    warnings = []
    column = find_column(store, RECORDING_PREFIXES)
    if column is not None and (shared := shared_values(read_texts(store, column), folds)):
        warnings.append(
            f"LEAKAGE: {counted(len(shared), 'value')} of {column!r} ({first_few(shared)}) in more "
            "than one part of the split"
        )
    clip_ids = _clip_ids(store, folds)
    if shared := shared_values(clip_ids, folds):
        warnings.append(
            f"LEAKAGE: {counted(len(shared), 'audio clip')} in more than one part of the split "
            f"(e.g. {first_few(shared[:_N_EXAMPLES])})"
        )
    return warnings


def _clip_ids(store: FeatureStore, folds: Sequence[Fold]) -> list[str | None]:
    """Return, for each utterance, the id of the first utterance with identical audio.

    Equal fingerprint and size only give candidates. The fingerprint covers the first and last
    4 KiB, so equal-sized files that begin and end with the same silence collide, and so do segments
    of one file. Candidates are identical if their mean features are equal except for rounding.

    Returns:
        [n_utterances]; None if the fingerprint is in one part only, or unknown.
    """
    fingerprints = _fingerprints(store)
    shared_fingerprints = set(shared_values(fingerprints, folds))
    positions = [i for i, item in enumerate(fingerprints) if item in shared_fingerprints]
    clip_ids: list[str | None] = [None] * len(fingerprints)
    if not positions:
        return clip_ids
    selection = store.take(positions)
    pooled = selection.pooled(layers=store.layers[:1])[:, 0]  # [n_positions, dim]
    means = dict(zip(selection.ids, pooled, strict=True))
    distinct: dict[Hashable, list[str]] = {}  # ids of different clips, by fingerprint
    for i, (name, mean) in zip(positions, means.items(), strict=True):
        ids_seen = distinct.setdefault(fingerprints[i], [])
        limit = _MAX_DISTANCE * mean.norm()
        identical = (seen for seen in ids_seen if (means[seen] - mean).norm() < limit)
        clip_ids[i] = next(identical, name)
        if clip_ids[i] == name:
            ids_seen.append(name)
    return clip_ids


def _fingerprints(store: FeatureStore) -> list[Hashable | None]:
    """Return (fingerprint, size in bytes) of each utterance's audio; None if unknown."""
    found: list[Hashable | None] = [None] * len(store)
    ids, numbers = store.ids, store.store_numbers
    for number, backend in enumerate(store.backends):
        plan = read_plan(backend)
        if plan is None:
            continue
        known = plan.table.filter(pc.not_equal(plan.table["fingerprint"], 0))
        columns = (known[name].to_pylist() for name in ("id", "fingerprint", "n_bytes"))
        prefix = store.id_prefixes[number]
        by_id = {
            f"{prefix}{utterance_id}": (fingerprint, size)
            for utterance_id, fingerprint, size in zip(*columns, strict=True)
        }
        for position in np.flatnonzero(numbers == number).tolist():
            found[position] = by_id.get(ids[position])
    return found
