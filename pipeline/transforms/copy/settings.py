"""What is copied, and in which form."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pipeline.errors import ConfigError
from pipeline.store.format.codecs import DEFAULT_CODEC
from pipeline.store.format.layout import KEPT, Layout
from pipeline.store.format.pooling import MEAN
from pipeline.store.format.stored_form import StoredForm, choose_form

ALL, NONE = "all", "none"
"""Tokens of a copy: all that the sources have, or none."""

Ids = str | Path | Sequence[str]
"""Ids of utterances, or a text file with one id a line."""


@dataclass(frozen=True)
class CopySettings:
    """Settings of a copy. None takes what the first source has.

    Attributes:
        layers: Numbers of the layers to copy; None takes all.
        where: Condition on the columns, as for `FeatureStore.select`; None takes all utterances.
        ids: The utterances to copy: their ids, or a text file with one id a line; None takes all.
        dtype: Format of the frames: float16, float32, bfloat16 or int8.
        keep: What is kept of an utterance: frames, pooled, or both.
        pooling: Statistics over the frames of an utterance: mean, std, max, first, last.
        frames_per_unit: Frames of a unit, rounded up to a multiple of 256.
        prefix: Whether ids become `<folder of the store>/<id>`. Then `where` and `ids` have the new
            ids, too.
        tokens: "all", "none", or names of the tokens that the copy has; None stands for all.
    """

    layers: Sequence[int | str] | None = None
    where: str | None = None
    ids: Ids | None = None
    dtype: str | None = None
    keep: str | Sequence[str] | None = None
    pooling: str | Sequence[str] | None = None
    frames_per_unit: int | None = None
    prefix: bool = False
    tokens: str | Sequence[str] | None = None

    @property
    def token_names(self) -> str | tuple[str, ...]:
        """`ALL`, `NONE`, or the names of the tokens that are copied.

        Raises:
            ConfigError: No name is given, or it stands beside others.
        """
        if self.tokens is None:
            return ALL
        names = (self.tokens,) if isinstance(self.tokens, str) else tuple(self.tokens)
        if len(names) == 1 and names[0] in (ALL, NONE):
            return names[0]
        if not names or {ALL, NONE} & set(names):
            raise ConfigError(
                f"tokens is {list(names)!r:.80}; expected all, none, or names of tokens"
            )
        return names

    def form(self, first: Layout) -> StoredForm:
        """Return what the copy stores, given the layout of the first source.

        Raises:
            ConfigError: A name is unknown, or the settings contradict each other.
        """
        keep = first.keep if self.keep is None else self.keep
        names = (keep,) if isinstance(keep, str) else keep
        pooling = self.pooling
        if pooling is None:
            pooling = first.statistics if KEPT[1] in names else (MEAN,)
        if self.dtype is not None:
            return choose_form(self.dtype, keep, pooling, prefix="")
        # Statistics may be those of values in any format.
        form = choose_form(DEFAULT_CODEC.name, keep, pooling, prefix="")
        return replace(form, codec=first.codec)


def read_ids(ids: Ids) -> tuple[list[str], str]:
    """Return ids, each once, and what messages call them.

    Args:
        ids: The ids, or a file with one a line. Empty lines are skipped.

    Raises:
        ConfigError: The file cannot be read, or there is no id.
    """
    if not isinstance(ids, str | Path):
        found, name = [str(item) for item in ids], "ids"
    else:
        name = f"ids={ids}"
        try:
            text = Path(ids).expanduser().read_text(encoding="utf-8-sig")
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise ConfigError(
                f"{name} cannot be read ({reason}); expected a text file with one id a line"
            ) from error
        found = text.split("\n")  # an id may have any other character
    listed = list(dict.fromkeys(line.removesuffix("\r") for line in found))
    listed = [item for item in listed if item]
    if not listed:
        raise ConfigError(f"{name} has no id; expected one a line")
    return listed, name


def fingerprint_of(ids: Sequence[str]) -> str:
    """Return a hash of ids that does not depend on their order."""
    return hashlib.sha256("\n".join(sorted(ids)).encode()).hexdigest()


def as_recorded(
    settings: CopySettings, layers: Sequence[int], ids: Sequence[str] | None, capacity: int
) -> dict[str, Any]:
    """Return the settings as they are recorded in the identity of a copy.

    Args:
        settings: The settings.
        layers: The layers of the copy.
        ids: The ids that were asked for, if any were.
        capacity: Frames of a unit.
    """
    return {
        "layers": list(layers),
        "where": settings.where,
        "ids_sha256": None if ids is None else fingerprint_of(ids),
        "prefix": settings.prefix,
        "frames_per_unit": capacity,
    }
