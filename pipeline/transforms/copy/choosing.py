"""Which utterances are copied."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.errors import ConfigError, StoreError, first_few
from pipeline.events import Observer
from pipeline.store.labels import places_of_ids
from pipeline.transforms.copy.joining import Joined
from pipeline.transforms.copy.sources import Source
from pipeline.transforms.selection import mask_where

_N_FRAMES = "n_frames"


def choose(
    joined: Joined,
    sources: Sequence[Source],
    where: str | None,
    ids: Sequence[str] | None,
    ids_name: str,
    observer: Observer,
) -> Joined:
    """Return the utterances that a copy has, in their order.

    Args:
        joined: The utterances of all sources.
        sources: The sources.
        where: Condition on the columns, `id` and `n_frames`.
        ids: Ids to copy.
        ids_name: What messages call these.
        observer: Receives a warning for a value of the condition that no utterance has.

    Raises:
        ConfigError: The condition is none, an id is unknown, or nothing is chosen.
        StoreError: The condition names an unknown column, or a value has another type.
    """
    chosen = np.ones(len(joined), bool)
    if where is not None:
        table = joined.metadata
        if _N_FRAMES not in table.column_names:
            table = table.append_column(_N_FRAMES, pa.array(joined.n_frames))
        chosen, _ = mask_where(table, where, joined.class_names, "the sources", observer)
    if ids is not None:
        chosen &= _among(joined, sources, ids, ids_name)
        if not chosen.any():
            raise ConfigError(f"none of the utterances of {ids_name} has where={where!r:.200}")
    if not len(joined):
        listed = ", ".join(str(source.backend) for source in sources)
        raise StoreError(f"nothing to copy: {listed} has no complete utterance")
    return joined if chosen.all() else joined.take(np.flatnonzero(chosen))


def _among(
    joined: Joined, sources: Sequence[Source], ids: Sequence[str], name: str
) -> npt.NDArray[np.bool_]:
    """Return which utterances have one of some ids."""
    wanted = pa.array(ids, pa.string())
    own = joined.metadata["id"].combine_chunks()
    unknown = np.flatnonzero(places_of_ids(wanted, own.unique()) < 0)
    if len(unknown):
        missing = wanted.take(pa.array(unknown)).to_pylist()
        shown = first_few([repr(item) for item in missing])
        raise ConfigError(
            f"{len(missing):,} of the {len(ids):,} ids of {name} are no complete utterances of "
            f"the sources: {shown}{_reason(sources, missing)}"
        )
    return places_of_ids(own, wanted.unique()) >= 0


def _reason(sources: Sequence[Source], missing: Sequence[str]) -> str:
    """Return the reason of the first id that is quarantined."""
    for source in sources:
        lost = source.catalogue.quarantined.to_pylist()
        reasons = {row["id"]: row["reason"] for row in lost}
        for name in missing:
            if name in reasons:
                return f"; {name!r} is quarantined: {reasons[name]}"
    return ""
