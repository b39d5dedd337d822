"""Comparison of a sample of stored features with a reference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from pipeline.errors import AudioError, ConfigError, StoreError
from pipeline.events import Observer
from pipeline.probing.encoder_description import describe_encoder, encoder_warnings
from pipeline.probing.fidelity.against import check_frames, precision_of
from pipeline.probing.fidelity.figures import Frames, LayerFigures, LayerLoss
from pipeline.probing.fidelity.sampling import Clip
from pipeline.store.format.codecs import Codec
from pipeline.store.format.layers import number_layers
from pipeline.store.read.catalogue import Piece
from pipeline.store.read.features import FeatureStore


class Reference(Protocol):
    """What stored features are compared with.

    Attributes:
        description: What it is, for people.
        precision: Precision of its encoder; None if unknown.
        layers: Its layers, as far as the store has them.
        warnings: Warnings to show before the figures.
    """

    description: str
    precision: str | None
    layers: tuple[int, ...]
    warnings: tuple[str, ...]

    def read(self, name: str, piece: Piece, layers: Sequence[int]) -> Frames:
        """Return the frames of a piece of an utterance: float32 [n_layers, n_frames, dim].

        Raises:
            AudioError: They cannot be made; the utterance is left out.
        """


@dataclass(frozen=True)
class LeftOut:
    """An utterance of the sample that could not be compared.

    Attributes:
        id: Its id.
        reason: Why.
    """

    id: str
    reason: str


@dataclass(frozen=True)
class Fidelity:
    """What a store loses against a reference.

    Attributes:
        dtype: Format of the store's frames.
        precision: Precision of the store's encoder; None if unknown.
        encoder: The encoder, for people.
        reference: What the store was compared with.
        reference_precision: Precision of the encoder there; None if unknown.
        n_utterances: Utterances that were compared; of a long recording one piece.
        n_frames: Their frames.
        layers: Figures of each layer.
        left_out: Utterances of the sample that could not be compared.
        warnings: Warnings to show before the figures.
    """

    dtype: str
    precision: str | None
    encoder: str
    reference: str
    reference_precision: str | None
    n_utterances: int
    n_frames: int
    layers: tuple[LayerFigures, ...]
    left_out: tuple[LeftOut, ...]
    warnings: tuple[str, ...]

    @property
    def includes_precision(self) -> bool:
        """Whether the loss includes that of the precision of the encoder."""
        return None not in (self.precision, self.reference_precision) and (
            self.precision != self.reference_precision
        )


def measure(
    store: FeatureStore,
    reference: Reference,
    clips: Sequence[Clip],
    layers: Sequence[int | str] | None = None,
    observer: Observer | None = None,
) -> Fidelity:
    """Compare stored features with a reference.

    Every piece that is read from a store is compared with its checksums.

    Args:
        store: The store.
        reference: What to compare it with.
        clips: A sample of its utterances.
        layers: Layers to compare; None compares all that both have.
        observer: Receives the number of compared utterances.

    Raises:
        ConfigError: A layer is not in both.
        StoreError: The store keeps no frames, or nothing could be compared.
        DamagedError: A store is damaged.
    """
    observer = observer or Observer()
    check_frames(store)
    names = store.named_layers
    chosen = choose_layers({layer: names[layer] for layer in reference.layers}, layers)
    codec = store.codec
    precisions = (precision_of(store), reference.precision)
    parts = None not in precisions and precisions[0] != precisions[1]
    losses = [LayerLoss() for _ in chosen]
    of_codec = [LayerLoss() for _ in chosen] if parts else None
    left_out, n_frames = [], 0
    for i, clip in enumerate(clips):
        observer.utterances_compared(i, len(clips))
        piece = clip.piece
        try:
            expected = reference.read(clip.name, piece, chosen)
        except AudioError as error:
            left_out.append(LeftOut(clip.name, str(error)))
            continue
        found = store.read(clip.name, chosen, piece.start, piece.stop, verify=True)
        n_frames += clip.n_frames
        for axis, loss in enumerate(losses):
            loss.add(expected[axis], found[axis].float().numpy())
            if of_codec is not None:
                of_codec[axis].add(expected[axis], _as_stored(codec, expected[axis]))
    observer.utterances_compared(len(clips), len(clips))
    found_layers = [
        loss.figures(layer, None if of_codec is None else of_codec[axis])
        for axis, (layer, loss) in enumerate(zip(chosen, losses, strict=True))
    ]
    if None in found_layers:
        first = f", first {left_out[0].id!r}: {left_out[0].reason}" if left_out else ""
        raise StoreError(
            f"nothing of {store.backend} can be compared: {len(left_out)} of {len(clips)} "
            f"utterances of the sample are not in the reference{first}; others do not vary, or "
            "have a single frame. Draw more with n_utterances=N, or others with seed=N"
        )
    return Fidelity(
        dtype=codec.name,
        precision=precisions[0],
        encoder=describe_encoder(store.attributes),
        reference=reference.description,
        reference_precision=precisions[1],
        n_utterances=len(clips) - len(left_out),
        n_frames=n_frames,
        layers=tuple(figures for figures in found_layers if figures is not None),
        left_out=tuple(left_out),
        warnings=(*encoder_warnings(store.attributes), *reference.warnings),
    )


def choose_layers(common: Mapping[int, str], layers: Sequence[int | str] | None) -> tuple[int, ...]:
    """Return the layers to compare, in the order of the store.

    Args:
        common: Names of the layers that the store and the reference have, by number.
        layers: Those that were asked for, by number or name; None for all.

    Raises:
        ConfigError: One is missing, or none is named.
    """
    if layers is None:
        return tuple(common)
    of = "the common part of store and reference"
    numbers = number_layers(layers, common, of, error=ConfigError, are_extractable=False)
    return tuple(layer for layer in common if layer in numbers)


def _as_stored(codec: Codec, values: Frames) -> Frames:
    """Return values as a reader would return them if they were stored: [n_frames, dim]."""
    scales = codec.measure(values)
    decoded = codec.decode(codec.encode(values, scales), scales)
    return np.asarray(decoded.astype(codec.value_dtype), np.float32)
