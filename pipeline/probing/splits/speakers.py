"""The metadata column that holds the speaker."""

from __future__ import annotations

import re
import shlex
from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from pipeline.errors import counted
from pipeline.probing.labels import Fold, IntArray, Labels, read_texts
from pipeline.store.read.features import FeatureStore

NO_SPEAKER = "none"
"""Value of `split.speaker` that allows one speaker in several parts."""

# In the order of preference. Those of a session or a voice are at least the speakers.
_WORDS = (
    *("speaker", "spk", "spkr", "actor", "actress", "talker", "subject", "subj", "participant"),
    *("reader", "narrator", "performer", "client", "contributor", "informant", "interviewee"),
    *("patient", "person", "user", "session", "voice"),
)
_N_CERTAIN = 3
_AFFIXES = frozenset(
    (
        "id",
        "uid",
        "uuid",
        "name",
        "no",
        "nr",
        "num",
        "number",
        "code",
        "key",
        "index",
        "idx",
        "hash",
    )
)
_TOKEN = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")


def find_speaker_column(store: FeatureStore) -> str | None:
    """Return the column whose name says that it holds the speaker; None without one.

    `Speaker`, `spk_id`, `speakerID` and `client_id` do, `speaker_gender` does not. A column without
    any value is none.
    """
    found = [(rank, name) for name in _names(store) if (rank := _rank(name)) is not None]
    ordered = [name for _, name in sorted(found, key=lambda item: item[0])]
    return next((name for name in ordered if any(read_speakers(store, name))), None)


def read_speakers(store: FeatureStore, column: str) -> list[str | None]:
    """Read a metadata column as speakers: text, None where it is empty.

    Raises:
        ConfigError: The store has no such column, or the column holds lists, maps or bytes.
    """
    texts = read_texts(store, column)
    return [text if text is not None and text.strip() else None for text in texts]


def unknown_speakers(
    speakers: Sequence[str | None], positions: IntArray, column: str, what: str
) -> list[str]:
    """Return a warning about utterances whose speaker is not known; empty without any.

    Args:
        speakers: Speaker of each utterance of the store, [n_utterances].
        positions: Positions of the utterances that are wanted.
        column: Column of the speakers.
        what: What follows.
    """
    n = sum(speakers[i] is None for i in positions.tolist())
    return [f"{counted(n, 'utterance')} without a value in {column!r} {what}"] if n else []


def count_speakers(
    store: FeatureStore, column: str | None, folds: Sequence[Fold]
) -> dict[str, int]:
    """Return the number of speakers in "train", "dev" and "test", or in "all" of several folds.

    With one fold, "shared" is the number of test speakers that are in train or dev, too.

    Args:
        store: The store.
        column: Column of the speakers; None if it is not known, which gives no numbers.
        folds: The folds.
    """
    if column is None or column not in store.metadata.column_names:
        return {}
    speakers = read_speakers(store, column)

    def count(*parts: IntArray) -> int:
        return len({speakers[i] for part in parts for i in part.tolist()} - {None})

    if len(folds) > 1:
        return {"all": count(*(fold.test for fold in folds))}
    [fold] = folds
    seen = count(fold.train, fold.dev)
    return {
        "train": count(fold.train),
        "dev": count(fold.dev),
        "test": count(fold.test),
        "shared": seen + count(fold.test) - count(fold.train, fold.dev, fold.test),
    }


def unknown_in_parts(store: FeatureStore, column: str | None, folds: Sequence[Fold]) -> list[str]:
    """Return a warning about utterances of a split whose speaker is not known."""
    if column is None:
        return []
    parts = [part for fold in folds for part in (fold.train, fold.dev, fold.test)]
    what = "may be of a speaker of another part"
    return unknown_speakers(
        read_speakers(store, column), np.unique(np.concatenate(parts)), column, what
    )


def is_certain(name: str) -> bool:
    """Whether a column's name says speaker, and not something like it: a session, a voice."""
    rank = _rank(name)
    return rank is not None and rank < _N_CERTAIN


def grouping_columns(store: FeatureStore, labels: Labels) -> list[tuple[str, int]]:
    """Return columns that group the utterances as speakers do, and their number of values.

    They have several values, with several utterances and usually several labels each. Those with
    most values come first.
    """
    found = []
    classes = labels.joined()
    for name in _names(store):
        kind = store.metadata.schema.field(name).type
        if name in (*labels.columns, "split") or not (_is_text(kind) or pa.types.is_integer(kind)):
            continue
        labels_of = defaultdict(set)
        for value, label in zip(read_speakers(store, name), classes, strict=True):
            if value is not None:
                labels_of[value].add(label)
        n_mixed = sum(len(seen) > 1 for seen in labels_of.values())
        if 2 <= len(labels_of) <= len(store) / 2 and 2 * n_mixed > len(labels_of):
            found.append((name, len(labels_of)))
    return sorted(found, key=lambda item: -item[1])


def speaker_setting(column: str) -> str:
    """Return the setting that names a column as that of the speakers, as a shell takes it."""
    return shlex.quote(f"split.speaker={column}")


def ask_for_speaker(task: str, candidates: Sequence[tuple[str, int]]) -> str:
    """Return the message that asks for the column of the speakers."""
    listed = ", ".join(
        f"{name} with {counted(n_values, 'value')}" for name, n_values in candidates[:5]
    )
    hint = f"; columns that group the utterances as speakers do: {listed}" if listed else ""
    return (
        f"task {task} should be independent of the speaker, and no column of the store is known to "
        f"hold the speaker. Set split.speaker=COLUMN to keep each speaker in one part{hint}; or "
        f"split.speaker={NO_SPEAKER} to allow a speaker in several parts"
    )


def _names(store: FeatureStore) -> list[str]:
    return [name for name in store.metadata.column_names if name != "id"]


def _rank(name: str) -> int | None:
    """Return the position in `_WORDS` of the word that a name consists of, or None."""
    tokens = [token.lower() for token in _TOKEN.findall(name)]
    words = [token for token in tokens if token not in _AFFIXES]
    if len(words) != 1:
        return None
    [word] = words
    for form in (word, word.removesuffix("id"), word.removesuffix("s")):
        if form in _WORDS:
            return _WORDS.index(form)
    return None


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))
