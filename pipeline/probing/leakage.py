"""What test must not share with train: speakers, recordings, the very same audio."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.probing.labels import Fold, read_texts
from pipeline.store.read.features import FeatureStore
from pipeline.store.write.documents import read_plan

SPEAKER_NAMES = ("speaker", "spk")
SOURCE_NAMES = ("recording", "source")
_SHOWN = 5
_ALIKE = 0.02  # of the length: farther apart, means of frames are not of the same audio in bf16


def column_called(store: FeatureStore, beginnings: Iterable[str]) -> str | None:
    """The first metadata column whose name begins like one of these."""
    starts = tuple(beginnings)
    names = store.metadata.column_names
    return next((name for name in names if name.lower().startswith(starts)), None)


def straddling(values: Sequence[Hashable | None], folds: Sequence[Fold]) -> list[Hashable]:
    """Values that lie on more than one side of a fold; None is no value."""
    found: dict[Hashable, None] = {}
    for fold in folds:
        sides = [{values[i] for i in part.tolist()} for part in (fold.train, fold.dev, fold.test)]
        for value in sorted({v for side in sides for v in side if v is not None}, key=str):
            if sum(value in side for side in sides) > 1:
                found[value] = None
    return list(found)


def speaker_warning(values: Sequence[str | None], folds: Sequence[Fold], column: str) -> list[str]:
    """Says which speakers lie on both sides, if any."""
    both = straddling(values, folds)
    if not both:
        return []
    everyone = len({value for value in values if value is not None})
    return [
        f"LEAKAGE: {len(both)} of {everyone} values of {column!r} ({some(both)}) are on more than "
        "one side of the split, in a task that should not know its speakers: the scores say how "
        "well these very speakers are recognised, not new ones"
    ]


def source_warnings(store: FeatureStore, folds: Sequence[Fold]) -> list[str]:
    """Says which recordings, and which very same audio files, lie on both sides."""
    warnings = []
    column = column_called(store, SOURCE_NAMES)
    if column is not None and (both := straddling(read_texts(store, column), folds)):
        warnings.append(
            f"LEAKAGE: {len(both)} values of {column!r} ({some(both)}) are on more than one side "
            "of the split"
        )
    audio = _audio_of(store, folds)
    both = straddling(audio, folds)
    if both:
        names = [store.ids[audio.index(item)] for item in both[:_SHOWN]]
        warnings.append(
            f"LEAKAGE: {len(both)} recordings are there more than once, on different sides of the "
            f"split (e.g. {some(names)})"
        )
    return warnings


def some(values: Sequence[Hashable]) -> str:
    """The first few of many."""
    shown = ", ".join(str(value) for value in values[:_SHOWN])
    return shown + (", ..." if len(values) > _SHOWN else "")


def _audio_of(store: FeatureStore, folds: Sequence[Fold]) -> list[Hashable | None]:
    """A value per utterance, the same for the same audio; None where it is on no two sides.

    Files of one fingerprint and size are only suspects, for the fingerprint is of the two ends:
    short clips may share their silence. The same audio has the same features but for rounding.
    """
    marks = _marks(store)
    suspects = set(straddling(marks, folds))
    rows = [row for row, mark in enumerate(marks) if mark in suspects]
    audio: list[Hashable | None] = [None] * len(marks)
    if not rows:
        return audio
    view = store.select(pc.is_in(pc.field("id"), pa.array([store.ids[row] for row in rows])))
    means = dict(zip(view.ids, view.pooled(layers=store.layers[:1])[:, 0], strict=True))
    firsts: dict[Hashable, list[str]] = {}
    for row in rows:
        known, mean = firsts.setdefault(marks[row], []), means[store.ids[row]]
        same = (name for name in known if (means[name] - mean).norm() < _ALIKE * mean.norm())
        audio[row] = first = next(same, store.ids[row])
        if first == store.ids[row]:
            known.append(first)
    return audio


def _marks(store: FeatureStore) -> list[Hashable | None]:
    """Fingerprint and size in bytes of the audio of each utterance; None where not known."""
    plan = read_plan(store.root)
    if plan is None:
        return [None] * len(store)
    known = plan.table.filter(pc.not_equal(plan.table["fingerprint"], 0))
    columns = (known[name].to_pylist() for name in ("id", "fingerprint", "n_bytes"))
    marks = {name: (mark, size) for name, mark, size in zip(*columns, strict=True)}
    return [marks.get(name) for name in store.ids]
