"""Training of a codebook, and the comparison of what is asked for with what a store has."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch

from pipeline.errors import ConfigError, DamagedError, IdentityError, counted
from pipeline.events import Observer, announced, rough_duration
from pipeline.store.format.codebook import Codebook
from pipeline.store.read.features import FeatureStore
from pipeline.store.tokens.stored import encoder_facts
from pipeline.tokens.frames import (
    LayerSource,
    SampledFrames,
    StoredFrames,
    default_sample,
    frames_in,
    sample,
)
from pipeline.tokens.kmeans import (
    Clustering,
    FloatArray,
    KMeansSettings,
    train,
)
from pipeline.tokens.nearest import Frames, NonFiniteFrameError

ALL = "all"
_NOTE_FROM_S = 5.0
_DATASET = ("kind", "name", "config", "split", "revision")


@dataclass(frozen=True)
class TokenSettings:
    """What codebook is asked for. None stands for what the store has, or for the default.

    Attributes:
        layer: The layer.
        weights: Weight of each layer of the store, for a weighted sum, in place of a layer.
        k: Number of codes.
        seed: Seed of the sample and of the initial centroids.
        where: Condition on the utterances that the codebook is trained on.
        sample_frames: Frames to train on, or `all`.
    """

    layer: int | None = None
    weights: tuple[float, ...] | None = None
    k: int | None = None
    seed: int | None = None
    where: str | None = None
    sample_frames: int | str | None = None

    @property
    def names_features(self) -> bool:
        """Whether a layer or weights are given."""
        return self.layer is not None or self.weights is not None

    def check_same(self, codebook: Codebook, name: str, where: str) -> None:
        """Check that a codebook is one that was made with these settings, as far as they are given.

        Args:
            codebook: The codebook.
            name: Name of the tokens, for the message.
            where: Where it is, for the message.

        Raises:
            IdentityError: It is another one; the message shows the differences.
        """
        known: dict[str, Any] = {
            "layer": codebook.layer,
            "weights": codebook.weights,
            "k": codebook.k,
            "seed": codebook.seed,
            "where": codebook.training.get("where"),
            "sample_frames": codebook.training.get("sample_frames"),
        }
        asked = {item.name: getattr(self, item.name) for item in fields(self)}
        differences = [
            f"{key} is {_shown(known[key])} there, {_shown(value)} here"
            for key, value in asked.items()
            if value is not None and value != known[key]
        ]
        if differences:
            raise IdentityError(
                f"{where} is of other settings: {'; '.join(differences)}. Give another name= than "
                f"{name}, or leave these settings out to go on with it"
            )


def train_codebook(
    store: FeatureStore,
    settings: TokenSettings,
    memory: int,
    device: torch.device,
    observer: Observer,
) -> Codebook:
    """Train a codebook.

    Args:
        store: The utterances to train on.
        settings: With a layer or weights, and k.
        memory: Bytes that sampled frames may take.
        device: Where to compute.
        observer: Receives notes.

    Raises:
        ConfigError: The sample does not fit in memory, or there are too few frames.
        StoreError: The store lacks the layer, or has no frames.
        DamagedError: A frame is not finite, or cannot be read.
    """
    assert settings.k is not None  # the caller has checked it
    source = LayerSource.of(store, settings.layer, settings.weights)
    seed, n_threads = settings.seed or 0, os.cpu_count() or 1
    n_frames = int(store.frame_counts.sum())
    n_sample = _sample_size(settings, n_frames, frames_in(source, memory), memory)
    with announced(observer, f"reading a sample of {n_sample:,} of {n_frames:,} frames"):
        sampled = sample(source, n_sample, seed, n_threads)
    plan = KMeansSettings(settings.k, seed)
    is_sample_first = settings.sample_frames == ALL and len(sampled) < n_frames
    progress = _Progress(observer, plan, n_frames if is_sample_first else 0, _n_stored(store))
    result = _trained(store, sampled, plan, device, n_threads, progress)
    frames: Frames = sampled
    if is_sample_first:
        progress.n_later = 0
        observer.note(
            f"training on all {counted(n_frames, 'frame')}, which are read again for each iteration"
        )
        frames = StoredFrames(source)
        result = _trained(store, frames, plan, device, n_threads, progress, result.centroids)
    if not result.is_converged:
        observer.note(
            f"WARNING: k-means ended after {counted(result.iterations, 'iteration')} before it "
            "converged; the codebook is usable"
        )
    identity = store.attributes["identity"]
    return Codebook(
        centroids=result.centroids,
        layer=settings.layer,
        weights=settings.weights,
        seed=seed,
        encoder=encoder_facts(store.attributes, with_layers=settings.weights is not None),
        training={
            "where": settings.where,
            "sample_frames": n_sample if settings.sample_frames is None else settings.sample_frames,
            "n_frames": len(frames),
            "inertia": result.inertia,
            "iterations": result.iterations,
            "source": {k: identity.get("source", {}).get(k) for k in _DATASET},
        },
    )


def _sample_size(settings: TokenSettings, n_frames: int, most: int, memory: int) -> int:
    """Return how many frames are sampled.

    Raises:
        ConfigError: They do not fit in memory.
    """
    given = settings.sample_frames
    assert settings.k is not None
    if isinstance(given, int):
        n_sample = min(given, n_frames)
        if n_sample > most:
            raise ConfigError(
                f"sample_frames={given:,} take {n_sample * memory // max(1, most):,} bytes; "
                f"memory={memory:,} holds {counted(most, 'frame')}. Raise memory, lower "
                "sample_frames, or train on all frames from the disk: sample_frames=all"
            )
        return n_sample
    n_sample = default_sample(settings.k, n_frames, most)
    if n_sample < min(settings.k, n_frames):
        raise ConfigError(
            f"memory={memory:,} holds {counted(most, 'frame')}; k={settings.k:,} needs at least "
            "as many. Raise memory"
        )
    return n_sample


def _trained(
    store: FeatureStore,
    frames: SampledFrames | StoredFrames,
    plan: KMeansSettings,
    device: torch.device,
    n_threads: int,
    progress: _Progress,
    init: FloatArray | None = None,
) -> Clustering:
    try:
        return train(frames, plan, device, n_threads, progress, init)
    except NonFiniteFrameError as error:
        position, frame = frames.owner(error.frame)
        name = store.ids[position]
        raise DamagedError(
            f"frame {frame} of utterance {name!r} of {store.location} is not finite, or too large "
            "to square; leave the utterance out with where=, or `strata verify` the store"
        ) from error


def _n_stored(store: FeatureStore) -> int:
    """Return the frames of all utterances of a store, of which some are selected."""
    return int(store.whole().frame_counts.sum())


class _Progress:
    """Notes about the iterations, with an estimate of the time left.

    Attributes:
        n_later: Frames of a training that follows this one; 0 if none does.
    """

    def __init__(
        self, observer: Observer, plan: KMeansSettings, n_later: int, n_stored: int
    ) -> None:
        """Start.

        Args:
            observer: Receives the notes.
            plan: Settings of the training.
            n_later: Frames of a training that follows this one; 0 if none does.
            n_stored: Frames that get tokens after the training.
        """
        self.n_later, self._n_stored = n_later, n_stored
        self._observer, self._plan = observer, plan
        self._start_s = self._noted_s = time.perf_counter()
        self._before = math.inf

    def __call__(
        self, iteration: int, n_frames: int, inertia: float, seconds: float, is_last: bool
    ) -> None:
        """Note an iteration, unless the last note is recent."""
        now_s = time.perf_counter()
        fall = (self._before - inertia) / inertia if inertia else 0.0
        self._before = inertia
        if now_s - self._noted_s < _NOTE_FROM_S:
            return
        self._noted_s = now_s
        left = ""
        if is_last:
            left_s = seconds * (self._plan.max_iterations - iteration)
            left = f"; at most {rough_duration(left_s)} left, less if it converges"
            if self.n_later:
                left += f", then the training on all {counted(self.n_later, 'frame')}"
            else:
                assigning_s = seconds / n_frames * self._n_stored
                left += f", then about {rough_duration(assigning_s)} to assign all frames"
        fell = f" ({fall:.2%} less)" if math.isfinite(fall) and iteration > 1 else ""
        self._observer.note(
            f"k-means on {counted(n_frames, 'frame')}, iteration {iteration}: inertia "
            f"{inertia:.6g} a frame{fell}, {seconds:.1f} s{left}"
        )


def _shown(value: object) -> str:
    text = str(list(value)) if isinstance(value, tuple) else str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def weights_of(given: Sequence[float] | None) -> tuple[float, ...] | None:
    """Return weights as a codebook has them."""
    return None if given is None else tuple(float(weight) for weight in given)
