"""Statistics of the layers of a store, without labels, over a seeded sample of frames.

Norms and cosines are computed on frames as stored; CKA and principal components on centred frames.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pipeline.errors import counted
from pipeline.feed.frames.sample import FrameSample, sample_frames
from pipeline.probing.encoder_description import describe_encoder, encoder_warnings
from pipeline.probing.layers.cka import centred, cross_norm, or_none
from pipeline.store.format.layers import label_layers
from pipeline.store.read.features import FeatureStore

N_FRAMES = 20_000
"""Default number of frames of a sample."""
OUTLIER_RATIO = 5.0
"""Ratio of a dimension's root mean square to the median's from which it is an outlier."""
_MAX_OUTLIERS = 5


@dataclass(frozen=True)
class Outlier:
    """A dimension that is much larger than the others of its layer.

    Attributes:
        dim: Index of the dimension.
        ratio: Its root mean square, divided by that of the median dimension.
    """

    dim: int
    ratio: float


@dataclass(frozen=True)
class LayerStatistics:
    """Statistics of one layer. A value that is undefined for the sample is None.

    Attributes:
        layer: Layer number.
        norm: Mean L2 norm of a frame.
        norm_sd: Standard deviation of the norm over frames.
        magnitude: Mean absolute value of a feature.
        largest: Largest absolute value of a feature.
        largest_dim: Dimension of that feature.
        outliers: Dimensions of at least `OUTLIER_RATIO` times the median root mean square, largest
            first.
        anisotropy: Mean cosine of two frames of different utterances: 0 if directions are
            distributed evenly, 1 if all frames have one direction (Ethayarajh, 2019).
        smoothness: Mean cosine of consecutive frames.
        first_component: Share of the variance along the first principal component.
        effective_rank: Exponential of the entropy of the shares of variance, the number of
            dimensions in use (Roy and Vetterli, 2007).
    """

    layer: int
    norm: float
    norm_sd: float
    magnitude: float
    largest: float
    largest_dim: int
    outliers: tuple[Outlier, ...]
    anisotropy: float | None
    smoothness: float | None
    first_component: float | None
    effective_rank: float | None


@dataclass(frozen=True)
class StoreStatistics:
    """Statistics of all layers of a store.

    Attributes:
        store: Path of the store.
        encoder: Description of the encoder.
        warnings: Warnings to show before the statistics.
        n_frames: Frames in the sample.
        n_utterances: Utterances in the sample.
        seed: Seed of the sample.
        layers: One per layer, in the order of the store.
        cka: Linear CKA of each pair of layers, [n_layers][n_layers]; None for a constant layer.
        layer_names: Name of each layer.
    """

    store: str
    encoder: str
    warnings: tuple[str, ...]
    n_frames: int
    n_utterances: int
    seed: int
    layers: tuple[LayerStatistics, ...]
    cka: tuple[tuple[float | None, ...], ...]
    layer_names: tuple[str, ...] = ()

    @property
    def labels(self) -> dict[int, str]:
        """What tables call each layer: its number if it is 0 or a block, else its name."""
        return label_layers([layer.layer for layer in self.layers], self.layer_names)


def measure_layers(
    store: FeatureStore,
    n_frames: int = N_FRAMES,
    seed: int = 0,
    note: Callable[[str], None] | None = None,
) -> StoreStatistics:
    """Compute the statistics of every layer on a sample of frames.

    Memory: 2 bytes per value of the sample, and about 50 bytes per value of one layer of it; 1.2 GB
    for 20,000 frames of 12 layers of 768 features.

    Args:
        store: The store, or a selection of it.
        n_frames: Approximate number of frames; all frames if the store has fewer.
        seed: Seed of the sample.
        note: Called with progress lines.

    Raises:
        ConfigError: `n_frames` is out of range.
        StoreError: The store has no frames.
        DamagedError: A shard is missing or damaged.
    """
    note = note or (lambda _: None)
    sample = sample_frames(store, n_frames, seed)
    n_drawn = len(sample.utterance)
    note(f"read {counted(n_drawn, 'frame')} of {counted(len(store.layers), 'layer')}")
    layers = tuple(_measure_layer(layer, sample, i) for i, layer in enumerate(store.layers))
    return StoreStatistics(
        store=", ".join(map(str, store.backends)),
        encoder=describe_encoder(store.attributes),
        warnings=encoder_warnings(store.attributes),
        n_frames=n_drawn,
        n_utterances=len(np.unique(sample.utterance)),
        seed=seed,
        layers=layers,
        cka=_all_cka(sample.features, note),
        layer_names=store.layer_names,
    )


def _all_cka(
    features: npt.NDArray[Any], note: Callable[[str], None]
) -> tuple[tuple[float | None, ...], ...]:
    """Return the CKA of each pair of layers, [n_layers][n_layers]; None for a constant layer.

    At most two layers are in memory in float64 at a time.

    Args:
        features: [n_layers, n_frames, dim].
        note: Called with progress lines.
    """
    n = len(features)
    start_s = time.perf_counter()
    cka = np.full((n, n), np.nan)
    own = np.empty(n)
    for i in range(n):
        x = centred(torch.from_numpy(features[i]))
        own[i] = cross_norm(x, x)
        for j in range(i + 1):
            cross = own[i]
            if j < i:
                cross = cross_norm(x, centred(torch.from_numpy(features[j])))
            if own[i] * own[j] > 0:
                cka[i, j] = cka[j, i] = cross / math.sqrt(own[i] * own[j])
        if i == 1:  # 3 of n (n + 1) / 2 pairs are done
            remaining_s = (time.perf_counter() - start_s) / 3 * (n * (n + 1) / 2 - 3)
            note(f"CKA of all pairs of layers takes about {remaining_s:.0f} s")
    return tuple(tuple(or_none(value) for value in row) for row in cka)


def _measure_layer(layer: int, sample: FrameSample, axis: int) -> LayerStatistics:
    """Compute the statistics of one layer."""
    x = torch.from_numpy(sample.features[axis]).double()  # [n_frames, dim]
    norms = x.norm(dim=1)
    magnitude = x.abs()
    rms = x.square().mean(0).sqrt()
    first, rank = spectrum(x)
    unit_frames = x / norms.clamp_min(1e-300)[:, None]
    return LayerStatistics(
        layer=layer,
        norm=float(norms.mean()),
        norm_sd=float(norms.std(correction=0)),
        magnitude=float(magnitude.mean()),
        largest=float(magnitude.max()),
        largest_dim=int(magnitude.max(0).values.argmax()),
        outliers=_outliers(rms),
        anisotropy=or_none(mean_cosine(unit_frames, sample.utterance)),
        smoothness=or_none(_mean_consecutive_cosine(unit_frames, sample.follows)),
        first_component=or_none(first),
        effective_rank=or_none(rank),
    )


def mean_cosine(unit_frames: Tensor, utterance: npt.NDArray[np.int64]) -> float:
    """Return the mean cosine over all pairs of frames from different utterances.

    The squared norm of a sum of unit vectors is the sum of their pairwise cosines, so no pair is
    computed separately.

    Args:
        unit_frames: Frames of norm 1: [n_frames, dim].
        utterance: Position of the utterance of each frame, equal ones adjacent: [n_frames].

    Returns:
        -1 to 1; nan if all frames are of one utterance.
    """
    _, counts = np.unique(utterance, return_counts=True)
    n_pairs = len(utterance) ** 2 - int((counts.astype(np.int64) ** 2).sum())
    if not n_pairs:
        return math.nan
    sums = torch.stack([part.sum(0) for part in torch.split(unit_frames, counts.tolist())])
    return float(sums.sum(0).square().sum() - sums.square().sum()) / n_pairs


def spectrum(x: Tensor) -> tuple[float, float]:
    """Return the share of variance of the first principal component, and the effective rank.

    Args:
        x: [n_frames, dim], float64.

    Returns:
        Both nan if the frames are constant.
    """
    x = centred(x)
    product = x @ x.T if len(x) < x.shape[1] else x.T @ x
    values = torch.linalg.eigvalsh(product).clamp_min(0)
    if not float(values.sum()) > 0:
        return math.nan, math.nan
    shares = values / values.sum()
    entropy = -torch.special.xlogy(shares, shares).sum()
    return float(shares.max()), float(entropy.exp())


def _mean_consecutive_cosine(unit_frames: Tensor, follows: npt.NDArray[np.bool_]) -> float:
    later = torch.from_numpy(np.flatnonzero(follows))
    if not len(later):
        return math.nan
    return float((unit_frames[later] * unit_frames[later - 1]).sum(1).mean())


def _outliers(rms: Tensor) -> tuple[Outlier, ...]:
    """Return the dimensions whose root mean square is far above the median's, largest first."""
    ratios = rms / rms.median().clamp_min(1e-300)
    order = ratios.argsort(descending=True)[:_MAX_OUTLIERS].tolist()
    return tuple(Outlier(dim, float(ratios[dim])) for dim in order if ratios[dim] >= OUTLIER_RATIO)
