"""Verification of what other Zarr readers use: the documents of the group and of the arrays.

Strata takes shapes and types from the attributes and reads shards itself, so its readers notice
nothing of a changed document. Every other reader of the arrays trusts it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from pipeline.errors import DamagedError, UnreachableError
from pipeline.store.backend.base import Backend
from pipeline.store.backend.zarr_arrays import ZarrArrays
from pipeline.store.coordination.lease import live_holder
from pipeline.store.coordination.ledger import Ledger
from pipeline.store.documents import is_rewritten
from pipeline.store.format.layout import (
    ATTRIBUTES,
    CHUNK_FRAMES,
    FRAMES,
    POOLED,
    Layout,
)
from pipeline.store.format.zarr_json import group_document
from pipeline.store.read.shards import ShardReader

_RESTORE = "restore it from a copy"
_EXTRACT = "run `strata extract` again, which rewrites it"
_FORM = ("codecs", "storage_transformers")
"""What another tool changes if it writes an array again in another form."""


def check_documents(backend: Backend, layout: Layout, n_units: int, slots: Sequence[int]) -> None:
    """Check that the zarr.json documents are those of the store's layout.

    Only attributes of other tools may be among them. An array that another tool has written again
    in another form, e.g. compressed, has other codecs; then its values are compared.

    Args:
        backend: The store.
        layout: Its shapes.
        n_units: Units of the plan.
        slots: The committed slots.

    Raises:
        DamagedError: A document is missing, damaged, or of another layout.
    """
    group = _read(backend, ATTRIBUTES, _RESTORE)
    _compare(group, group_document({}), backend.locate(ATTRIBUTES), _RESTORE)
    least = 1 + max(slots, default=-1)
    for array in layout.arrays:
        key = f"{array}/zarr.json"
        stored, path = _read(backend, key, _EXTRACT), backend.locate(key)
        n_slots = _n_slots(stored, layout, array)
        most = Ledger.open(backend, n_units).n_slots  # after the document: it may be growing
        is_too_long = n_slots is not None and n_slots > most and live_holder(backend) is None
        if n_slots is None or n_slots < least or is_too_long:
            raise DamagedError(
                f"{path} has shape {stored.get('shape')}, but the committed units need {least} "
                f"slots and the store has {most}; {_EXTRACT}"
            )
        free = _FORM if is_rewritten(backend, layout, array) else ()
        _compare(stored, layout.document(array, n_slots), path, _EXTRACT, free)


def check_other_readers(backend: Backend, layout: Layout, slot: int) -> None:
    """Check that any Zarr reader gets the values of a sound slot, by its first frames and chunks.

    Raises:
        DamagedError: It gets others, or none.
    """
    shards, arrays = ShardReader(backend, layout), ZarrArrays(backend)
    first = layout.slot_start(slot)
    axes = list(layout.kept_axes)
    for array in layout.arrays:
        place: Any = slot
        if array == FRAMES:
            place = np.s_[:, first : first + CHUNK_FRAMES]
            values = np.stack([shards.read(axis, slot, 0, CHUNK_FRAMES) for axis in axes])
        else:
            values = shards.pooled(slot) if array == POOLED else shards.scale_chunk(slot)
        try:
            found = np.asarray(arrays[array][place])
            found = np.ascontiguousarray(found[axes]) if array == FRAMES else found
        except UnreachableError:
            raise
        except Exception as error:  # noqa: BLE001  zarr raises whatever its codecs raise
            problem = f"cannot be read ({error})"
        else:
            if found.dtype == values.dtype and found.tobytes() == values.tobytes():
                continue
            problem = "has other values for other readers"
        raise DamagedError(
            f"Zarr array {backend.locate(array)} {problem}: {backend.locate(f'{array}/zarr.json')} "
            f"was changed; {_EXTRACT}"
        )


def _read(backend: Backend, key: str, remedy: str) -> dict[str, Any]:
    """Return a zarr.json document, which must be a JSON object."""
    path = backend.locate(key)
    try:
        document = json.loads(backend.read(key))
    except FileNotFoundError:
        raise DamagedError(f"{path} is missing; {remedy}") from None
    except UnreachableError:
        raise
    except (OSError, ValueError) as error:
        raise DamagedError(f"{path} is not readable ({error}); {remedy}") from error
    if not isinstance(document, dict):
        raise DamagedError(f"{path} is not a Zarr document; {remedy}")
    return document


def _compare(
    stored: dict[str, Any],
    expected: dict[str, Any],
    path: str,
    remedy: str,
    free: Sequence[str] = (),
) -> None:
    """Compare a document with the one that Strata writes, but for `free` and the attributes."""
    for name, value in expected.items():
        if name == "attributes" and isinstance(stored.get(name), dict):
            continue
        if name not in free and (name not in stored or stored[name] != value):
            raise DamagedError(
                f"{path} was changed or is damaged: {name} is {stored.get(name)!r}, expected "
                f"{value!r}; {remedy}"
            )


def _n_slots(document: dict[str, Any], layout: Layout, array: str) -> int | None:
    """Return the length of the slot axis that a document states; None if it is no whole number."""
    axis, per_slot = (1, layout.frames_per_unit) if array == FRAMES else (0, 1)
    try:
        n_slots, rest = divmod(document["shape"][axis], per_slot)
    except (KeyError, IndexError, TypeError):
        return None
    return None if rest or not isinstance(n_slots, int) else n_slots
