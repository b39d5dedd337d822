"""Features that were just encoded, in the form in which a store holds them."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from crc32c import crc32c
from torch import Tensor

from pipeline.encoders.clips import encode_clips, encode_windows
from pipeline.errors import EncoderError
from pipeline.store.format.codecs import Codec, FloatArray, Stored
from pipeline.store.format.layout import Layout
from pipeline.store.format.records import FLAG_FP32, FLAG_PADDED, FLAG_WINDOWED
from pipeline.store.tensors import decode_into, encode_into, measure

if TYPE_CHECKING:
    from pipeline.encoders.encoder import SpeechEncoder

_LENGTH_BITS = 32


@dataclass(frozen=True)
class Piece:
    """Frames of an utterance that lie in one unit.

    Attributes:
        frames: Stored values, [n_layers, n_frames, dim].
        scales: What decoding needs, float32 [n_layers, n_scales, dim].
    """

    frames: Stored
    scales: FloatArray

    @property
    def n_frames(self) -> int:
        """Number of frames."""
        return int(self.frames.shape[1])


@dataclass(frozen=True)
class Encoded:
    """An utterance that is encoded and not committed yet.

    Attributes:
        id: Its id.
        fingerprint: That of its waveform; see `fingerprint_of`.
        n_samples: Its length.
        flags: `FLAG_*` values that apply.
        pieces: Its frames: one piece, or several if it is longer than a unit.
    """

    id: str
    fingerprint: int
    n_samples: int
    flags: tuple[str, ...]
    pieces: tuple[Piece, ...]

    @property
    def n_frames(self) -> int:
        """Number of frames."""
        return sum(piece.n_frames for piece in self.pieces)

    def features(self, codec: Codec) -> Tensor:
        """Return the values that readers of the store return: [n_layers, n_frames, dim]."""
        n_layers, _, dim = self.pieces[0].frames.shape
        out = torch.from_numpy(np.empty((n_layers, self.n_frames, dim), codec.value_dtype))
        start = 0
        for piece in self.pieces:
            stop = start + piece.n_frames
            for axis in range(n_layers):
                part = out[axis, start:stop]
                decode_into(codec, piece.frames[axis], part, piece.scales[axis])
            start = stop
        return out


def fingerprint_of(waveform: Tensor) -> int:
    """Return a number that differs for other samples: their crc32c, and their number.

    Args:
        waveform: float32 [n_samples].
    """
    samples = waveform.detach().cpu().contiguous().numpy()
    checksum: int = crc32c(samples.data.cast("B"))
    return (len(samples) << _LENGTH_BITS) | checksum


def encode(
    encoder: SpeechEncoder, layout: Layout, name: str, waveform: Tensor, fingerprint: int
) -> Encoded:
    """Encode an utterance alone.

    If a value cannot be stored, it is encoded again in fp32, as in an extraction.

    Args:
        encoder: The encoder.
        layout: Shapes of the store's arrays.
        name: Id of the utterance.
        waveform: float32 [n_samples].
        fingerprint: That of the waveform.

    Raises:
        EncoderError: The waveform cannot be encoded, or the features cannot be stored.
    """
    n_samples = waveform.numel()
    [features] = encoder([waveform])
    flags = [FLAG_PADDED] if n_samples < encoder.geometry.n_samples(1) else []
    flags += [FLAG_WINDOWED] if len(encoder.plan_windows(n_samples)) > 1 else []
    if not _fits(features, layout.codec):
        features, flags = _encode_in_fp32(encoder, waveform), [*flags, FLAG_FP32]
    if not _fits(features, layout.codec):
        raise EncoderError(
            f"utterance {name!r}: {layout.codec.name} cannot hold its features, even in fp32; use "
            "another store with dtype='float32'"
        )
    return Encoded(name, fingerprint, n_samples, tuple(flags), _pieces(features, layout))


def _fits(features: Tensor, codec: Codec) -> bool:
    low, high = torch.aminmax(features)
    return codec.fits(float(low), float(high))


def _encode_in_fp32(encoder: SpeechEncoder, waveform: Tensor) -> Tensor:
    windows = encoder.plan_windows(waveform.numel())
    if len(windows) == 1:
        [features] = encode_clips(encoder, [waveform], precision="fp32")
        return features.cpu()
    stats = encoder.utterance_stats(waveform)
    parts = encode_windows(encoder, waveform, windows, stats, precision="fp32")
    return torch.cat([part.cpu() for _, part in parts], dim=1)


def _pieces(features: Tensor, layout: Layout) -> tuple[Piece, ...]:
    """Cut features, [n_layers, n_frames, dim], into pieces that fit into a unit; encode each."""
    n_frames, codec = features.shape[1], layout.codec
    pieces = []
    for start in range(0, n_frames, layout.frames_per_unit):
        part = features[:, start : start + layout.frames_per_unit]
        frames = np.empty(tuple(part.shape), codec.dtype)
        scales = np.empty((len(part), codec.n_scales, part.shape[2]), np.float32)
        for values, out, layer_scales in zip(part, frames, scales, strict=True):
            layer_scales[...] = measure(codec, values)
            encode_into(codec, values, out, layer_scales)
        pieces.append(Piece(frames, scales))
    return tuple(pieces)


@dataclass(frozen=True)
class Placed:
    """A piece in its unit.

    Attributes:
        encoded: Its utterance.
        number: Number of the piece.
    """

    encoded: Encoded
    number: int = 0

    @property
    def piece(self) -> Piece:
        """The piece."""
        return self.encoded.pieces[self.number]


def divide(utterances: Sequence[Encoded], layout: Layout) -> list[list[Placed]]:
    """Divide utterances into units, in order; each piece of a long one is a unit.

    Args:
        utterances: Of which those that are no longer than a unit fit into one, in frames and
            number.
        layout: Shapes of the store's arrays.
    """
    units: list[list[Placed]] = []
    for is_long, group in itertools.groupby(utterances, lambda item: len(item.pieces) > 1):
        if is_long:
            units += [[Placed(item, i)] for item in group for i in range(len(item.pieces))]
            continue
        free = 0
        for item in group:
            is_full = free < item.n_frames or len(units[-1]) == layout.utterances_per_slot
            if is_full:
                units.append([])
                free = layout.frames_per_unit
            units[-1].append(Placed(item))
            free -= item.n_frames
    return units
