"""Verification of tokens: their documents, codebooks, checksums and values; and their repair.

Tokens can be made again from the frames. So a repair removes what is damaged, and no commit of a
unit is revoked because of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt
import torch

from pipeline.errors import DamagedError, UnreachableError
from pipeline.objects.parallel import run_parallel
from pipeline.store import index as index_files
from pipeline.store.backend.base import Backend
from pipeline.store.documents import layout_of, read_attributes
from pipeline.store.format.codebook import Codebook
from pipeline.store.format.layers import name_layers
from pipeline.store.format.layout import Layout
from pipeline.store.format.records import OK
from pipeline.store.format.tokens import (
    NO_TOKEN,
    TokenArray,
    chunk_key,
    codebook_key,
    document_key,
)
from pipeline.store.read.shards import ShardReader
from pipeline.store.tensors import decode_into
from pipeline.store.tokens import stored
from pipeline.store.tokens.stored import GROUP_KEY, StoredTokens

_COLUMNS = ["unit", "slot", "status", "frame_start", "n_frames", "position"]
_AT_ONCE = 256  # slots that are read together
_PROBES = 24  # frames of a slot whose tokens are computed again
_NEAR = 1e-3
"""A centroid that is farther than the nearest by this share may be the nearest by rounding."""

Range = tuple[int, int, int]
"""First frame of a piece within its slot, one past its last, and its position in the unit."""


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
    """Number of units of a store that have tokens of one name.

    Attributes:
        name: Name of the tokens.
        layer: The layer; None for a weighted sum of layers.
        k: Number of codes.
        units: Committed units that have tokens.
        units_total: Committed units that have frames.
        layer_name: Name of the layer; None for a weighted sum.
    """

    name: str
    layer: int | None
    k: int
    units: int
    units_total: int
    layer_name: str | None = None


def check_tokens(backend: Backend, layout: Layout) -> list[TokenDamage]:
    """Check all tokens of the committed units of a store.

    A unit without tokens is not damage.
    """
    names = sorted({*stored.token_folders(backend), *stored.codebook_names(backend)})
    if not names:
        return []
    taken = _taken(backend, layout)
    checks = (_TokenCheck(backend, layout, name, taken) for name in names)
    found = [damage for check in checks for damage in check.problems()]
    if stored.token_names(backend) and not stored.is_group_sound(backend):
        problem = f"{backend.locate(GROUP_KEY)} is missing or damaged: other readers need it"
        found.append(TokenDamage(names[0], problem, GROUP_KEY))
    return found


def count_tokens(backend: Backend) -> list[TokenCount]:
    """Return the number of units with tokens, for each name; damaged documents are left out."""
    found = []
    slots: set[int] | None = None
    names: dict[int, str] = {}
    for name in stored.token_folders(backend):
        try:
            known = stored.read_tokens(backend, name)
        except DamagedError:
            continue
        if known is None:
            continue
        if slots is None:
            index = index_files.read_index(backend, columns=_COLUMNS[:3])
            slots = set(index_files.of_status(index, OK)["slot"].to_pylist())
            layout = layout_of(read_attributes(backend))
            names = name_layers(layout.layers, layout.names)
        n_done = len(slots & stored.slots_with_tokens(backend, name))
        layer = known.attributes["layer"]
        counts = known.k, n_done, len(slots)
        found.append(TokenCount(name, layer, *counts, names.get(layer)))
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
        if damage.key == GROUP_KEY:
            stored.put_group(backend)
        elif damage.key == document_key(damage.name):
            book = stored.read_codebook(backend, damage.name)
            if book is None:
                continue
            backend.delete(damage.key)
            stored.put_document(backend, damage.name, book, layout.frames_per_unit, n_slots)
        else:
            backend.delete(damage.key)
        keys.append(damage.key)
    return keys


def _taken(backend: Backend, layout: Layout) -> dict[int, list[Range]]:
    """Return the ranges of frames of utterances, within each slot that has some."""
    rows = index_files.of_status(index_files.read_index(backend, columns=_COLUMNS), OK)
    found: dict[int, list[Range]] = {}
    names = ("slot", "frame_start", "n_frames", "position")
    arrays = (rows[name].to_pylist() for name in names)
    for slot, start, n_frames, position in zip(*arrays, strict=True):
        first = start - layout.slot_start(slot)
        found.setdefault(slot, []).append((first, first + n_frames, position))
    return found


class _TokenCheck:
    """Checks the tokens of one name.

    Checksums detect changed bytes, but not a chunk that was moved to the place of another one. So
    the tokens of a few frames of each slot are computed again.
    """

    def __init__(
        self, backend: Backend, layout: Layout, name: str, taken: Mapping[int, list[Range]]
    ) -> None:
        self._backend, self._layout, self._name, self._taken = backend, layout, name, taken
        self._shards = ShardReader(backend, layout)
        self._book: Codebook | None = None

    def problems(self) -> Iterator[TokenDamage]:
        """Yield all problems."""
        backend, name = self._backend, self._name
        path = backend.locate(codebook_key(name))
        slots_there = stored.slots_with_tokens(backend, name)
        try:
            self._book = stored.read_codebook(backend, name)
            if self._book is None and (slots_there or backend.exists(document_key(name))):
                yield TokenDamage(name, f"{path} is missing; restore it from a copy", "")
        except DamagedError as error:
            yield TokenDamage(name, str(error), "")
        document = backend.locate(document_key(name))
        known: StoredTokens | None = None
        problem: str | None = None
        key = "" if self._book is None else document_key(name)
        try:
            known = stored.read_tokens(backend, name)
            if known is None and slots_there:
                problem = f"{document} is missing"
        except DamagedError as error:
            problem = str(error)
        slots = sorted(slots_there & self._taken.keys())
        if known is not None:
            per_slot, last = self._layout.frames_per_unit, slots[-1] if slots else -1
            if known.frames_per_unit != per_slot:
                problem = (
                    f"{document} has chunks of {known.frames_per_unit:,} frames, not {per_slot:,}"
                )
            elif known.n_slots <= last:
                problem = f"{document} has {known.n_slots:,} slots, but slot {last} has tokens"
            elif self._book is not None and known.codebook_sha256 != self._book.sha256:
                yield TokenDamage(name, f"{document} is not of the codebook {path}", "")
                return
        if problem is not None:
            yield TokenDamage(name, problem, key)
        if known is None or known.frames_per_unit != self._layout.frames_per_unit:
            return
        check = partial(self._problem, known.k)
        for first in range(0, len(slots), _AT_ONCE):
            some = slots[first : first + _AT_ONCE]
            texts = run_parallel(check, some, backend.parallel_reads)
            for slot, text in zip(some, texts, strict=True):
                if text:
                    yield TokenDamage(name, text, chunk_key(name, slot))

    def _problem(self, k: int, slot: int) -> str | None:
        """Return what is wrong with the tokens of a slot; None if nothing is."""
        try:
            chunk = stored.read_chunk(self._backend, self._name, slot, self._layout.frames_per_unit)
        except UnreachableError:
            raise
        except DamagedError as error:
            return str(error)
        if chunk is None:  # removed meanwhile
            return None
        wrong = _wrong_values(chunk, k, self._taken[slot]) or self._wrong_codes(chunk, slot)
        return wrong and f"{self._backend.locate(chunk_key(self._name, slot))} {wrong}"

    def _wrong_codes(self, chunk: TokenArray, slot: int) -> str | None:
        """Compare the tokens of some frames with the nearest centroids."""
        book, layout = self._book, self._layout
        if book is None or not layout.keeps_frames:
            return None
        weights = {book.layer: 1.0}
        if book.weights is not None:
            names = book.encoder["layers"]
            weights = {n: w for n, w in zip(names, book.weights, strict=True) if w}
        if not weights.keys() <= layout.axes.keys():
            return None  # the layer was dropped
        frames = np.concatenate([np.arange(start, stop) for start, stop, _ in self._taken[slot]])
        owners = np.repeat(
            [position for _, _, position in self._taken[slot]],
            [stop - start for start, stop, _ in self._taken[slot]],
        )
        places = np.unique(np.linspace(0, len(frames) - 1, _PROBES).astype(int))
        centroids = book.centroids.astype(np.float64)
        for place in places.tolist():
            frame = int(frames[place])
            try:
                values = self._frame(slot, frame, int(owners[place]), weights)
            except DamagedError:
                return None  # damage of the frames, which is found there
            squares = np.square(centroids - values).sum(1)
            if squares[chunk[frame]] > squares.min() * (1 + _NEAR) + 1e-9:
                return f"has token {chunk[frame]} for frame {frame} of the slot, not the nearest"
        return None

    def _frame(
        self, slot: int, frame: int, position: int, weights: Mapping[int | None, float]
    ) -> npt.NDArray[np.float64]:
        """Return one frame as readers return it, float64 [dim]; of several layers their sum."""
        codec, total = self._layout.codec, np.zeros(self._layout.dim)
        for layer, weight in weights.items():
            axis = self._layout.axes[layer]  # type: ignore[index]
            raw = self._shards.read(axis, slot, frame, frame + 1)
            value = torch.from_numpy(np.empty((1, self._layout.dim), codec.value_dtype))
            decode_into(codec, raw, value, self._shards.scales(axis, slot, position))
            total += weight * value[0].double().numpy()
        return total


def _wrong_values(chunk: TokenArray, k: int, ranges: Sequence[Range]) -> str | None:
    """Return what is wrong with the values of a slot; None if nothing is."""
    is_taken: npt.NDArray[np.bool_] = np.zeros(len(chunk), bool)
    for start, stop, _ in ranges:
        is_taken[start:stop] = True
    if (chunk[is_taken] >= k).any():
        return f"has frames of utterances without a code from 0 to {k - 1:,}"
    if (chunk[~is_taken] != NO_TOKEN).any():
        return "has tokens in frames without an utterance"
    return None
