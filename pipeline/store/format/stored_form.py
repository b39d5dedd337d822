"""What a store keeps of an utterance, and how, from the settings `keep`, `pooling` and `dtype`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.errors import ConfigError, did_you_mean
from pipeline.store.format.codecs import CODECS, Codec
from pipeline.store.format.layout import KEPT
from pipeline.store.format.pooling import MEAN, STATISTICS, STD


@dataclass(frozen=True)
class StoredForm:
    """What is stored of an utterance, and how.

    Attributes:
        codec: Format of the frame values.
        keep: Of `KEPT`, in that order.
        statistics: Of `STATISTICS`, in that order.
    """

    codec: Codec
    keep: tuple[str, ...]
    statistics: tuple[str, ...]


def choose_form(
    dtype: str, keep: str | Sequence[str], pooling: str | Sequence[str], prefix: str = "extract."
) -> StoredForm:
    """Return what settings store.

    The deviation of an utterance in several pieces needs their means, so `std` adds `mean`.

    Args:
        dtype: Name of a codec.
        keep: One or more of `KEPT`.
        pooling: One or more of `STATISTICS`.
        prefix: What the settings are called before their own names, for messages.

    Raises:
        ConfigError: A name is unknown, or the settings contradict each other.
    """
    codec = next((codec for codec in CODECS if codec.name == dtype), None)
    if codec is None:
        known = [codec.name for codec in CODECS]
        raise ConfigError(f"{prefix}dtype is {dtype!r}{did_you_mean(dtype, known)}")
    kept = _chosen(f"{prefix}keep", keep, KEPT)
    statistics = _chosen(f"{prefix}pooling", pooling, STATISTICS)
    if STD in statistics and MEAN not in statistics:
        statistics = (MEAN, *statistics)
    if KEPT[1] not in kept and statistics != (MEAN,):
        raise ConfigError(
            f"{prefix}pooling needs {prefix}keep=[frames,pooled] or [pooled]; with [frames], "
            "readers compute statistics from the frames"
        )
    if KEPT[0] not in kept and codec.n_scales:
        raise ConfigError(
            f"{prefix}dtype={codec.name} is about frames, which {prefix}keep=[pooled] does not "
            "keep; leave one of them out"
        )
    return StoredForm(codec, kept, statistics)


def _chosen(name: str, given: str | Sequence[str], known: Sequence[str]) -> tuple[str, ...]:
    """Return the given names, each once, in the order of the known ones."""
    names = (given,) if isinstance(given, str) else tuple(given)
    for item in names:
        if item not in known:
            raise ConfigError(f"{name} has {item!r}{did_you_mean(item, known)}")
    if not names:
        raise ConfigError(f"{name} is empty; expected one or more of {', '.join(known)}")
    return tuple(item for item in known if item in names)
