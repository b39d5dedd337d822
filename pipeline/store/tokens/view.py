"""Tokens of utterances, as readers see them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, overload

import numpy as np
import torch
from torch import Tensor

from pipeline.errors import DamagedError, StoreError, did_you_mean
from pipeline.store.backend.base import Backend
from pipeline.store.format.codebook import Codebook
from pipeline.store.format.layout import ATTRIBUTES
from pipeline.store.format.tokens import NO_TOKEN, TokenArray, chunk_key, codebook_key, deduplicate
from pipeline.store.read.catalogue import Place
from pipeline.store.read.utterances import Key, StoreView
from pipeline.store.tokens import stored
from pipeline.store.tokens.stored import StoredTokens

_MAX_BYTES = 256 << 20  # of chunks that are kept in memory


class TokenReader:
    """Reads the tokens of one store. What was read stays in memory, up to a bound.

    Safe to use from several threads: an entry of the caches is never changed.
    """

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._arrays: dict[str, StoredTokens] = {}
        self._chunks: dict[tuple[str, int], TokenArray] = {}
        self._n_bytes = 0
        self.default_name: str | None = None  # what None stood for, so that it is not looked up

    @property
    def names(self) -> list[str]:
        """Names of the tokens that the store has now."""
        return stored.token_names(self._backend)

    def array(self, name: str) -> StoredTokens | None:
        """Return an array of tokens; None if there is none of this name."""
        known = self._arrays.get(name)
        if known is None:
            known = stored.read_tokens(self._backend, name)
            if known is not None:
                self._arrays[name] = known
        return known

    def chunk(self, known: StoredTokens, slot: int) -> TokenArray | None:
        """Return the tokens of a slot, uint16 [frames_per_unit]; None if it has none yet."""
        place = known.name, slot
        found = self._chunks.get(place)
        if found is None:
            found = stored.read_chunk(self._backend, known.name, slot, known.frames_per_unit)
            if found is not None:
                self._keep(place, found)
        return found

    def _keep(self, place: tuple[str, int], chunk: TokenArray) -> None:
        while self._chunks and self._n_bytes + chunk.nbytes > _MAX_BYTES:
            oldest = self._chunks.pop(next(iter(self._chunks)), None)
            self._n_bytes -= 0 if oldest is None else oldest.nbytes
        self._chunks[place] = chunk
        self._n_bytes += chunk.nbytes


class TokenView(StoreView):
    """The tokens of the utterances of a store, or of several."""

    @property
    def token_names(self) -> list[str]:
        """Names of the tokens that the store has, or that all of several stores have."""
        first, *others = (set(reader.names) for reader in self._token_readers())
        return sorted(first.intersection(*others))

    def codebook(self, name: str | None = None) -> Codebook:
        """Return the codebook of tokens.

        Args:
            name: Their name; None if there is only one.

        Raises:
            StoreError: There are no such tokens, or several stores have them from different
                codebooks.
            DamagedError: The codebook is damaged or missing.
        """
        name = self._token_name(name)
        known = self._token_arrays(name)[0]
        found = stored.read_codebook(self.backends[0], name)
        path = self.backends[0].locate(codebook_key(name))
        if found is None:
            raise DamagedError(f"{path} is missing; restore it from a copy")
        if found.sha256 != known.codebook_sha256:
            raise DamagedError(f"{path} is not the codebook that tokens {name!r} were made with")
        return found

    @overload
    def tokens(
        self, key: Key, name: str | None = None, dedup: Literal[False] = False
    ) -> Tensor: ...
    @overload
    def tokens(
        self, key: Key, name: str | None = None, *, dedup: Literal[True]
    ) -> tuple[Tensor, Tensor]: ...
    @overload
    def tokens(
        self, key: Key, name: str | None = None, dedup: bool = False
    ) -> Tensor | tuple[Tensor, Tensor]: ...
    def tokens(
        self, key: Key, name: str | None = None, dedup: bool = False
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Return the tokens of one utterance: the k-means code of each of its frames.

        `strata tokenize` makes them. Their checksums are always compared.

        Args:
            key: Its id, or its position in `ids`.
            name: Name of the tokens; None if the store has only one.
            dedup: Whether to join consecutive frames of the same token.

        Returns:
            int64 [n_frames]; with `dedup` the token of each run, int64 [n_runs], and its number of
            frames, int64 [n_runs].

        Raises:
            UtteranceNotFoundError: There is no such utterance.
            StoreError: The store has no such tokens, or not yet those of the utterance.
            DamagedError: The tokens are damaged.

        Example:
            >>> units, durations = store.tokens("clip-1", dedup=True)           # doctest: +SKIP
        """
        position = self.position(key)
        name = self._token_name(name)
        number = self._catalogue.store_of(position) - self._place.number
        known = self._token_arrays(name)[number]
        reader = self._token_readers()[number]
        first_slot = Place(self._catalogue.store_of(position)).first_slot
        parts = []
        for slot, start, stop, _ in self._catalogue.spans(position, 0, self.n_frames(position)):
            chunk = reader.chunk(known, slot - first_slot)
            if chunk is None:
                raise self._missing(position, name, number)
            parts.append(chunk[start:stop])
            if (parts[-1] == NO_TOKEN).any():
                path = self.backends[number].locate(chunk_key(name, slot - first_slot))
                raise DamagedError(
                    f"{path} lacks tokens of utterance {self._name_of(position)!r}; run `strata "
                    "verify`"
                )
        found = np.concatenate(parts).astype(np.int64)
        if not dedup:
            return torch.from_numpy(found)
        units, durations = deduplicate(found)
        return torch.from_numpy(units), torch.from_numpy(durations)

    def check_tokens(self, name: str) -> None:
        """Check that every utterance has tokens.

        Raises:
            StoreError: A store has none of this name, or an utterance has none yet.
        """
        self._token_arrays(name)
        owner, slots, _, _ = self.piece_places()
        numbers = self._catalogue.store_numbers[owner] - self._place.number
        for number, backend in enumerate(self.backends):
            done = np.array(sorted(stored.slots_with_tokens(backend, name)), np.int64)
            first = Place(number + self._place.number).first_slot
            lacks = (numbers == number) & ~np.isin(slots - first, done)
            if lacks.any():
                raise self._missing(int(owner[np.argmax(lacks)]), name, number)

    def _name_of(self, position: int) -> str:
        return str(self._catalogue.ids[position].as_py())

    def _missing(self, position: int, name: str, number: int) -> StoreError:
        where = self.backends[number]
        if not where.exists(ATTRIBUTES):
            return StoreError(f"store {where} has vanished (is it still mounted?)")
        return StoreError(
            f"utterance {self._name_of(position)!r} has no tokens {name!r} yet; `strata tokenize "
            f"{where} name={name}` makes those that are missing"
        )

    def _token_readers(self) -> Sequence[TokenReader]:
        """Return what reads the tokens of each store; opened views share it."""
        readers = self._readers_of_tokens
        if len(readers) != len(self.backends):
            readers[:] = [TokenReader(backend) for backend in self.backends]
        return readers

    def _token_name(self, name: str | None) -> str:
        """Return the name of the tokens that are meant.

        Raises:
            StoreError: There are none, or there are several and no name is given.
        """
        if name is not None:
            return name
        first = self._token_readers()[0]
        if first.default_name is not None:
            return first.default_name
        names = self.token_names
        if len(names) == 1:
            first.default_name = names[0]
            return names[0]
        if names:
            raise StoreError(
                f"{self.location} has tokens {', '.join(names)}; say which, as in name={names[0]!r}"
            )
        raise StoreError(
            f"{self.location} has no tokens; `strata tokenize {self.location} layer=9 k=500` makes "
            "some"
        )

    def _token_arrays(self, name: str) -> list[StoredTokens]:
        """Return the tokens of each store.

        Raises:
            StoreError: A store has none of this name, or two have them from different codebooks.
        """
        arrays = []
        for reader, backend in zip(self._token_readers(), self.backends, strict=True):
            known = reader.array(name)
            if known is None:
                names = reader.names
                hint = did_you_mean(name, names) if names else "; it has none"
                raise StoreError(
                    f"store {backend} has no tokens {name!r}{hint}. `strata tokenize` makes them"
                )
            arrays.append(known)
        for known, backend in zip(arrays, self.backends, strict=True):
            if known.codebook_sha256 != arrays[0].codebook_sha256:
                raise StoreError(
                    f"tokens {name!r} of {self.backends[0]} and {backend} are of different "
                    "codebooks, so equal numbers mean different things; tokenize one store with "
                    "codebook= of the other"
                )
        return arrays
