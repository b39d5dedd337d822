"""Verification of tokens: their documents, codebooks, checksums and values; and their repair.

Tokens can be made again from the frames. So a repair removes what is damaged, and no commit of a
unit is revoked because of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pipeline.errors import DamagedError, UnreachableError
from pipeline.objects.parallel import run_parallel
from pipeline.store import index as index_files
from pipeline.store.backend.base import Backend
from pipeline.store.format.codebook import Codebook
from pipeline.store.format.layout import Layout
from pipeline.store.format.records import OK
from pipeline.store.format.tokens import (
    NO_TOKEN,
    TokenArray,
    attributes_of,
    chunk_key,
    codebook_key,
    document_key,
)
from pipeline.store.tokens import stored
from pipeline.store.tokens.stored import StoredTokens

_COLUMNS = ["unit", "slot", "status", "frame_start", "n_frames"]
_AT_ONCE = 256  # slots that are read together


@dataclass(frozen=True)
class TokenDamage:
    """One problem of tokens.

    Attributes:
        name: Name of the tokens.
        problem: The problem, with the file that has it.
        key: The object that a repair removes or writes anew; empty if it can do neither.
    """

    name: str
    problem: str
    key: str


@dataclass(frozen=True)
class TokenCount:
    """How much of a store has tokens.

    Attributes:
        name: Name of the tokens.
        layer: The layer; None for a weighted sum of layers.
        k: Number of codes.
        units: Committed units that have tokens.
        units_total: Committed units that have frames.
    """

    name: str
    layer: int | None
    k: int
    units: int
    units_total: int


def check_tokens(backend: Backend, layout: Layout) -> list[TokenDamage]:
    """Check all tokens of the committed units of a store.

    A unit without tokens is not damage.
    """
    names = sorted({*stored.token_folders(backend), *stored.codebook_names(backend)})
    if not names:
        return []
    taken = _taken(backend, layout)
    return [damage for name in names for damage in _check(backend, layout, name, taken)]


def count_tokens(backend: Backend) -> list[TokenCount]:
    """Return how much of a store has tokens, of each name; damaged documents are left out."""
    found = []
    slots: set[int] | None = None
    for name in stored.token_names(backend):
        try:
            known = stored.read_tokens(backend, name)
        except DamagedError:
            continue
        if known is None:
            continue
        if slots is None:
            index = index_files.read_index(backend, columns=_COLUMNS[:3])
            slots = set(index_files.of_status(index, OK)["slot"].to_pylist())
        n_done = len(slots & stored.slots_with_tokens(backend, name))
        found.append(TokenCount(name, known.attributes["layer"], known.k, n_done, len(slots)))
    return found


def repair_tokens(
    backend: Backend, layout: Layout, n_slots: int, damages: Sequence[TokenDamage]
) -> list[str]:
    """Remove damaged tokens, and write damaged documents anew from the codebooks.

    Returns:
        The keys of the objects that were removed or written.
    """
    keys = []
    for damage in damages:
        if not damage.key:
            continue
        if damage.key == document_key(damage.name):
            book = stored.read_codebook(backend, damage.name)
            if book is None:
                continue
            backend.delete(damage.key)
            stored.put_document(backend, damage.name, book, layout.frames_per_unit, n_slots)
        else:
            backend.delete(damage.key)
        keys.append(damage.key)
    return keys


def _taken(backend: Backend, layout: Layout) -> dict[int, list[tuple[int, int]]]:
    """Return the ranges of frames of utterances, within each slot that has some."""
    rows = index_files.of_status(index_files.read_index(backend, columns=_COLUMNS), OK)
    found: dict[int, list[tuple[int, int]]] = {}
    arrays = (rows[name].to_pylist() for name in ("slot", "frame_start", "n_frames"))
    for slot, start, n_frames in zip(*arrays, strict=True):
        first = start - layout.slot_start(slot)
        found.setdefault(slot, []).append((first, first + n_frames))
    return found


def _check(
    backend: Backend, layout: Layout, name: str, taken: Mapping[int, list[tuple[int, int]]]
) -> Iterator[TokenDamage]:
    path = backend.locate(codebook_key(name))
    book: Codebook | None = None
    try:
        book = stored.read_codebook(backend, name)
        has_some = bool(stored.slots_with_tokens(backend, name))
        if book is None and (has_some or backend.exists(document_key(name))):
            yield TokenDamage(name, f"{path} is missing; restore it from a copy", "")
    except DamagedError as error:
        yield TokenDamage(name, str(error), "")
    known: StoredTokens | None = None
    key = "" if book is None else document_key(name)
    document = backend.locate(document_key(name))
    try:
        known = stored.read_tokens(backend, name)
        if known is None and stored.slots_with_tokens(backend, name):
            yield TokenDamage(name, f"{document} is missing", key)
    except DamagedError as error:
        yield TokenDamage(name, str(error), key)
    if known is not None and book is not None and not _is_of(known, book):
        yield TokenDamage(name, f"{document} is not of the codebook {path}", "")
    if known is not None and known.frames_per_unit != layout.frames_per_unit:
        yield TokenDamage(
            name,
            f"{document} has chunks of {known.frames_per_unit:,} frames; expected "
            f"{layout.frames_per_unit:,}",
            key,
        )
        known = None
    if known is None:
        return
    slots = sorted(stored.slots_with_tokens(backend, name) & taken.keys())
    if slots and known.n_slots <= slots[-1]:
        yield TokenDamage(
            name, f"{document} has {known.n_slots} slots, but slot {slots[-1]} has tokens", key
        )

    def problem(slot: int) -> str | None:
        try:
            chunk = stored.read_chunk(backend, name, slot, layout.frames_per_unit)
        except UnreachableError:
            raise
        except DamagedError as error:
            return str(error)
        if chunk is None:  # removed meanwhile
            return None
        wrong = _wrong_values(chunk, known.k, taken[slot])
        return wrong and f"{backend.locate(chunk_key(name, slot))} {wrong}"

    for first in range(0, len(slots), _AT_ONCE):
        some = slots[first : first + _AT_ONCE]
        for slot, text in zip(
            some, run_parallel(problem, some, backend.parallel_reads), strict=True
        ):
            if text:
                yield TokenDamage(name, text, chunk_key(name, slot))


def _is_of(known: StoredTokens, book: Codebook) -> bool:
    return dict(known.attributes) == attributes_of(known.name, book)


def _wrong_values(chunk: TokenArray, k: int, ranges: Sequence[tuple[int, int]]) -> str | None:
    """Return what is wrong with the tokens of a slot; None if nothing is."""
    is_taken: npt.NDArray[np.bool_] = np.zeros(len(chunk), bool)
    for start, stop in ranges:
        is_taken[start:stop] = True
    if (chunk[is_taken] >= k).any():
        return f"has frames of utterances without a code from 0 to {k - 1:,}"
    if (chunk[~is_taken] != NO_TOKEN).any():
        return "has tokens in frames without an utterance"
    return None
