"""Tokens of a copy: the codes of its utterances, gathered from those of the sources.

Tokens are codes of the frames of the sources, so they are carried where the copy has the same
values. They are written when the units are committed, and before the copy appears; a unit without
all of its tokens gets none, and `strata tokenize` makes them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from pipeline.errors import ConfigError, DamagedError, counted, did_you_mean
from pipeline.events import Observer
from pipeline.store import index as index_files
from pipeline.store.backend.base import Backend
from pipeline.store.coordination.ledger import Ledger
from pipeline.store.format.codebook import Codebook
from pipeline.store.format.layout import Layout
from pipeline.store.format.records import OK
from pipeline.store.format.tokens import NO_TOKEN, TokenArray, codebook_key
from pipeline.store.tokens import stored
from pipeline.store.tokens.stored import StoredTokens
from pipeline.transforms.copy.pieces import Pieces
from pipeline.transforms.copy.settings import ALL, NONE, CopySettings
from pipeline.transforms.copy.sources import Source

_CHUNKS = 16  # of the sources, which are kept in memory


@dataclass(frozen=True)
class CarriedTokens:
    """Tokens that a copy gets.

    Attributes:
        name: Their name.
        codebook: Their codebook.
        arrays: Those of each source; None for one that lacks them.
    """

    name: str
    codebook: Codebook
    arrays: tuple[StoredTokens | None, ...]


def choose_tokens(
    sources: Sequence[Source], out: Backend, layout: Layout, settings: CopySettings
) -> tuple[list[CarriedTokens], list[str]]:
    """Choose the tokens of a copy.

    Args:
        sources: The sources.
        out: Where the copy appears.
        layout: Shapes of the copy.
        settings: What is copied.

    Returns:
        The tokens, and notes about those that are not carried.

    Raises:
        ConfigError: Tokens that are asked for by name are in no source, or cannot be carried.
        DamagedError: A document or a codebook of the tokens is damaged.
    """
    wanted = settings.token_names
    if wanted == NONE:
        return [], []
    names = sorted({name for item in sources for name in stored.token_names(item.backend)})
    if wanted != ALL:
        for name in wanted:
            if name not in names:
                hint = did_you_mean(name, names) if names else "; the stores have none"
                raise ConfigError(f"tokens: there are none called {name!r}{hint}")
        names = list(dict.fromkeys(wanted))
    found, notes = [], []
    for name in names:
        arrays = tuple(stored.read_tokens(item.backend, name) for item in sources)
        problem = _problem(arrays, sources, layout) or _clash(name, names)
        if problem is None:
            found.append(CarriedTokens(name, _codebook(name, arrays, sources), arrays))
            continue
        first = next(s for s, known in zip(sources, arrays, strict=True) if known is not None)
        remedy = (
            f"`strata tokenize {out} codebook={first.backend.locate(codebook_key(name))}` makes "
            "them for the copy"
        )
        if wanted != ALL:
            raise ConfigError(
                f"tokens {name!r} cannot be copied: {problem}. Copy without; {remedy}"
            )
        notes.append(f"tokens {name!r} are not copied: {problem}; {remedy}")
    return found, notes


def _problem(
    arrays: Sequence[StoredTokens | None], sources: Sequence[Source], layout: Layout
) -> str | None:
    """Return why tokens cannot be carried; None if they can."""
    have = [(item, known) for item, known in zip(sources, arrays, strict=True) if known is not None]
    for source, known in have:
        if source.layout.codec != layout.codec:
            return (
                f"they are codes of {source.layout.codec.name} frames, and the copy has "
                f"{layout.codec.name}"
            )
        if known.codebook_sha256 != have[0][1].codebook_sha256:
            return (
                f"{have[0][0].backend} and {source.backend} have them from different codebooks, so "
                "equal numbers mean different things"
            )
    return None


def _clash(name: str, names: Sequence[str]) -> str | None:
    """Return why a name cannot be told from an earlier one on any file system, if so."""
    first = next(other for other in names if other.lower() == name.lower())
    if first == name:
        return None
    return f"the name differs from {first!r} only in upper and lower case"


def _codebook(
    name: str, arrays: Sequence[StoredTokens | None], sources: Sequence[Source]
) -> Codebook:
    """Return the codebook of tokens, which all sources that have them share.

    Raises:
        DamagedError: It is damaged or missing, or another one.
    """
    for source, known in zip(sources, arrays, strict=True):
        if known is None:
            continue
        found = stored.read_codebook(source.backend, name)
        path = source.backend.locate(codebook_key(name))
        if found is None or found.sha256 != known.codebook_sha256:
            problem = "missing" if found is None else "not that of the tokens"
            raise DamagedError(f"{path} is {problem}; restore it, or copy with tokens=none")
        return found
    raise AssertionError(name)  # a name is one of a source


def carry_tokens(
    place: Backend,
    tokens: Sequence[CarriedTokens],
    sources: Sequence[Source],
    pieces: Pieces,
    layout: Layout,
    observer: Observer,
) -> int:
    """Write the tokens that the units of a copy lack.

    Args:
        place: The copy, whose units are committed.
        tokens: What `choose_tokens` returned.
        sources: The sources.
        pieces: Pieces of the copy.
        layout: Its shapes.
        observer: Receives notes.

    Returns:
        Number of units that got tokens, of one name or several.

    Raises:
        StoreError: The copy has other tokens of one of the names.
        DamagedError: Tokens of a source are damaged.
    """
    if not tokens:
        return 0
    written: set[int] = set()
    index = index_files.read_index(place, columns=["unit", "slot", "status"])
    rows = index_files.of_status(index, OK)
    slots = dict(zip(rows["unit"].to_pylist(), rows["slot"].to_pylist(), strict=True))
    n_slots = Ledger.open(place, pieces.plan.n_units).n_slots
    for item in tokens:
        stored.put_codebook(place, item.name, item.codebook)
        stored.put_document(place, item.name, item.codebook, layout.frames_per_unit, n_slots)
        done = stored.slots_with_tokens(place, item.name)
        missing = [unit for unit, slot in slots.items() if slot not in done]
        chunk_of = _chunk_reader(item, sources)
        n_without = 0
        for unit in missing:
            made = _unit_tokens(unit, item, pieces, layout, chunk_of)
            if made is None:
                n_without += 1
            else:
                stored.put_chunk(place, item.name, slots[unit], made)
                written.add(unit)
        if n_without:
            observer.note(
                f"{counted(n_without, 'unit')} of {len(slots):,} without tokens {item.name!r}, "
                f"because sources lack some; `strata tokenize STORE name={item.name}` makes them "
                "for the copy"
            )
    return len(written)


def _chunk_reader(
    item: CarriedTokens, sources: Sequence[Source]
) -> Callable[[int, int], TokenArray | None]:
    """Return what reads the tokens of a slot of a source, and keeps the last ones."""

    @lru_cache(maxsize=_CHUNKS)
    def chunk_of(source: int, slot: int) -> TokenArray | None:
        known, backend = item.arrays[source], sources[source].backend
        if known is None:
            return None
        return stored.read_chunk(backend, item.name, slot, known.frames_per_unit)

    return chunk_of


def _unit_tokens(
    unit: int,
    item: CarriedTokens,
    pieces: Pieces,
    layout: Layout,
    chunk_of: Callable[[int, int], TokenArray | None],
) -> TokenArray | None:
    """Return the tokens of a unit, uint16 [frames_per_unit]; None if a source lacks some.

    Raises:
        DamagedError: A frame of an utterance has no code of the codebook.
    """
    out = np.full(layout.frames_per_unit, NO_TOKEN, np.uint16)
    first, last = (int(pieces.plan.unit_offsets[unit + i]) for i in range(2))
    at = 0
    for row in range(first, last):
        n_frames, start = int(pieces.n_frames[row]), int(pieces.start[row])
        chunk = chunk_of(int(pieces.source[row]), int(pieces.slot[row]))
        if chunk is None:
            return None
        own = chunk[start : start + n_frames]
        if (own >= item.codebook.k).any():
            raise DamagedError(
                f"tokens {item.name!r} lack a code of utterance {pieces.table['id'][row].as_py()!r}"
                "; `strata verify --repair` of its store removes them, and `strata tokenize` makes "
                "them again"
            )
        out[at : at + n_frames] = own
        at += n_frames
    return out
