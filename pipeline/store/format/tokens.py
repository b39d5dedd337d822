"""Format of tokens: where they are, their documents, and their chunks. Pure arithmetic.

A token is the k-means code of a frame. The tokens of one codebook are a one-dimensional array on
the frame axis, `features.zarr/tokens/<name>`, with one chunk per slot that ends in its checksum.
The existence of a chunk is its commit. Chunks never change: a unit that is extracted again is in
another slot, which has no chunk yet. Versions 1 to 3 of the format allow tokens: readers of frames
do not see them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from crc32c import crc32c

from pipeline.errors import ConfigError
from pipeline.store.format.codebook import Codebook
from pipeline.store.format.layout import CHECKSUM, GROUP
from pipeline.store.format.zarr_json import array_document, attributes_checksum

TokenArray = npt.NDArray[np.uint16]

TOKENS = f"{GROUP}/tokens"
CODEBOOKS = "codebooks"
NO_TOKEN = 65_535
"""Value of frames without a token: those of no utterance, or of a dropped one."""
MAX_CODES = NO_TOKEN

_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}"
_CHUNK = re.compile(rf"{re.escape(TOKENS)}/({_NAME})/c/(\d+)")
_DOCUMENT = re.compile(rf"{re.escape(TOKENS)}/(?:({_NAME})/)?zarr\.json")
_CODEBOOK = re.compile(rf"{CODEBOOKS}/({_NAME})\.safetensors")


def check_name(name: str) -> None:
    """Check that tokens may have a name, which becomes that of a folder and of a file.

    Raises:
        ConfigError: They may not.
    """
    if not re.fullmatch(_NAME, name) or name == "zarr.json":
        raise ConfigError(
            f"name is {name!r:.80}; expected a name of tokens such as layer9-k500: letters, "
            "digits, dots, dashes and underscores, at most 64, the first a letter or digit"
        )


def array_key(name: str) -> str:
    """Return the key of an array of tokens."""
    return f"{TOKENS}/{name}"


def document_key(name: str) -> str:
    """Return the key of the zarr.json of an array of tokens."""
    return f"{TOKENS}/{name}/zarr.json"


def chunk_key(name: str, slot: int) -> str:
    """Return the key of the tokens of a slot."""
    return f"{TOKENS}/{name}/c/{slot}"


def codebook_key(name: str) -> str:
    """Return the key of the codebook of tokens."""
    return f"{CODEBOOKS}/{name}.safetensors"


def chunk_place(key: str) -> tuple[str, int] | None:
    """Return the name and the slot that a chunk is of; None of another object."""
    match = _CHUNK.fullmatch(key)
    return None if match is None else (match[1], int(match[2]))


def is_token_document(key: str) -> bool:
    """Return whether a key is that of a zarr.json of tokens, or of a codebook."""
    return bool(_DOCUMENT.fullmatch(key) or _CODEBOOK.fullmatch(key))


def attributes_of(name: str, codebook: Codebook) -> dict[str, Any]:
    """Return the attributes of an array of tokens, with a checksum of them."""
    own: dict[str, Any] = {
        "layer": codebook.layer,
        "k": codebook.k,
        "seed": codebook.seed,
        "no_token": NO_TOKEN,
        "codebook": codebook_key(name),
        "codebook_sha256": codebook.sha256,
        "encoder": dict(codebook.encoder),
    }
    return own | {CHECKSUM: {"crc32c": attributes_checksum(own, own), "of": sorted(own)}}


def are_intact(attributes: Mapping[str, Any]) -> bool:
    """Return whether the attributes of an array of tokens are as they were written."""
    checked = attributes.get(CHECKSUM)
    try:
        expected, names = checked["crc32c"], checked["of"]  # type: ignore[index]
        return bool(attributes_checksum(attributes, names) == expected)
    except (KeyError, TypeError):
        return False


def tokens_document(
    attributes: Mapping[str, Any], n_slots: int, frames_per_unit: int
) -> dict[str, Any]:
    """Return the zarr.json of an array of tokens."""
    return array_document(
        shape=(n_slots * frames_per_unit,),
        dtype="uint16",
        fill=NO_TOKEN,
        chunk=(frames_per_unit,),
        codecs=[{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "crc32c"}],
        names=["frame"],
        attributes=dict(attributes),
    )


def chunk_bytes(tokens: TokenArray) -> bytes:
    """Return the tokens of a slot as a chunk: little-endian values, then their checksum."""
    raw = np.ascontiguousarray(tokens, "<u2").tobytes()
    return raw + crc32c(raw).to_bytes(4, "little")


def parse_chunk(raw: bytes, frames_per_unit: int) -> TokenArray:
    """Return the tokens of a slot, uint16 [frames_per_unit].

    Raises:
        ValueError: The chunk has another size or a wrong checksum; the text says which.
    """
    size = 2 * frames_per_unit
    if len(raw) != size + 4:
        raise ValueError(f"has {len(raw):,} bytes instead of {size + 4:,}")
    if crc32c(memoryview(raw)[:size]) != int.from_bytes(raw[size:], "little"):
        raise ValueError("has a wrong checksum")
    return np.frombuffer(raw, "<u2", frames_per_unit).astype(np.uint16, copy=False)


def deduplicate(tokens: npt.NDArray[Any]) -> tuple[npt.NDArray[Any], npt.NDArray[np.int64]]:
    """Return the runs of equal tokens: the token of each, and its number of frames.

    Args:
        tokens: [n_frames].
    """
    starts = np.flatnonzero(np.concatenate([[True], tokens[1:] != tokens[:-1]])[: len(tokens)])
    return tokens[starts], np.diff(np.append(starts, len(tokens))).astype(np.int64)
