"""The features that a head was trained on, of new recordings.

Recordings go through an extraction into a temporary store, with the settings of the store that the
head was trained on: the same decoder, resampling, windows, batches, precision and rounding. Only
what the head needs is computed and kept: the layers up to its own, and statistics over frames for a
head that needs no more.
"""

from __future__ import annotations

import json
from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from pipeline.audio.identity import audio_identity
from pipeline.config import Config, check_code, load_config
from pipeline.encoders.base import Encoder
from pipeline.encoders.clips import encode_clips, encode_windows
from pipeline.encoders.modules.registration import allow_target
from pipeline.errors import ConfigError, EncoderError, IdentityError
from pipeline.events import CommittedUnit, Observer, announced
from pipeline.extract.encoder_setup import EncoderSetup, resolve_encoder_setup
from pipeline.extract.resources import find_resources
from pipeline.extract.run import extract
from pipeline.heads.facts import HeadFacts
from pipeline.predict.heads import input_text
from pipeline.predict.own_code import is_own_code, own_code_settings
from pipeline.store.format.codecs import DEFAULT_CODEC, INT8, Codec
from pipeline.store.format.geometry import FrameGeometry
from pipeline.store.format.identity import SOXR_KEY, compare
from pipeline.store.format.layers import labels_of
from pipeline.store.format.pooling import pool
from pipeline.store.read.features import FeatureStore
from pipeline.store.read.opening import open_store
from pipeline.transforms.collapse import collapse

SETTINGS = ("model", "engine.threads", "engine.device", "extract.precision", "extract.max_batch_s")
"""Settings that a user may give: those of another place of the weights, and of the computation."""

_OPTIONS = {"huggingface": "hf", "checkpoint": "checkpoint"}
"""Values of `model=` for the sources of models without a short name."""
_SHOWN = 2
"""Differences of two encoders that a message lists."""
_PER_STORE = 1000
"""Recordings of a temporary store; more go through several, one after the other."""


@dataclass(frozen=True)
class Encoded:
    """Some recordings after their extraction.

    Attributes:
        names: Their names.
        store: Features of those that could be encoded, by name.
        reasons: Why others could not, by name.
    """

    names: tuple[str, ...]
    store: FeatureStore
    reasons: dict[str, str]


class HeadEncoder:
    """The encoder of a head, with its weights loaded.

    Args:
        facts: What the head was trained on.
        overrides: Settings of the user, of `SETTINGS`, e.g. `model.weights=PATH`.
        observer: Receives notes.
        allow_code: Whether code may run that `overrides` name.

    Raises:
        ConfigError: A setting is wrong or not allowed, or the place of the weights is unknown.
        WeightsError: The weights cannot be found or read.
        IdentityError: They are not those of the head.
    """

    def __init__(
        self,
        facts: HeadFacts,
        overrides: Sequence[str],
        observer: Observer,
        allow_code: bool = False,
    ) -> None:
        self._facts = facts
        self._config = _config_of(facts, overrides)
        check_code(self._config.model, allow_code)
        allow_target(self._config.model)
        self._setup: EncoderSetup = resolve_encoder_setup(self._config)
        resources = find_resources(self._config.engine)
        with announced(observer, "loading the encoder and hashing its weights"):
            self._encoder: Encoder = self._setup.loader(resources.device)()
        self._encoder.one_by_one |= facts.one_by_one
        self._clock = self._encoder.clock
        _check_encoder(facts, self._encoder.identity, observer)
        _check_audio(facts, observer)
        if self._encoder.is_random:
            observer.note(
                "WARNING: the encoder's weights are RANDOM, as in the sweep: the predictions mean "
                "nothing"
            )

    @property
    def geometry(self) -> FrameGeometry:
        """Sample rate, hop and receptive field of the encoder."""
        return self._encoder.geometry

    def features(self, waveform: Tensor) -> Tensor:
        """Encode one waveform, rounded as in the store: float32 [n_layers, n_frames, dim].

        Args:
            waveform: float32 [n_samples], at the encoder's rate; see `as_waveform`.

        Raises:
            EncoderError: A feature cannot be stored.
        """
        encoder = self._encoder
        windows = encoder.windows.plan(len(waveform))
        if len(windows) == 1:
            features = encode_clips(encoder, [waveform])[0]
        else:
            statistics = encoder.utterance_stats(waveform)
            parts = encode_windows(encoder, waveform, windows, statistics)
            features = torch.cat([part for _, part in parts], dim=1)
        stored = _rounded(features, self._setup.form.codec)
        weights = self._collapse_weights()
        if weights is None:
            return stored
        mixed = torch.tensordot(torch.tensor(weights), stored, dims=1).unsqueeze(0)
        return _rounded(mixed, self._setup.form.codec)

    def statistics(self, features: Tensor) -> Tensor:
        """Return the statistics that the head gets, as the store has them: [n_layers, n_inputs]."""
        codec = self._setup.form.codec
        values = features.numpy()
        scales = codec.measure(values)
        stored = codec.encode(values, scales)
        pooled = torch.from_numpy(pool(codec, stored, scales, self._facts.pooling))
        return pooled.transpose(0, 1).flatten(1)

    def encode(
        self, recordings: Sequence[tuple[str, Path]], observer: Observer
    ) -> Generator[Encoded, None, None]:
        """Encode recordings, up to a thousand at a time; their features exist until the next.

        Args:
            recordings: Name and file of each; names are unique.
            observer: Receives notes and progress.

        Raises:
            StrataError: As `extract`.
        """
        before = torch.get_num_threads()  # an extraction sets its own number
        n_done = 0
        observer.recordings_encoded(0, len(recordings))
        try:
            for start in range(0, len(recordings), _PER_STORE):
                some = recordings[start : start + _PER_STORE]
                with TemporaryDirectory(prefix="strata-predict-") as folder:
                    relay = _Relay(observer, n_done, len(some), len(recordings))
                    yield self._extract(some, Path(folder), relay)
                n_done += len(some)
                observer.recordings_encoded(n_done, len(recordings))
        finally:
            torch.set_num_threads(before)

    def _extract(
        self, recordings: Sequence[tuple[str, Path]], folder: Path, observer: Observer
    ) -> Encoded:
        listed = folder / "recordings.jsonl"
        rows = [json.dumps({"id": name, "path": str(path)}) for name, path in recordings]
        listed.write_text("\n".join(rows) + "\n", encoding="utf-8")
        store = folder / "features"
        config = _with_paths(self._config, listed, store)
        try:
            extract(config, observer, encoder=self._encoder)
        finally:
            self._encoder.clock = self._clock  # that of the worker has stopped
        weights = self._collapse_weights()
        if weights is not None:
            parent, store = store, folder / "collapsed"
            collapse(parent, store, weights, observer=_Notes(observer))
        opened = open_store(store)
        reasons = {row["id"]: row["reason"] for row in opened.quarantined.to_pylist()}
        return Encoded(tuple(name for name, _ in recordings), opened, reasons)

    def _collapse_weights(self) -> list[float] | None:
        """Return the weights of the layers whose sum the head was trained on, if it was."""
        found: dict[str, Any] | None = self._facts.identity.get("collapse")
        return None if found is None else list(found["weights"])


class _Notes(Observer):
    """Passes notes on."""

    def __init__(self, observer: Observer) -> None:
        self._observer = observer

    def note(self, line: str) -> None:
        """Pass a note on."""
        self._observer.note(line)


class _Relay(_Notes):
    """Passes the notes of an extraction on, and its progress as a number of recordings."""

    def __init__(self, observer: Observer, before: int, n: int, total: int) -> None:
        super().__init__(observer)
        self._before, self._n, self._total = before, n, total
        self._done = 0

    def unit_committed(self, report: CommittedUnit) -> None:
        """Count the recordings of a unit; pieces of long ones count as such."""
        self._done = min(self._n, self._done + report.n_ok + report.n_quarantined)
        if self._done < self._n:
            self._observer.recordings_encoded(self._before + self._done, self._total)


def check_features(facts: HeadFacts, store: FeatureStore, observer: Observer) -> None:
    """Check that a store holds features of the kind that a head was trained on.

    Raises:
        IdentityError: Another encoder made them, or another sum of layers.
        ConfigError: It lacks a layer.
    """
    identity: dict[str, Any] = store.attributes["identity"]
    differences = compare(_of_encoder(facts.identity), _of_encoder(identity))
    if differences:
        raise IdentityError(
            f"give a store of the head's encoder, {facts.identity['encoder'].get('model')}, "
            f"or audio files; store {store.location} holds features of another encoder than the "
            f"head was trained on: {_in_short(differences)}"
        )
    missing = [layer for layer in facts.layers if layer not in store.layers]
    if missing:
        raise ConfigError(
            f"store {store.location} has no layer {', '.join(map(str, missing))}, which the head "
            f"on {input_text(facts)} needs; it has {labels_of(store.named_layers)}. Choose another "
            "layer=, "
            "or a store that has it"
        )
    ours, theirs = (
        {"dtype": _dtype(found), "precision": _precision(found)}
        for found in (facts.identity, identity)
    )
    if ours != theirs:
        observer.note(f"{'; '.join(compare(ours, theirs))}: features differ by that rounding")


def _dtype(identity: dict[str, Any]) -> str:
    return str(identity.get("dtype", DEFAULT_CODEC.name))


def _precision(identity: dict[str, Any]) -> Any:
    return identity["encoder"].get("precision")


def _of_encoder(identity: dict[str, Any]) -> dict[str, Any]:
    """Return what must agree: the encoder without its layers and its precision, and the sum."""
    encoder = {k: v for k, v in identity["encoder"].items() if k not in ("layers", "precision")}
    found = {"encoder": json.loads(json.dumps(encoder))}
    if "collapse" in identity:
        found["collapse"] = {key: identity["collapse"][key] for key in ("layers", "weights")}
    return found


def _config_of(facts: HeadFacts, overrides: Sequence[str]) -> Config:
    """Return the configuration of an extraction that makes the features of a head."""
    for item in overrides:
        key = item.partition("=")[0]
        if key not in SETTINGS and not key.startswith("model."):
            raise ConfigError(
                f"{item} is not a setting of predict; it takes layer=, model=, model.*, "
                f"{', '.join(SETTINGS[1:])}. The features are those of the sweep"
            )
    identity = facts.identity
    encoder = identity["encoder"]
    layers = identity["collapse"]["layers"] if "collapse" in identity else facts.layers
    dtype = _dtype(identity)
    settings = [
        "dataset=manifest",
        "dataset.audio_column=path",
        "dataset.id_column=id",
        "engine=inline",
        *_model_settings(facts, overrides),
        f"extract.layers={list(layers)}",
        f"extract.dtype={dtype}",
        *(f"extract.{k}={encoder[k]}" for k in ("max_window_s", "context_s") if k in encoder),
        *([f"extract.precision={encoder['precision']}"] if "precision" in encoder else []),
    ]
    if not facts.needs_frames and "collapse" not in identity:
        keep = "[pooled]" if dtype != INT8.name else "[frames,pooled]"
        pooling = ",".join(facts.pooling)
        settings += [f"extract.keep={keep}", f"extract.pooling=[{pooling}]"]
    return load_config([*settings, *overrides])


def _model_settings(facts: HeadFacts, overrides: Sequence[str]) -> list[str]:
    """Return the settings that load the encoder of a head, where the user does not say."""
    if any(item.startswith("model=") for item in overrides):
        return []
    known = {key: value for key, value in facts.model.items() if value is not None}
    if is_own_code(known):
        return own_code_settings(facts, known)
    option = known.pop("option", None)
    if option is None and "source" not in known and "weights" in known:
        option = facts.identity["encoder"].get("model")
    if "source" in known or option is not None:
        source = known.pop("source", "torchaudio")
        if option is None:
            option = _OPTIONS.get(source) or known.pop("name", None)
        is_known = source == "torchaudio" or source in _OPTIONS
        named = [] if is_known else [f"model.source={source}"]
        unset: dict[str, Any] = {"seed": 0, "allow_pickle": False}
        if option in _OPTIONS.values():
            unset = {key: known.get(key) for key in ("seed", "weights")} | {"allow_pickle": False}
        given = {key: value for key, value in known.items() if unset.get(key) != value}
        return [f"model={option}", *named, *(f"model.{k}={_text(v)}" for k, v in given.items())]
    name, given_weights = facts.identity["encoder"].get("model"), facts.weights
    if given_weights in ("pretrained", "random") and name is not None:
        return [f"model={name}", f"model.weights={given_weights}"]
    raise ConfigError(
        f"the sweep does not say where the weights of its encoder ({name}, from {given_weights}) "
        "are; give model=NAME model.weights=PATH, or model=hf model.name=ID_OR_DIR. Their hash is "
        "compared"
    )


def _in_short(differences: Sequence[str]) -> str:
    """Return the first differences, and how many more there are."""
    more = len(differences) - _SHOWN
    return "; ".join(differences[:_SHOWN]) + (f"; and {more} more" if more > 0 else "")


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _check_encoder(facts: HeadFacts, encoder: dict[str, Any], observer: Observer) -> None:
    """Compare a loaded encoder with that of a head.

    Raises:
        IdentityError: They differ by more than the layers and the precision.
    """
    there, here = _of_encoder(facts.identity), _of_encoder({"encoder": encoder})
    differences = compare(there["encoder"], here["encoder"])
    if differences:
        remedy = "weights of the sweep by model.weights=PATH, or model=hf model.name=ID_OR_DIR"
        if is_own_code(facts.model):
            remedy = "code of the sweep, with its model.name, model.layers and model.version"
        raise IdentityError(
            f"give the {remedy}; the head was trained with another encoder: "
            f"{_in_short(differences)}"
        )
    before, now = _precision(facts.identity), encoder.get("precision")
    if before != now:
        observer.note(
            f"precision is {now}, and {before} in the sweep: features agree within rounding"
        )


def _check_audio(facts: HeadFacts, observer: Observer) -> None:
    """Note if waveforms are made in another way than for the sweep."""
    there = dict(facts.identity.get("audio", {}))
    here = audio_identity(uses_soxr=SOXR_KEY in there)
    differences = compare({"audio": there}, {"audio": json.loads(json.dumps(here))})
    if differences:
        observer.note(f"WARNING: waveforms differ from the sweep's: {'; '.join(differences)}")


def _with_paths(config: Config, listed: Path, store: Path) -> Config:
    dataset = replace(config.dataset, path=str(listed))
    return replace(config, dataset=dataset, store=str(store))


def _rounded(features: Tensor, codec: Codec) -> Tensor:
    """Return features as a reader of the store gets them, float32 [n_layers, n_frames, dim].

    Raises:
        EncoderError: A value cannot be stored.
    """
    low, high = torch.aminmax(features)
    if not codec.fits(float(low), float(high)):
        raise EncoderError(
            f"a feature is not finite or too large for {codec.name}; give extract.precision=fp32, "
            "or predict the file, which is encoded again in fp32"
        )
    values = features.float().cpu().numpy()
    scales = codec.measure(values)
    return torch.from_numpy(codec.decode(codec.encode(values, scales), scales)).float()
