"""Features of stored utterances, encoded again in fp32: the reference of `strata fidelity`.

The audio takes the path of an extraction: the same source, decoder, windows, and pieces of long
recordings. It must be the planned audio, as for a run that resumes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from pipeline.audio.decode import decode
from pipeline.audio.identity import audio_identity
from pipeline.audio.probe import count_channels
from pipeline.config import Config
from pipeline.encoders.base import Encoder
from pipeline.encoders.clips import encode_clips, encode_windows
from pipeline.errors import (
    AudioError,
    ConfigError,
    DamagedError,
    IdentityError,
    SourceError,
    counted,
    first_few,
)
from pipeline.events import Observer, announced
from pipeline.extract.encoder_setup import resolve_encoder_setup
from pipeline.extract.resources import find_resources
from pipeline.extract.stages.decode import Decoder, Utterance
from pipeline.sources.base import Source
from pipeline.sources.opening import open_source
from pipeline.store.documents import read_plan
from pipeline.store.format.codecs import FloatArray
from pipeline.store.format.identity import SOXR_KEY, compare
from pipeline.store.labels import places_of_ids
from pipeline.store.read.catalogue import Piece
from pipeline.store.read.features import FeatureStore

PRECISION = "fp32"


class EncodedReference:
    """Encodes utterances of a store again, one at a time, in this process.

    Attributes:
        description: What it is, for people.
        precision: Precision of the encoder.
        layers: Layers of the store.
        warnings: None.
    """

    precision: str | None = PRECISION
    warnings: tuple[str, ...] = ()

    def __init__(
        self,
        store: FeatureStore,
        config: Config,
        names: Sequence[str],
        observer: Observer | None = None,
    ) -> None:
        """Open the dataset, find utterances in it, and load the encoder.

        Args:
            store: The store.
            config: Dataset, model and extraction settings, as of the extraction. The dtype, what is
                kept, and the precision do not matter.
            names: Ids of the utterances that will be read.
            observer: Receives notes.

        Raises:
            ConfigError: A setting is wrong, or the store has a weighted sum of layers.
            SourceError: The dataset cannot be opened, or lacks one of the utterances.
            WeightsError: The weights cannot be found or read.
            IdentityError: The store holds features of another dataset, audio path or encoder.
            DamagedError: The store has no plan.
        """
        observer = observer or Observer()
        if "collapse" in store.attributes["identity"]:
            raise ConfigError(
                f"store {store.backend} has a weighted sum of layers, which no encoder returns; "
                "compare the store that it was made from, or give --against a float32 store that "
                "was made with the same weights"
            )
        if config.extract.layers == "all":  # the default
            config = replace(config, extract=replace(config.extract, layers=store.layers))
        config = replace(config, extract=replace(config.extract, precision=PRECISION))
        setup = resolve_encoder_setup(config, store.attributes)
        resources = find_resources(config.engine)
        with announced(observer, "opening the dataset"):
            source = open_source(config.dataset, count_channels)
        for note in source.notes:
            observer.note(note)
        self._rows = _rows_of(names, source, store)
        torch.set_num_threads(resources.threads)
        with announced(observer, "loading the encoder and hashing its weights"):
            self._encoder: Encoder = setup.loader(resources.device)()
        _check_identity(store, source, self._encoder.identity)
        plan = read_plan(store.backend)
        if plan is None:
            raise DamagedError(f"store {store.backend} has no plan.parquet; restore it from a copy")
        self._plan = plan
        self._decoder = Decoder(config.dataset, source.segment, decode, self._encoder, 1)
        self.layers = store.layers
        self.description = f"the audio encoded again in {PRECISION}"

    def read(self, name: str, piece: Piece, layers: Sequence[int]) -> FloatArray:
        """Encode an utterance, or a piece of one.

        Args:
            name: Its id, one of `names`.
            piece: Which piece.
            layers: Some of the store's layers.

        Returns:
            float32 [n_layers, n_frames, dim].

        Raises:
            AudioError: It cannot be decoded, or its audio has changed since it was planned.
        """
        row = self._plan.unit_rows(piece.unit).slice(piece.position, 1).to_pylist()[0]
        start, n_frames = row["piece_start"], piece.stop - piece.start
        if row["n_pieces"] > 1:
            row = self._of_whole_windows(row)
        item = self._decoder.decode(row, self._rows[name])
        if item.waveform is None:
            raise AudioError(item.record.reason or "it cannot be decoded")
        axes = [self._encoder.layers.index(layer) for layer in layers]
        features = self._encode(item)[axes]
        if row["n_pieces"] > 1:
            features = features[:, start - row["piece_start"] :][:, :n_frames]
        if features.shape[1] != n_frames:
            raise AudioError(
                f"it has {n_frames} frames in the store, and {features.shape[1]} now; restore the "
                "file of the extraction"
            )
        return np.asarray(features.float().cpu().numpy())

    def close(self) -> None:
        """Stop the decoder's threads."""
        self._decoder.close()

    def _of_whole_windows(self, row: dict[str, Any]) -> dict[str, Any]:
        """Return the row of a piece, extended to whole windows: a copy cuts anywhere."""
        first, last = row["piece_start"], row["piece_start"] + row["n_frames"]
        windows = self._encoder.windows.plan(row["n_samples"])
        start = max(window.keep_start for window in windows if window.keep_start <= first)
        stop = min(window.keep_stop for window in windows if window.keep_stop >= last)
        return row | {"piece_start": start, "n_frames": stop - start}

    def _encode(self, item: Utterance) -> torch.Tensor:
        """Encode a decoded utterance: [n_layers, n_frames, dim] on the encoder's device."""
        assert item.waveform is not None
        if not item.is_long:
            return encode_clips(self._encoder, [item.waveform])[0]
        parts = encode_windows(
            self._encoder,
            item.waveform,
            item.windows,
            item.statistics,
            sample_start=item.sample_start,
        )
        return torch.cat([features for _, features in parts], dim=1)


def _rows_of(names: Sequence[str], source: Source, store: FeatureStore) -> dict[str, int]:
    """Return the row of each utterance in the dataset.

    Raises:
        SourceError: The dataset lacks one.
    """
    ids = source.ids()
    rows = places_of_ids(pa.array(names, pa.string()), ids).tolist()
    missing = [name for name, row in zip(names, rows, strict=True) if row < 0]
    if missing:
        raise SourceError(
            f"{source.origin} lacks {len(missing)} of the {counted(len(names), 'utterance')} of "
            f"the sample of {store.backend}: {first_few(missing)}; it has {ids[0].as_py()!r} and "
            "others. Give the dataset= settings of the extraction, or --against another store"
        )
    return dict(zip(names, rows, strict=True))


def _check_identity(store: FeatureStore, source: Source, encoder: dict[str, Any]) -> None:
    """Compare what determines the features, but for the precision, the dtype and the labels.

    Raises:
        IdentityError: The store holds other features.
    """
    stored = store.attributes["identity"]
    there = {part: dict(stored.get(part, {})) for part in ("source", "audio", "encoder")}
    here = {
        "source": dict(source.identity),
        "audio": audio_identity(uses_soxr=SOXR_KEY in there["audio"]),
        "encoder": dict(encoder),
    }
    for identity in (there, here):
        identity["encoder"].pop("precision", None)
        identity["source"].pop("columns", None)  # labels are no part of a feature
        if set(store.layers) <= set(encoder["layers"]):
            identity["encoder"].pop("layers", None)
    differences = compare(there, here)
    if differences:
        raise IdentityError(
            f"store {store.backend} holds other features: {'; '.join(differences)}. Give the "
            "dataset=, model= and extract= settings of the extraction"
        )
