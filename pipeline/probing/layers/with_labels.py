"""Statistics of layers with labels of spans, such as phones or words: CCA and mutual information.

Canonical correlations are between the mean over the frames of each span and its class, mutual
information between clusters of frames and the class of the span that each frame is in. Both are
measured on utterances that nothing was fitted to, and again with shuffled labels.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pipeline.errors import ConfigError, counted, first_few
from pipeline.feed.classes import in_class_order
from pipeline.feed.frames.sample import FrameSample, sample_frames
from pipeline.probing.layers.cca import Correlations, Moments, Spectrum, held_out
from pipeline.probing.layers.cka import or_none
from pipeline.probing.layers.information import Division, divide, pnmi
from pipeline.probing.layers.statistics import N_FRAMES
from pipeline.spans.frame_labels import frame_labels
from pipeline.spans.placing import PlacedSpans
from pipeline.spans.pooling import iter_pooled_spans
from pipeline.store.format.layers import label_layers
from pipeline.store.read.features import FeatureStore

IntArray = npt.NDArray[np.int64]

N_SPANS = 10_000
"""Default number of spans of a sample."""
N_CLUSTERS = 100
"""Default number of clusters."""
MAX_CLASSES = 500
"""Most classes; the most frequent ones count."""
MIN_COUNT = 10
"""Fewest spans of a class in the sample."""
N_PARTS = 10
"""Parts of the utterances for CCA: eight to fit, one to choose, one to score."""
N_DIVISIONS = 3
"""Divisions of the utterances into halves for the mutual information."""
_FEW_PER_DIMENSION = 2  # spans to fit, below which a note says that there are few


@dataclass(frozen=True)
class Estimate:
    """A statistic with its spread, and its value for shuffled labels. None if it is undefined.

    Attributes:
        value: Mean over parts or divisions of the utterances.
        sd: Standard deviation over them.
        shuffled: Mean with shuffled labels: the chance level.
        shuffled_sd: Standard deviation of that.
    """

    value: float | None
    sd: float | None
    shuffled: float | None
    shuffled_sd: float | None

    @classmethod
    def of(cls, values: Sequence[float], shuffled: Sequence[float]) -> Estimate:
        """Summarise the values of parts or divisions."""
        return cls(*(or_none(x) for x in (*_summary(values), *_summary(shuffled))))


@dataclass(frozen=True)
class LabelledLayer:
    """Statistics of one layer with labels.

    Attributes:
        layer: Layer number.
        pwcca: Projection-weighted canonical correlation with the classes (Morcos et al., 2018).
        cca: Mean canonical correlation.
        svcca: Mean canonical correlation after the features are reduced to 99 % of their variance
            (Raghu et al., 2017).
        pnmi: Mutual information of clusters of frames with the classes, as a share of the entropy
            of the classes (Hsu et al., 2021).
    """

    layer: int
    pwcca: Estimate
    cca: Estimate
    svcca: Estimate
    pnmi: Estimate


@dataclass(frozen=True)
class LabelStatistics:
    """Statistics of all layers of a store with labels.

    Attributes:
        spans: Name of the file with the spans.
        digest: SHA-256 of the spans.
        n_spans: Spans in the sample.
        n_classes: Classes.
        n_trials: Parts of the utterances on which canonical correlations were scored.
        n_frames: Frames in the sample, with and without a label.
        n_labelled: Those with a label.
        n_divisions: Divisions of the utterances into halves.
        k: Number of clusters.
        notes: What was left out, and what to beware of.
        layers: One per layer, in the order of the store.
        layer_names: Name of each layer.
    """

    spans: str
    digest: str
    n_spans: int
    n_classes: int
    n_trials: int
    n_frames: int
    n_labelled: int
    n_divisions: int
    k: int
    notes: tuple[str, ...]
    layers: tuple[LabelledLayer, ...]
    layer_names: tuple[str, ...] = ()

    @property
    def labels(self) -> dict[int, str]:
        """What tables call each layer: its number if it is 0 or a block, else its name."""
        return label_layers([layer.layer for layer in self.layers], self.layer_names)


def measure_with_labels(
    store: FeatureStore,
    placed: PlacedSpans,
    name: str,
    *,
    n_spans: int = N_SPANS,
    n_frames: int = N_FRAMES,
    k: int = N_CLUSTERS,
    seed: int = 0,
    note: Callable[[str], None] | None = None,
) -> LabelStatistics:
    """Measure how much of the labels of spans is in the features of every layer.

    Memory: 4 bytes per value of the spans of the sample, and 2 of its frames: 0.7 GB for 10,000
    spans and 20,000 frames of 12 layers of 768 features.

    Args:
        store: The store, or a selection of it.
        placed: The spans in this store. Frames must not be in spans of different labels.
        name: Name of the file with the spans, for the report.
        n_spans: Most spans, drawn uniformly.
        n_frames: Approximate number of frames, of the utterances with spans.
        k: Number of clusters.
        seed: Seed of the samples, of the divisions and of the clusters.
        note: Called with progress lines.

    Raises:
        ConfigError: There are fewer than two classes or three utterances with spans, or fewer
            frames than clusters.
        SourceError: A frame is in spans of different labels.
        DamagedError: A shard is missing or damaged.
    """
    note = note or (lambda _: None)
    spans, numbers, names, notes = _draw(placed, n_spans, seed)
    parts = _parts(spans.position, seed)
    view = store.take(placed.annotated.tolist())
    labels = frame_labels(store, placed, classes=names)
    sample = sample_frames(view, n_frames, seed)
    of_frames = labels.at(placed.annotated[sample.utterance], sample.frame)
    divisions = divide(sample, of_frames, N_DIVISIONS, seed)
    _check(divisions, k, name)
    pooled = _pooled(store, spans)
    note(f"read {counted(len(spans), 'span')} and {counted(len(of_frames), 'frame')}")
    n_fitted = len(spans) * (len(parts) - 2) // len(parts)
    if n_fitted < _FEW_PER_DIMENSION * store.feature_dim:
        notes.append(
            f"{counted(n_fitted, 'span')} to fit canonical correlations of {store.feature_dim} "
            "features: too few, so the values are low; raise n_spans or give more spans"
        )
    shuffled = np.random.default_rng([seed, 2]).permutation(numbers)
    layers: list[LabelledLayer] = []
    start_s = time.perf_counter()
    for axis, layer in enumerate(store.layers):
        found = _correlations(pooled[axis], (numbers, shuffled), len(names), parts)
        pwcca, cca, svcca = (
            Estimate.of(*([getattr(one, kind) for one in ones] for ones in found))
            for kind in ("pwcca", "cca", "svcca")
        )
        information = _information(sample, axis, divisions, len(names), k)
        layers.append(LabelledLayer(layer, pwcca, cca, svcca, information))
        if axis == 0:
            remaining_s = (time.perf_counter() - start_s) * (len(store.layers) - 1)
            note(f"the other layers take about {remaining_s:.0f} s")
    return LabelStatistics(
        spans=name,
        digest=spans.spans.digest,
        n_spans=len(spans),
        n_classes=len(names),
        n_trials=len(_trials(len(parts))),
        n_frames=len(of_frames),
        n_labelled=int((of_frames >= 0).sum()),
        n_divisions=len(divisions),
        k=k,
        notes=(*placed.spans.notes, *placed.notes, *notes),
        layers=tuple(layers),
        layer_names=store.layer_names,
    )


def _draw(
    placed: PlacedSpans, n_spans: int, seed: int
) -> tuple[PlacedSpans, IntArray, list[str], list[str]]:
    """Draw spans, and choose their classes.

    Returns:
        The spans, the class of each, the names of the classes, and notes.

    Raises:
        ConfigError: There are fewer than two classes.
    """
    notes = []
    if len(placed) > n_spans:
        random = np.random.default_rng([seed, 0])
        notes.append(f"{n_spans:,} of {counted(len(placed), 'span')} are drawn (n_spans)")
        placed = placed.take(np.sort(random.choice(len(placed), n_spans, replace=False)))
    labels = placed.spans.labels
    counts = np.bincount(placed.label, minlength=len(labels))
    frequent = [i for i in np.argsort(-counts, kind="stable").tolist() if counts[i] >= MIN_COUNT]
    classes = frequent[:MAX_CLASSES]
    left = np.setdiff1d(np.flatnonzero(counts), classes).tolist()
    if left:
        notes.append(
            f"{counted(int(counts[left].sum()), 'span')} of {counted(len(left), 'label')} left "
            f"out: labels with fewer than {MIN_COUNT} spans in the sample, or not among the "
            f"{MAX_CLASSES} most frequent: {first_few([repr(labels[i]) for i in left])}"
        )
    if len(classes) < 2:
        why = f" ({'; '.join(notes)})" if notes else ""
        raise ConfigError(
            f"{counted(len(placed), 'span')} with {counted(len(classes), 'label')} of at least "
            f"{MIN_COUNT} spans; expected at least two such labels{why}"
        )
    names = in_class_order(labels[i] for i in classes)
    number_of = {name: number for number, name in enumerate(names)}
    numbers = np.array([number_of.get(label, -1) for label in labels], np.int64)[placed.label]
    return placed.take(numbers >= 0), numbers[numbers >= 0], names, notes


def _parts(position: IntArray, seed: int) -> list[IntArray]:
    """Divide spans into parts of different utterances, of about equal size.

    Raises:
        ConfigError: There are fewer than three utterances.
    """
    owners, counts = np.unique(position, return_counts=True)
    if len(owners) < 3:
        raise ConfigError(
            f"the spans are of {counted(len(owners), 'utterance')}; statistics with labels fit, "
            "choose and score on different utterances, so expected spans of at least 3"
        )
    n_parts = min(N_PARTS, len(owners))
    order = np.random.default_rng([seed, 1]).permutation(len(owners))
    sizes, part_of = np.zeros(n_parts, np.int64), np.empty(len(owners), np.int64)
    for i in order[np.argsort(-counts[order], kind="stable")].tolist():
        part_of[i] = sizes.argmin()
        sizes[part_of[i]] += counts[i]
    part = part_of[np.searchsorted(owners, position)]
    return [np.flatnonzero(part == number) for number in range(n_parts)]


def _trials(n_parts: int) -> list[tuple[int, int]]:
    """Return the parts that choose and that score, for each trial."""
    return [((test + 1) % n_parts, test) for test in range(0, n_parts, 2)]


def _check(divisions: Sequence[Division], k: int, name: str) -> None:
    """Check that there are enough frames to cluster and to count.

    Raises:
        ConfigError: There are not.
    """
    least = min(len(division.train) for division in divisions)
    if least < k:
        raise ConfigError(
            f"k is {k:,}, but half of the utterances with spans have {counted(least, 'frame')} in "
            "the sample; expected at least one for each cluster: lower k, or raise n_frames"
        )
    if not min(len(division.test) for division in divisions):
        raise ConfigError(
            f"half of the utterances with spans of {name} have no frame with a label in the "
            "sample; raise n_frames"
        )


def _pooled(store: FeatureStore, spans: PlacedSpans) -> npt.NDArray[np.float32]:
    """Return the mean over the frames of every span: float32 [n_layers, n_spans, dim]."""
    out = np.empty((len(store.layers), len(spans), store.feature_dim), np.float32)
    for rows, values in iter_pooled_spans(store, spans):
        out[:, rows] = values.transpose(0, 1).numpy()
    return out


def _correlations(
    pooled: npt.NDArray[np.float32],
    numbers: tuple[IntArray, IntArray],
    n_classes: int,
    parts: Sequence[IntArray],
) -> tuple[list[Correlations], list[Correlations]]:
    """Return the canonical correlations of each trial with the labels, and with shuffled labels.

    Args:
        pooled: Features of one layer, [n_spans, dim].
        numbers: Class of each span, and the same shuffled.
        n_classes: Number of classes.
        parts: Spans of each part.
    """
    x = torch.from_numpy(pooled).double()
    x -= x.mean(0)
    own, other = (torch.from_numpy(given) for given in numbers)
    moments, shuffled = list[Moments](), list[Moments]()
    for rows in map(torch.from_numpy, parts):
        part: Tensor = x[rows]
        moments.append(Moments.of(part, own[rows], n_classes))
        shuffled.append(moments[-1].with_classes(part, other[rows]))
    found: tuple[list[Correlations], list[Correlations]] = ([], [])
    for dev, test in _trials(len(parts)):
        kept = [i for i in range(len(parts)) if i not in (dev, test)]
        spectrum: Spectrum | None = None
        for results, sums in zip(found, (moments, shuffled), strict=True):
            train = sums[kept[0]]
            for i in kept[1:]:
                train = train + sums[i]
            spectrum = spectrum or Spectrum.of(train.covariances()[0])
            results.append(held_out(train, spectrum, sums[dev], sums[test]))
    return found


def _information(
    sample: FrameSample, axis: int, divisions: Sequence[Division], n_labels: int, k: int
) -> Estimate:
    """Return PNMI of a layer over the divisions."""
    found = [pnmi(sample.features[axis], division, n_labels, k) for division in divisions]
    values, shuffled = zip(*found, strict=True)
    return Estimate.of(values, shuffled)


def _summary(values: Sequence[float]) -> tuple[float, float]:
    """Return mean and standard deviation; nan for the latter of a single value."""
    sd = float(np.std(values, ddof=1)) if len(values) > 1 else math.nan
    return float(np.mean(values)), sd
