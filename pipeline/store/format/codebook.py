"""Codebooks: the centroids that tokens are made with, and their file. Pure arithmetic.

The file is one of safetensors (https://huggingface.co/docs/safetensors): a tensor `centroids`, and
metadata of which `codebook` is a JSON object. It is written by hand, because the library writes the
metadata in a random order: equal codebooks have equal bytes.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.errors import DamagedError, IdentityError
from pipeline.store.format.identity import compare

FloatArray = npt.NDArray[np.float32]

_KIND = "strata codebook 1"
_SIZE = struct.Struct("<Q")
_MAX_HEADER = 100 << 20
_FREE = ("audio.", "dtype", "encoder.precision", "encoder.max_window_s", "encoder.context_s")
"""What may differ between the store that a codebook was trained on and one that it is applied to,
with a note: how the audio is decoded, and how exactly the features are computed and stored."""


@dataclass(frozen=True)
class Codebook:
    """Centroids of k-means over the frames of a layer.

    Attributes:
        centroids: float32 [k, dim].
        layer: The layer; None for a weighted sum of layers.
        weights: Weight of each layer of `encoder["layers"]`, for a weighted sum; else None.
        seed: Seed of the training.
        encoder: What the features are: the encoder without its layers, how audio is decoded,
            geometry, dtype and feature_dim. For a weighted sum also its layers.
        training: How it was trained: where, sample_frames, n_frames, inertia (mean squared distance
            of the training frames), iterations, and the source of the utterances.
    """

    centroids: FloatArray = field(repr=False)
    layer: int | None
    weights: tuple[float, ...] | None
    seed: int
    encoder: Mapping[str, Any] = field(repr=False)
    training: Mapping[str, Any]

    @property
    def k(self) -> int:
        """Number of centroids."""
        return len(self.centroids)

    @property
    def dim(self) -> int:
        """Features of a centroid."""
        return int(self.centroids.shape[1])

    @property
    def facts(self) -> dict[str, Any]:
        """Everything but the centroids, ready for JSON."""
        return {
            "layer": self.layer,
            "weights": None if self.weights is None else list(self.weights),
            "k": self.k,
            "seed": self.seed,
            "encoder": dict(self.encoder),
            "training": dict(self.training),
        }

    @cached_property
    def sha256(self) -> str:
        """Hash of the centroids and of all facts; what tokens state of their codebook."""
        return hashlib.sha256(self._facts_text.encode() + self._raw).hexdigest()

    @property
    def _facts_text(self) -> str:
        return json.dumps(self.facts, sort_keys=True, separators=(",", ":"))

    @property
    def _raw(self) -> bytes:
        return np.ascontiguousarray(self.centroids, "<f4").tobytes()

    def to_bytes(self) -> bytes:
        """Return the codebook as a file of safetensors."""
        raw = self._raw
        metadata = {"kind": _KIND, "codebook": self._facts_text, "sha256": self.sha256}
        described = {
            "dtype": "F32",
            "shape": list(self.centroids.shape),
            "data_offsets": [0, len(raw)],
        }
        header = json.dumps({"__metadata__": metadata, "centroids": described}).encode()
        header += b" " * (-len(header) % 8)
        return _SIZE.pack(len(header)) + header + raw

    @classmethod
    def from_bytes(cls, raw: bytes, where: str) -> Codebook:
        """Read a file that `to_bytes` made.

        Args:
            raw: Its content.
            where: Where it is, for messages.

        Raises:
            DamagedError: It is no codebook, or was changed.
        """
        try:
            found, sha256 = cls._parsed(raw)
        except (ValueError, KeyError, TypeError, AttributeError, struct.error) as error:
            raise DamagedError(
                f"{where} is no codebook of `strata tokenize` ({error}); expected a file of "
                "safetensors as in the folder codebooks/ of a store"
            ) from error
        if found.sha256 != sha256:
            raise DamagedError(
                f"{where} was changed after it was written, or is damaged: its sha256 differs; "
                "restore it from a copy"
            )
        return found

    @classmethod
    def _parsed(cls, raw: bytes) -> tuple[Codebook, str]:
        (size,) = _SIZE.unpack_from(raw)
        if size > min(_MAX_HEADER, len(raw) - _SIZE.size):
            raise ValueError("its header is longer than the file")
        header = json.loads(raw[_SIZE.size : _SIZE.size + size])
        metadata, tensor = header["__metadata__"], header["centroids"]
        if metadata["kind"] != _KIND:
            raise ValueError(f"its kind is {metadata['kind']!r}")
        facts = json.loads(metadata["codebook"])
        k, dim = tensor["shape"]
        start, stop = (_SIZE.size + size + at for at in tensor["data_offsets"])
        values = np.frombuffer(raw[start:stop], "<f4").reshape(k, dim).astype(np.float32)
        if facts["k"] != k or stop != len(raw) or not np.isfinite(values).all():
            raise ValueError("its centroids do not fit its metadata")
        weights = facts["weights"]
        found = cls(
            centroids=values,
            layer=facts["layer"],
            weights=None if weights is None else tuple(weights),
            seed=facts["seed"],
            encoder=facts["encoder"],
            training=facts["training"],
        )
        return found, str(metadata["sha256"])

    def differences_from(self, encoder: Mapping[str, Any]) -> tuple[list[str], list[str]]:
        """Compare what the codebook was trained on with the features of another store.

        Args:
            encoder: As `Codebook.encoder`.

        Returns:
            Differences that forbid to apply the codebook, and those that may be.
        """
        found = compare(dict(self.encoder), dict(encoder))
        free = [text for text in found if text.startswith(_FREE)]
        return [text for text in found if text not in free], free

    def check_applies(self, encoder: Mapping[str, Any], codebook: str, store: str) -> list[str]:
        """Check that the codebook is one for the features of a store.

        Args:
            encoder: As `Codebook.encoder`, of the store.
            codebook: Where the codebook is, for messages.
            store: Where the store is, for messages.

        Returns:
            Differences that may be, for a note.

        Raises:
            IdentityError: It is for other features; the message lists every difference.
        """
        wrong, free = self.differences_from(encoder)
        if wrong:
            raise IdentityError(
                f"codebook {codebook} (there) is for other features than store {store} (here) has: "
                f"{'; '.join(wrong)}. Train one on this store: leave codebook= out"
            )
        return free
