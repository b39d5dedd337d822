"""The tokens of one store: which units lack them, making these, and counting all."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from pipeline.errors import DamagedError
from pipeline.events import Observer
from pipeline.objects.parallel import run_parallel
from pipeline.store.backend.base import Backend
from pipeline.store.coordination.ledger import Ledger
from pipeline.store.documents import layout_of, read_attributes, read_plan
from pipeline.store.format.codebook import Codebook
from pipeline.store.format.layout import Layout
from pipeline.store.format.tokens import chunk_key
from pipeline.store.read.opening import open_store
from pipeline.store.tokens import stored
from pipeline.store.write.slot import check_exists
from pipeline.threads import single_threaded
from pipeline.tokens.assigning import AssignedUnit, UnitTokenizer, slots_of_units
from pipeline.tokens.frames import LayerSource
from pipeline.tokens.quality import IntArray

_COUNTED_AT_ONCE = 256  # units


@dataclass(frozen=True)
class StoreTokens:
    """What a run has done in one store.

    Attributes:
        n_units: Units with frames.
        n_written: Units that this run has given tokens.
        n_new_frames: Frames of these.
        inertia: Sum of their squared distances.
        counts: Frames of each code in all units, int64 [k].
    """

    n_units: int
    n_written: int
    n_new_frames: int
    inertia: float
    counts: IntArray


def tokenize_store(
    backend: Backend, name: str, book: Codebook, device: torch.device, observer: Observer
) -> StoreTokens:
    """Give all units of a store the tokens that they lack, and count all tokens."""
    layout = layout_of(read_attributes(backend))
    _put_document(backend, name, book, layout)
    slots = slots_of_units(backend)
    counts, missing = _present(backend, name, book.k, layout, slots, observer)
    found: list[AssignedUnit] = []
    if missing:
        source = LayerSource.of(open_store(backend), book.layer, book.weights)
        tokenizer = UnitTokenizer(backend, layout, source.axes, source.weights, book, device)
        n_before = len(slots) - len(missing)
        observer.units_tokenized(n_before, len(slots))
        with single_threaded(os.cpu_count() or 1) as pool:
            for done, unit in enumerate(missing, start=n_before + 1):
                check_exists(backend)
                written = tokenizer.write(name, unit, pool)
                if written is None:
                    observer.note(
                        f"unit {unit} was moved or revoked while it got tokens; run again for it"
                    )
                else:
                    found.append(written)
                observer.units_tokenized(done, len(slots))
        _put_document(backend, name, book, layout)  # it may have grown meanwhile
    return StoreTokens(
        n_units=len(slots) - len(missing) + len(found),
        n_written=len(found),
        n_new_frames=sum(item.n_frames for item in found),
        inertia=math.fsum(item.inertia for item in found),
        counts=sum((item.counts for item in found), counts),
    )


def _put_document(backend: Backend, name: str, book: Codebook, layout: Layout) -> None:
    plan = read_plan(backend)
    if plan is None:
        raise DamagedError(f"store {backend} has no plan.parquet; restore it from a copy")
    n_slots = Ledger.open(backend, plan.n_units).n_slots
    stored.put_document(backend, name, book, layout.frames_per_unit, n_slots)


def _present(
    backend: Backend,
    name: str,
    k: int,
    layout: Layout,
    slots: Mapping[int, int],
    observer: Observer,
) -> tuple[IntArray, list[int]]:
    """Count the tokens that units have; return the units that have none.

    Tokens that are damaged are removed, and missing then.
    """
    done = stored.slots_with_tokens(backend, name)

    def count(unit: int) -> IntArray | None:
        slot = slots[unit]
        try:
            chunk = stored.read_chunk(backend, name, slot, layout.frames_per_unit)
        except DamagedError as error:
            observer.note(f"WARNING: {error}; they are made again now")
            backend.delete(chunk_key(name, slot))
            return None
        return None if chunk is None else stored.counts_of(chunk, k)

    total = np.zeros(k, np.int64)
    missing = [unit for unit, slot in slots.items() if slot not in done]
    present = [unit for unit, slot in slots.items() if slot in done]
    for first in range(0, len(present), _COUNTED_AT_ONCE):
        some = present[first : first + _COUNTED_AT_ONCE]
        for unit, counts in zip(
            some, run_parallel(count, some, backend.parallel_reads), strict=True
        ):
            if counts is None:
                missing.append(unit)
            else:
                total += counts
    return total, sorted(missing)
