"""The stores that are copied: what each has, and whether they fit together."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.errors import ConfigError, DamagedError, IdentityError, StoreError
from pipeline.store import index as index_files
from pipeline.store.backend.base import Backend, Location
from pipeline.store.backend.opening import open_backend
from pipeline.store.documents import layout_of, read_attributes, read_plan
from pipeline.store.format.identity import SOXR_KEY, Identity
from pipeline.store.format.layers import labels_of, number_layers
from pipeline.store.format.layout import Layout
from pipeline.store.format.plan import Plan
from pipeline.store.format.stored_form import StoredForm
from pipeline.store.labels import places_of, read_labels
from pipeline.store.read.catalogue import Catalogue, read_catalogue
from pipeline.store.read.joined.columns import Column, check_alike, check_distinct

_FACTS = ("row", "n_samples", "source_rate_hz", "flags", "crc32c")
"""Columns of the index that a piece keeps in a copy, and the number of its utterance."""


@dataclass(frozen=True)
class Source:
    """One store that is copied, as it was when it was opened.

    Attributes:
        backend: Where it is.
        attributes: Attributes of its group.
        layout: Its shapes.
        catalogue: The utterances that readers see, and their pieces.
        columns: Name, type and class names of each carried column.
        pieces: What the index has of each piece of the catalogue: `_FACTS`.
        plan: Its plan.
        n_waiting: Units of the plan that are not committed.
    """

    backend: Backend
    attributes: dict[str, Any]
    layout: Layout
    catalogue: Catalogue
    columns: tuple[Column, ...]
    pieces: pa.Table
    plan: Plan
    n_waiting: int

    @property
    def identity(self) -> Identity:
        """Identity of the store."""
        return dict(self.attributes["identity"])

    def planned(self, name: str) -> Any:
        """Return a column of the plan for each piece of the catalogue."""
        records = self.plan.first_records
        numbers = index_files.numbers(records["row"])
        rows = places_of(index_files.numbers(self.pieces["row"]), numbers)
        if len(rows) and rows.min() < 0:
            raise DamagedError(
                f"the plan of store {self.backend} lacks an utterance of its index; run `strata "
                f"verify {self.backend}`"
            )
        return index_files.numbers(records[name])[rows]


def open_sources(locations: Sequence[Location]) -> list[Source]:
    """Open the stores that are copied.

    Raises:
        ConfigError: None is given, or one is given twice.
        StoreNotFoundError: One does not exist.
        DamagedError: The attributes, plan, index or labels of one are damaged.
    """
    if not locations:
        raise ConfigError("no store to copy is given")
    backends = [open_backend(location) for location in locations]
    check_distinct(backends)
    return [_open(backend) for backend in backends]


def _open(backend: Backend) -> Source:
    attributes = read_attributes(backend)
    layout = layout_of(attributes)
    plan = read_plan(backend)
    if plan is None:
        raise DamagedError(f"store {backend} has no plan.parquet; restore it from a copy")
    labels = read_labels(backend)
    catalogue = read_catalogue(backend, layout, labels)
    if labels is None:
        columns = attributes.get("identity", {}).get("source", {}).get("columns", [])
    else:
        columns = labels.columns
    known = set(catalogue.metadata.column_names)
    units = index_files.committed_units(backend)
    return Source(
        backend,
        attributes,
        layout,
        catalogue,
        tuple(column for column in columns if column["name"] in known),
        _facts(backend, catalogue),
        plan,
        n_waiting=plan.n_units - sum(unit < plan.n_units for unit in units),
    )


def _facts(backend: Backend, catalogue: Catalogue) -> pa.Table:
    """Return what the index has of each piece of a catalogue, in the order of the pieces."""
    index = index_files.read_index(backend, columns=["unit", "position", *_FACTS])
    unit, position = (index_files.numbers(index[name]) for name in ("unit", "position"))
    span = int(position.max(initial=0)) + 1
    keys = unit.astype(np.int64) * span + position
    wanted = catalogue.unit.astype(np.int64) * span + catalogue.place
    order = np.argsort(keys, kind="stable")
    found = places_of(wanted, keys[order])
    if len(found) and found.min() < 0:
        raise StoreError(f"the index of store {backend} has changed meanwhile; run again")
    return index.select(list(_FACTS)).take(index_files.row_numbers(order[found]))


def check_sources(sources: Sequence[Source], layers: Sequence[int | str] | None) -> tuple[int, ...]:
    """Check that stores can be joined.

    Args:
        sources: The stores.
        layers: The layers that are copied, by number or name; None: all.

    Returns:
        The layers of the copy, in the order of the first store.

    Raises:
        ConfigError: A layer is not in a store, or none is given.
        IdentityError: The features of the stores are not of the same encoder and audio, or have
            other layers.
    """
    first = sources[0]
    for other in sources[1:]:
        check_alike((first.backend, first.attributes), (other.backend, other.attributes))
    if layers is None:
        for other in sources[1:]:
            if set(other.layout.axes) != set(first.layout.axes):
                common = [n for n in first.layout.axes if n in other.layout.axes]
                remedy = f"; layers={common} copies what both have" if common else ""
                raise IdentityError(
                    f"stores cannot be joined: {first.backend} has layers "
                    f"{labels_of(first.layout.kept_names)}, {other.backend} has "
                    f"{labels_of(other.layout.kept_names)}{remedy}"
                )
        return tuple(first.layout.axes)
    numbers, *_ = (
        number_layers(
            layers, source.layout.kept_names, f"store {source.backend}", error=ConfigError
        )
        for source in sources
    )
    return tuple(layer for layer in first.layout.axes if layer in numbers)


def check_form(sources: Sequence[Source], form: StoredForm, is_dtype_given: bool) -> None:
    """Check that every store has what the copy keeps.

    Raises:
        ConfigError: A store keeps no frames, or not the statistics, and the copy should; or a
            format of frames is asked for that would apply to nothing.
    """
    keeps_frames = "frames" in form.keep
    for source in sources:
        layout = source.layout
        if is_dtype_given and not keeps_frames and form.codec != layout.codec:
            raise ConfigError(
                f"dtype={form.codec.name} is about frames, and none are kept; leave it out"
            )
        if layout.keeps_frames:
            continue
        if keeps_frames:
            raise ConfigError(
                f"store {source.backend} keeps no frames to copy, only "
                f"{', '.join(layout.statistics)}; set keep=[pooled], or leave the store out"
            )
        missing = [name for name in form.statistics if name not in layout.statistics]
        if missing:
            raise ConfigError(
                f"store {source.backend} keeps neither frames nor the statistics "
                f"{', '.join(missing)}; it has {', '.join(layout.statistics)}, which pooling= may "
                "list"
            )
        if layout.codec != form.codec:
            raise IdentityError(
                f"store {source.backend} keeps statistics of {layout.codec.name} values and no "
                f"frames, the copy those of {form.codec.name} values; copy it on its own"
            )


def sha256_of(identity: Identity) -> str:
    """Return the hash of an identity, independent of the order of its keys."""
    canonical = json.dumps(identity, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def joined_audio(sources: Sequence[Source]) -> dict[str, Any]:
    """Return the audio part of the identity of a copy."""
    audio = dict(sources[0].identity.get("audio", {}))
    for source in sources:
        if SOXR_KEY in source.identity.get("audio", {}):
            audio[SOXR_KEY] = source.identity["audio"][SOXR_KEY]
    return audio
