"""What the layers of a store look like without labels.

Sizes, directions and likeness of the layers, over a seeded sample of frames. All formulas work on
frames as they are stored; likeness, spread and principal directions on frames less their mean.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pipeline.probing.encoder_description import encoder_in_words, warnings_of
from pipeline.probing.frame_sample import Sample, draw_sample
from pipeline.store.read.features import FeatureStore

N_FRAMES = 20_000
"""Frames of a sample, if nothing else is asked for."""
OUTLIER = 5.0
"""How many times the median dimension's root mean square makes a dimension an outlier."""
_MOST_OUTLIERS = 5


@dataclass(frozen=True)
class Outlier:
    """A dimension that is much larger than the others of its layer.

    Attributes:
        dim: The dimension.
        ratio: Its root mean square, over that of the median dimension.
    """

    dim: int
    ratio: float


@dataclass(frozen=True)
class LayerAnatomy:
    """One layer. What cannot be computed (a constant layer, a single utterance) is None.

    Attributes:
        layer: Its number.
        norm: Mean length (L2) of a frame.
        norm_sd: Standard deviation of that length over frames.
        magnitude: Mean absolute value of a feature.
        largest: Largest absolute value of a feature.
        largest_dim: The dimension where it is.
        outliers: Dimensions of at least `OUTLIER` times the median root mean square, largest first.
        anisotropy: Mean cosine of two frames of different utterances: 0 where directions are used
            evenly, 1 where all frames point the same way (Ethayarajh, 2019).
        smoothness: Mean cosine of neighbouring frames, 20 ms apart.
        first_component: Share of the variance along the first principal component.
        effective_rank: Number of dimensions that are really used: the exponential of the entropy of
            the shares of variance (Roy and Vetterli, 2007).
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
class Anatomy:
    """All layers of a store.

    Attributes:
        store: Path of the store.
        encoder: What made the features, in words.
        warnings: What a reader must know first.
        n_frames: Frames in the sample.
        n_utterances: Utterances that they are from.
        seed: Of the sample.
        layers: One each, in the order of the store.
        cka: Linear CKA of every two layers, [n_layers][n_layers]; None for a constant layer.
    """

    store: str
    encoder: str
    warnings: tuple[str, ...]
    n_frames: int
    n_utterances: int
    seed: int
    layers: tuple[LayerAnatomy, ...]
    cka: tuple[tuple[float | None, ...], ...]


def examine(
    store: FeatureStore,
    n_frames: int = N_FRAMES,
    seed: int = 0,
    note: Callable[[str], None] | None = None,
) -> Anatomy:
    """Measures every layer on a sample of frames.

    It needs 2 bytes of memory per value of the sample, and about 50 per value of one layer of it:
    1.2 GB for 20,000 frames of 12 layers of 768.

    Args:
        store: The store, or a selection of it.
        n_frames: About so many frames are drawn; all, if the store has no more.
        seed: Of the draw; the same seed draws the same frames.
        note: Takes a line on how far it has come.

    Raises:
        ConfigError: `n_frames` is out of range.
        StoreError: The store has no frames.
        DamagedError: A shard is missing or damaged.
    """
    note = note or (lambda _: None)
    sample = draw_sample(store, n_frames, seed)
    n_drawn = len(sample.utterance)
    note(f"{n_drawn:,} frames of {len(store.layers)} layers are read")
    layers = tuple(_examine_layer(layer, sample, i) for i, layer in enumerate(store.layers))
    return Anatomy(
        store=str(store.root),
        encoder=encoder_in_words(store.attributes),
        warnings=warnings_of(store.attributes),
        n_frames=n_drawn,
        n_utterances=len(np.unique(sample.utterance)),
        seed=seed,
        layers=layers,
        cka=_all_cka(sample.features, note),
    )


def linear_cka(x: Tensor, y: Tensor) -> float:
    """Linear centred kernel alignment of two representations of the same frames.

    1 where one is the other, turned and scaled; near 0 where they have nothing to do with one
    another, given many more frames than features (Kornblith et al., 2019).

    Args:
        x: [n_frames, dim_x].
        y: [n_frames, dim_y].

    Returns:
        A number from 0 to 1; nan if one of them is constant.
    """
    return _aligned(centred(x), centred(y))


def centred(x: Tensor) -> Tensor:
    """`x` less its mean over frames, in float64: [n_frames, dim].

    Sums of float16 are exact in float64, so a layer that is constant becomes 0 and not noise.
    """
    wide = x.to(torch.float64, copy=True)
    return wide.sub_(wide.mean(0))


def _aligned(x: Tensor, y: Tensor) -> float:
    """CKA of two centred matrices."""
    both = _shared_variance(x, y)
    alone = _shared_variance(x, x) * _shared_variance(y, y)
    return both / math.sqrt(alone) if alone > 0 else math.nan


def _shared_variance(x: Tensor, y: Tensor) -> float:
    """Squared Frobenius norm of xᵀy, by the features or by the frames, whichever are fewer."""
    if len(x) < max(x.shape[1], y.shape[1]):
        return float(((x @ x.T) * (y @ y.T)).sum())
    return float((x.T @ y).square().sum())


def _all_cka(
    features: npt.NDArray[np.float16], note: Callable[[str], None]
) -> tuple[tuple[float | None, ...], ...]:
    """CKA of every two layers of [n_layers, n_frames, dim]; two layers are wide at a time."""
    n = len(features)
    began = time.perf_counter()
    found = np.full((n, n), np.nan)
    alone = np.empty(n)
    for i in range(n):
        x = centred(torch.from_numpy(features[i]))
        alone[i] = _shared_variance(x, x)
        for j in range(i + 1):
            both = alone[i]
            if j < i:
                both = _shared_variance(x, centred(torch.from_numpy(features[j])))
            if alone[i] * alone[j] > 0:
                found[i, j] = found[j, i] = both / math.sqrt(alone[i] * alone[j])
        if i == 1:  # three of n (n + 1) / 2 are done
            left_s = (time.perf_counter() - began) / 3 * (n * (n + 1) / 2 - 3)
            note(f"CKA of every two layers takes about {left_s:.0f} s")
    return tuple(tuple(_known(value) for value in row) for row in found)


def _examine_layer(layer: int, sample: Sample, axis: int) -> LayerAnatomy:
    """Everything about one layer but its likeness to others."""
    x = torch.from_numpy(sample.features[axis]).double()  # [n_frames, dim]
    norms = x.norm(dim=1)
    size = x.abs()
    rms = x.square().mean(0).sqrt()
    first, rank = spectrum(x)
    units = x / norms.clamp_min(1e-300)[:, None]
    return LayerAnatomy(
        layer=layer,
        norm=float(norms.mean()),
        norm_sd=float(norms.std(correction=0)),
        magnitude=float(size.mean()),
        largest=float(size.max()),
        largest_dim=int(size.max(0).values.argmax()),
        outliers=_outliers(rms),
        anisotropy=_known(mean_cosine(units, sample.utterance)),
        smoothness=_known(_mean_neighbour_cosine(units, sample.joined)),
        first_component=_known(first),
        effective_rank=_known(rank),
    )


def mean_cosine(units: Tensor, utterance: npt.NDArray[np.int64]) -> float:
    """Mean cosine over all pairs of frames from different utterances.

    All pairs at once: the squared length of a sum of unit vectors is the sum of their cosines.

    Args:
        units: Frames of length one: [n_frames, dim].
        utterance: Whose frame it is, equal ones side by side: [n_frames].

    Returns:
        -1 to 1; nan if all frames are of one utterance.
    """
    _, counts = np.unique(utterance, return_counts=True)
    n_pairs = len(utterance) ** 2 - int((counts.astype(np.int64) ** 2).sum())
    if not n_pairs:
        return math.nan
    sums = torch.stack([part.sum(0) for part in torch.split(units, counts.tolist())])
    return float(sums.sum(0).square().sum() - sums.square().sum()) / n_pairs


def spectrum(x: Tensor) -> tuple[float, float]:
    """Share of variance of the first principal component, and the effective rank.

    Args:
        x: [n_frames, dim], float64.

    Returns:
        Both nan if the frames do not vary.
    """
    wide = centred(x)
    product = wide @ wide.T if len(wide) < wide.shape[1] else wide.T @ wide
    values = torch.linalg.eigvalsh(product).clamp_min(0)
    if not float(values.sum()) > 0:
        return math.nan, math.nan
    shares = values / values.sum()
    entropy = -torch.special.xlogy(shares, shares).sum()
    return float(shares.max()), float(entropy.exp())


def _mean_neighbour_cosine(units: Tensor, joined: npt.NDArray[np.bool_]) -> float:
    later = torch.from_numpy(np.flatnonzero(joined))
    if not len(later):
        return math.nan
    return float((units[later] * units[later - 1]).sum(1).mean())


def _outliers(rms: Tensor) -> tuple[Outlier, ...]:
    """Dimensions whose root mean square is far above the median's, largest first."""
    ratios = rms / rms.median().clamp_min(1e-300)
    order = ratios.argsort(descending=True)[:_MOST_OUTLIERS].tolist()
    return tuple(Outlier(dim, float(ratios[dim])) for dim in order if ratios[dim] >= OUTLIER)


def _known(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
