"""Arrays of tokens and codebooks in the storage of a store: found, read, written and removed."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.errors import DamagedError, StoreError, UnreachableError
from pipeline.store.backend.base import Backend
from pipeline.store.format.codebook import Codebook
from pipeline.store.format.layout import GROUP
from pipeline.store.format.tokens import (
    CODEBOOKS,
    NO_TOKEN,
    TOKENS,
    TokenArray,
    are_intact,
    array_key,
    attributes_of,
    check_name,
    chunk_bytes,
    chunk_key,
    codebook_key,
    document_key,
    parse_chunk,
    tokens_document,
)
from pipeline.store.format.zarr_json import group_document
from pipeline.store.read.joined.columns import what_must_agree
from pipeline.store.serialization import json_bytes

GROUP_KEY = f"{TOKENS}/zarr.json"
_CODEBOOK_NAME = re.compile(r"(.+)\.safetensors")


@dataclass(frozen=True)
class StoredTokens:
    """An array of tokens of a store.

    Attributes:
        name: Its name.
        attributes: Layer, k, seed, codebook and encoder.
        frames_per_unit: Frames of a slot.
        n_slots: Length of the array in slots.
    """

    name: str
    attributes: Mapping[str, Any]
    frames_per_unit: int
    n_slots: int

    @property
    def k(self) -> int:
        """Number of codes."""
        return int(self.attributes["k"])

    @property
    def codebook_sha256(self) -> str:
        """Hash of the codebook."""
        return str(self.attributes["codebook_sha256"])


def token_names(backend: Backend) -> list[str]:
    """Return the names of the arrays of tokens, sorted."""
    return [name for name in token_folders(backend) if backend.exists(document_key(name))]


def token_folders(backend: Backend) -> list[str]:
    """Return the names of which there is anything, even if it is no array (yet), sorted."""
    return sorted(name for name in backend.children(TOKENS) if name != "zarr.json")


def codebook_names(backend: Backend) -> list[str]:
    """Return the names of the codebooks, sorted."""
    matches = (_CODEBOOK_NAME.fullmatch(name) for name in backend.children(CODEBOOKS))
    return sorted(match[1] for match in matches if match)


def encoder_facts(attributes: Mapping[str, Any], with_layers: bool = False) -> dict[str, Any]:
    """Return what the features of a store are, as `Codebook.encoder` has it.

    Args:
        attributes: Attributes of the store.
        with_layers: Whether its layers count, as they do for a weighted sum of them.
    """
    facts = what_must_agree(attributes, attributes, with_layers)[0]
    facts["dtype"] = attributes["identity"].get("dtype")
    found: dict[str, Any] = json.loads(json.dumps(facts, sort_keys=True))  # as it is read back
    return found


def read_tokens(backend: Backend, name: str) -> StoredTokens | None:
    """Return an array of tokens; None if there is none of this name.

    Raises:
        DamagedError: Its document is damaged.
    """
    key = document_key(name)
    path = backend.locate(key)
    try:
        document = json.loads(backend.read(key))
        attributes = document["attributes"]
        (length,), (chunk,) = (
            document["shape"],
            document["chunk_grid"]["configuration"]["chunk_shape"],
        )
        n_slots, rest = divmod(length, chunk)
        is_intact = not rest and are_intact(attributes)
        expected = tokens_document(attributes, n_slots, chunk)
    except FileNotFoundError:
        return None
    except UnreachableError:
        raise
    except (OSError, ValueError, KeyError, TypeError, ZeroDivisionError) as error:
        raise DamagedError(f"{path} is not readable ({error}); run `strata verify`") from error
    if not is_intact or {**document, "attributes": {}} != {**expected, "attributes": {}}:
        raise DamagedError(f"{path} was changed or is damaged; run `strata verify`")
    return StoredTokens(name, attributes, chunk, n_slots)


def read_codebook(backend: Backend, name: str) -> Codebook | None:
    """Return the codebook of tokens; None if there is none of this name.

    Raises:
        DamagedError: It is damaged.
    """
    key = codebook_key(name)
    try:
        raw = backend.read(key)
    except FileNotFoundError:
        return None
    return Codebook.from_bytes(raw, backend.locate(key))


def put_codebook(backend: Backend, name: str, codebook: Codebook) -> bool:
    """Write a codebook, unless there is one of this name; return whether it was written."""
    return backend.put_if_absent(codebook_key(name), [codebook.to_bytes()])


def is_group_sound(backend: Backend) -> bool:
    """Return whether the zarr.json of the group of all tokens is there as it was written."""
    try:
        return backend.read(GROUP_KEY) == json_bytes(group_document({}))
    except FileNotFoundError:
        return False


def put_group(backend: Backend) -> None:
    """Write the zarr.json of the group of all tokens."""
    backend.put(GROUP_KEY, [json_bytes(group_document({}))])


def put_document(
    backend: Backend, name: str, codebook: Codebook, frames_per_unit: int, n_slots: int
) -> None:
    """Write the zarr.json of an array of tokens, or make the array longer.

    Raises:
        StoreError: There is one of another codebook.
    """
    if not is_group_sound(backend):
        put_group(backend)
    try:
        known = read_tokens(backend, name)
    except DamagedError:
        known = None
    if known is not None:
        if known.codebook_sha256 != codebook.sha256:
            raise StoreError(
                f"tokens {name!r} of {backend} are of another codebook than "
                f"{backend.locate(codebook_key(name))}; `strata drop {backend} tokens={name} "
                "confirm=true` removes them"
            )
        if known.n_slots >= n_slots and known.frames_per_unit == frames_per_unit:
            return
    document = tokens_document(attributes_of(name, codebook), n_slots, frames_per_unit)
    backend.put(document_key(name), [json_bytes(document)])


def slots_with_tokens(backend: Backend, name: str) -> set[int]:
    """Return the slots that have a chunk of tokens, by one listing."""
    names = backend.children(f"{array_key(name)}/c")
    return {int(item) for item in names if item.isdecimal()}


def read_chunk(backend: Backend, name: str, slot: int, frames_per_unit: int) -> TokenArray | None:
    """Return the tokens of a slot, uint16 [frames_per_unit]; None if it has none.

    Raises:
        DamagedError: They are damaged.
    """
    key = chunk_key(name, slot)
    try:
        return parse_chunk(backend.read(key), frames_per_unit)
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise DamagedError(
            f"{backend.locate(key)} {error}; `strata verify --repair` removes it, and `strata "
            f"tokenize {backend} name={name}` makes it again"
        ) from error


def put_chunk(backend: Backend, name: str, slot: int, tokens: TokenArray) -> None:
    """Write the tokens of a slot, atomically."""
    backend.put(chunk_key(name, slot), [chunk_bytes(tokens)])


def discard_tokens_of(backend: Backend, slot: int) -> None:
    """Remove the tokens of a slot, of all codebooks."""
    for name in token_folders(backend):
        backend.delete(chunk_key(name, slot))


def move_tokens(
    backend: Backend, slot: int, new: int, gone: Collection[tuple[int, int]]
) -> list[str]:
    """Copy the tokens of a slot to another one, without those of some of its frames.

    Args:
        backend: The store.
        slot: The slot.
        new: Where the same frames are, but for some that were dropped.
        gone: Ranges of the dropped frames, within the slot.

    Returns:
        Problems: tokens that are damaged are not copied, so that they are made again.
    """
    problems = []
    for name in token_folders(backend):
        try:
            known = read_tokens(backend, name)
            if known is None:
                continue
            found = read_chunk(backend, name, slot, known.frames_per_unit)
        except DamagedError as error:
            problems.append(str(error))
            continue
        if found is None:
            continue
        tokens = found.copy()
        for start, stop in gone:
            tokens[start:stop] = NO_TOKEN
        if known.n_slots <= new:
            attributes = dict(known.attributes)
            document = tokens_document(attributes, new + 1, known.frames_per_unit)
            backend.put(document_key(name), [json_bytes(document)])
        put_chunk(backend, name, new, tokens)
    return problems


def remove_tokens(backend: Backend, name: str, confirm: bool = True) -> tuple[int, int]:
    """Remove tokens and their codebook; what another run has left is removed, too.

    The codebook goes last: while it is there, the name is taken.

    Args:
        backend: The store.
        name: Name of the tokens.
        confirm: Whether to remove them; else they are only counted.

    Returns:
        Number of chunks, and their bytes.
    """
    keys = [key for key in backend.list(array_key(name)) if key != document_key(name)]
    n_bytes = sum(backend.size(key) for key in keys)
    if not confirm:
        return len(keys), n_bytes
    for key in keys:
        backend.delete(key)
    backend.delete(document_key(name))
    backend.delete(codebook_key(name))
    backend.remove_folder(array_key(name))
    if not token_names(backend):
        backend.delete(GROUP_KEY)
        backend.remove_folder(TOKENS)
    backend.sync(GROUP)
    return len(keys), n_bytes


def check_free(backend: Backend, name: str) -> None:
    """Check that tokens of a new name can be told from the others on any file system.

    Raises:
        ConfigError: The name is none.
        StoreError: Another name differs only in upper and lower case.
    """
    check_name(name)
    known = {*token_names(backend), *codebook_names(backend)}
    for other in known:
        if other != name and other.lower() == name.lower():
            raise StoreError(
                f"store {backend} has tokens {other!r}; name={name} differs from it only in upper "
                "and lower case, which some file systems do not distinguish: choose another name"
            )


def counts_of(tokens: npt.NDArray[Any], k: int) -> npt.NDArray[np.int64]:
    """Return how often each code occurs, without frames that have none: int64 [k]."""
    valid = tokens[tokens != NO_TOKEN]
    return np.bincount(valid, minlength=k).astype(np.int64)
