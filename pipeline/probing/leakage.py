"""Leakage checks: speakers, recordings or audio that several parts of a split share."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.probing.labels import Fold, first_few, read_texts
from pipeline.store.documents import read_plan
from pipeline.store.read.features import FeatureStore

SPEAKER_PREFIXES = ("speaker", "spk")
RECORDING_PREFIXES = ("recording", "source")

_N_EXAMPLES = 5
_SAME_AUDIO = 0.02  # relative distance of mean features; bf16 rounding stays below it


def find_column(store: FeatureStore, prefixes: Iterable[str]) -> str | None:
    """Return the first metadata column whose lower-cased name starts with one of the prefixes."""
    starts = tuple(prefixes)
    names = store.metadata.column_names
    return next((name for name in names if name.lower().startswith(starts)), None)


def shared_values(values: Sequence[Hashable | None], folds: Sequence[Fold]) -> list[Hashable]:
    """Return the values that occur in more than one part of a fold.

    Args:
        values: Value of each utterance of the store; None is never shared.
        folds: The folds.
    """
    shared: dict[Hashable, None] = {}
    for fold in folds:
        parts = [{values[i] for i in part.tolist()} for part in (fold.train, fold.dev, fold.test)]
        for value in sorted({v for part in parts for v in part if v is not None}, key=str):
            if sum(value in part for part in parts) > 1:
                shared[value] = None
    return list(shared)


def speaker_warning(values: Sequence[str | None], folds: Sequence[Fold], column: str) -> list[str]:
    """Return a warning about speakers that several parts share, if there are any."""
    shared = shared_values(values, folds)
    if not shared:
        return []
    n_speakers = len({value for value in values if value is not None})
    return [
        f"LEAKAGE: {len(shared)} of {n_speakers} values of {column!r} ({first_few(shared)}) are in "
        "more than one part of the split, in a task that should be independent of the speaker: the "
        "scores do not hold for new speakers"
    ]


def source_warnings(store: FeatureStore, folds: Sequence[Fold]) -> list[str]:
    """Return warnings about recordings, and about identical audio, that several parts share."""
    warnings = []
    column = find_column(store, RECORDING_PREFIXES)
    if column is not None and (shared := shared_values(read_texts(store, column), folds)):
        warnings.append(
            f"LEAKAGE: {len(shared)} values of {column!r} ({first_few(shared)}) are in more than "
            "one part of the split"
        )
    audio = _audio_keys(store, folds)
    shared = shared_values(audio, folds)
    if shared:
        examples = [store.ids[audio.index(key)] for key in shared[:_N_EXAMPLES]]
        warnings.append(
            f"LEAKAGE: {len(shared)} recordings occur more than once, in different parts of the "
            f"split (e.g. {first_few(examples)})"
        )
    return warnings


def _audio_keys(store: FeatureStore, folds: Sequence[Fold]) -> list[Hashable | None]:
    """Return a key per utterance that is equal for identical audio; None if no part shares it.

    Files with equal fingerprint and size are only candidates: a fingerprint covers the two ends of
    a file, and short clips may share their silence. Identical audio has identical mean features
    except for rounding.
    """
    fingerprints = _fingerprints(store)
    candidates = set(shared_values(fingerprints, folds))
    rows = [row for row, mark in enumerate(fingerprints) if mark in candidates]
    keys: list[Hashable | None] = [None] * len(fingerprints)
    if not rows:
        return keys
    ids = pa.array([store.ids[row] for row in rows])
    selection = store.select(pc.is_in(pc.field("id"), ids))
    pooled = selection.pooled(layers=store.layers[:1])[:, 0]  # [n_candidates, dim]
    means = dict(zip(selection.ids, pooled, strict=True))
    distinct: dict[Hashable, list[str]] = {}  # ids of different audio with one fingerprint
    for row in rows:
        own_id = store.ids[row]
        known, mean = distinct.setdefault(fingerprints[row], []), means[own_id]
        same = (key for key in known if (means[key] - mean).norm() < _SAME_AUDIO * mean.norm())
        keys[row] = key = next(same, own_id)
        if key == own_id:
            known.append(key)
    return keys


def _fingerprints(store: FeatureStore) -> list[Hashable | None]:
    """Return fingerprint and size in bytes of each utterance's audio; None if unknown."""
    plan = read_plan(store.root)
    if plan is None:
        return [None] * len(store)
    known = plan.table.filter(pc.not_equal(plan.table["fingerprint"], 0))
    columns = (known[name].to_pylist() for name in ("id", "fingerprint", "n_bytes"))
    by_id = {name: (mark, size) for name, mark, size in zip(*columns, strict=True)}
    return [by_id.get(name) for name in store.ids]
