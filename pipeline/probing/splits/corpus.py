"""The corpus's own split: a metadata column, in the spellings that corpora use."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.config import SplitConfig
from pipeline.errors import ConfigError, counted, first_few
from pipeline.probing.labels import read_texts
from pipeline.store.read.features import FeatureStore

_COLUMNS = ("split", "split_set", "splits", "partition", "subset")
"""Usual names of the column, without regard to case, in the order of preference."""
_PARTS = ("train", "dev", "test")
_N_LOOKED_AT = 1000
"""Values that show that a column has others than those of splits."""


@dataclass(frozen=True)
class CorpusSplit:
    """The column with the corpus's own split.

    Attributes:
        column: Name of the column.
        values: Its value for each utterance of the store; None for null.
        names: Values of train, of dev and of test, as they are spelt in the column.
    """

    column: str
    values: Sequence[str | None]
    names: tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]

    @property
    def description(self) -> str:
        """The column, and the values of each part where they are not just its name."""
        pairs = [(part, names) for part, names in zip(_PARTS, self.names, strict=True) if names]
        if all(names == (part,) for part, names in pairs):
            return f"column {self.column}"
        parts = ", ".join(f"{part} is {' and '.join(names)}" for part, names in pairs)
        return f"column {self.column}: {parts}"


def find_corpus_split(
    store: FeatureStore, config: SplitConfig
) -> tuple[CorpusSplit | None, tuple[str, ...]]:
    """Find the corpus's own split.

    Values are compared without regard to case, spaces, hyphens and underscores.

    Args:
        store: The store.
        config: Settings of the split. With `column` "auto", a column with a usual name is used if
            it has values of both train and test, or else a column that has no other values than
            those of train, dev and test; unless `folds` is set.

    Returns:
        The split, or None if a split is to be made; and warnings.

    Raises:
        ConfigError: The configured column is not in the store.
    """
    if config.column is None or (config.column == "auto" and config.folds is not None):
        return None, ()
    if config.column != "auto":
        return _read(store, config.column, config), ()
    found = [_read(store, name, config) for name in _candidates(store)]
    by_values = (_read(store, name, config) for name in _of_split_names(store, config))
    for split in chain(found, by_values):
        if split.names[0] and split.names[2]:
            return split, ()
    return None, tuple(
        _not_used(split)
        for split in found
        if (split.column.casefold() == _COLUMNS[0] or split.names[0] or split.names[2])
        and len(_distinct(split.values)) > 1
    )


def no_utterance(split: CorpusSplit, part: str, config: SplitConfig, usable: Iterable[int]) -> str:
    """Return the message of an error: no usable utterance is in a part."""
    expected = getattr(config, part)
    expected = expected if isinstance(expected, str) else ", ".join(expected)
    existing = sorted({str(split.values[i]) for i in usable})
    return (
        f"no labelled utterance has {split.column} = {expected}; its values are "
        f"{first_few(existing)}. Set split.{part}=VALUE, or split.column=null to make a split"
    )


def _read(store: FeatureStore, column: str, config: SplitConfig) -> CorpusSplit:
    values = read_texts(store, column)
    existing = _distinct(values)
    train, dev, test = (
        _matching(existing, wanted) for wanted in (config.train, config.dev, config.test)
    )
    for name in {*train} & {*dev} | {*train} & {*test} | {*dev} & {*test}:
        raise ConfigError(
            f"{name!r} of column {column!r} is in two of split.train, split.dev and split.test; "
            "give different values"
        )
    return CorpusSplit(column, values, (train, dev, test))


def _candidates(store: FeatureStore) -> list[str]:
    """Return the columns with a usual name, in the order of preference."""
    names = [name for name in store.metadata.column_names if name.casefold() in _COLUMNS]
    return sorted(names, key=lambda name: _COLUMNS.index(name.casefold()))


def _of_split_names(store: FeatureStore, config: SplitConfig) -> Iterator[str]:
    """Yield the columns of text, or of classes, that have only values of train, dev and test.

    A column is read whole only if its first values are such values.
    """
    for name in store.metadata.column_names:
        values = store.metadata[name].slice(0, _N_LOOKED_AT)
        classes = store.class_names.get(name)
        if name == "id" or not (classes or _is_text(values.type)):
            continue
        found = pc.unique(values).drop_null().to_pylist()
        texts = [classes[value] for value in found] if classes else found
        if not texts or not _are_parts(texts, config):
            continue
        if _are_parts(_distinct(read_texts(store, name)), config):
            yield name


def _are_parts(values: Sequence[str], config: SplitConfig) -> bool:
    """Return whether each value is one of train, dev or test."""
    parts = (config.train, config.dev, config.test)
    known = {value for wanted in parts for value in _matching(values, wanted)}
    return known == set(values)


def _is_text(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def unused_values(split: CorpusSplit, usable: Iterable[int]) -> tuple[str, ...]:
    """Return a warning about utterances that are in no part because of their value."""
    known = {value for names in split.names for value in names}
    others = [value for i in usable if (value := split.values[i]) not in known and value]
    if not others:
        return ()
    missing = [part for part, names in zip(_PARTS, split.names, strict=True) if not names]
    are = "is" if len(others) == 1 else "are"
    return (
        f"{counted(len(others), 'utterance')} whose {split.column} is "
        f"{first_few(_distinct(others))} {are} in no part; split.{(missing or _PARTS)[0]} names "
        "the values of a part",
    )


def _distinct(values: Sequence[str | None]) -> list[str]:
    return sorted({value for value in values if value is not None})


def _matching(existing: Sequence[str], wanted: str | tuple[str, ...]) -> tuple[str, ...]:
    """Return the values that are wanted: as they are spelt, or else without regard to spelling."""
    names = {wanted} if isinstance(wanted, str) else set(wanted)
    plain = {_plain(name) for name in names}
    exact = tuple(value for value in existing if value in names)
    similar = tuple(value for value in existing if _plain(value) in plain)
    return exact if isinstance(wanted, str) and exact else similar


def _plain(text: str) -> str:
    return re.sub(r"[\s_-]", "", text).casefold()


def _not_used(split: CorpusSplit) -> str:
    """Return the warning about a split that is not used."""
    missing = [part for part in ("train", "test") if not split.names[_PARTS.index(part)]]
    settings = " ".join(f"split.{part}=[VALUE]" for part in missing)
    return (
        f"column {split.column!r} is not used, because none of its values "
        f"({first_few(_distinct(split.values))}) is known to be {' or '.join(missing)}: a split is "
        "made here, and scores are not comparable with those of the corpus's own split. Set "
        f"{settings}, or split.column=null if this is not its split"
    )
