"""Mutual information between k-means clusters of frames and labels of these frames.

It is PNMI of Hsu et al. 2021, "HuBERT" (arXiv 2106.07447), section IV-C: the mutual information of
labels and clusters as a share of the entropy of the labels. Frames of half of the utterances train
the clusters, those of the other half are counted.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pipeline.feed.frames.sample import FrameSample
from pipeline.tokens.kmeans import KMeansSettings, train
from pipeline.tokens.nearest import Quantizer
from pipeline.tokens.quality import joint_counts, label_quality

IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Division:
    """Two halves of the frames of a sample, of different utterances.

    Attributes:
        train: Frames that train the clusters, in random order, int64 [n].
        test: Frames with a label that are counted, int64 [n].
        labels: Label of each of these, int64 [n].
        shuffled: The labels in another order. Frames that follow each other in an utterance with
            one label, as those of a span do, have one label again.
        seed: Seed of the clusters.
    """

    train: IntArray
    test: IntArray
    labels: IntArray
    shuffled: IntArray
    seed: int


class _InMemory:
    """Frames of a training, in memory."""

    def __init__(self, values: Tensor) -> None:
        self._values = values

    def __len__(self) -> int:
        return len(self._values)

    def read(self, start: int, stop: int) -> Tensor:
        """Return frames [start, stop)."""
        return self._values[start:stop]


def divide(sample: FrameSample, labels: IntArray, n: int, seed: int) -> list[Division]:
    """Divide the utterances of a sample into halves at random, `n` times.

    Args:
        sample: The frames.
        labels: Label of each, -1 for none: int64 [n_frames].
        n: Number of divisions.
        seed: Seed of the divisions.
    """
    owners = np.unique(sample.utterance)
    starts = (np.diff(sample.utterance, prepend=-1) != 0) | (np.diff(labels, prepend=-2) != 0)
    run = np.cumsum(starts)
    divisions = []
    for number in range(n):
        random = np.random.default_rng([seed, number])
        is_train = np.isin(sample.utterance, random.permutation(owners)[: len(owners) // 2])
        test = np.flatnonzero(~is_train & (labels >= 0))
        _, first, of_run = np.unique(run[test], return_index=True, return_inverse=True)
        shuffled = random.permutation(labels[test][first])[of_run]
        divisions.append(
            Division(
                random.permutation(np.flatnonzero(is_train)),
                test,
                labels[test],
                shuffled,
                seed + number,
            )
        )
    return divisions


def pnmi(
    features: npt.NDArray[np.generic], division: Division, n_labels: int, k: int
) -> tuple[float, float]:
    """Return PNMI with the labels, and with the shuffled labels.

    The second is above 0, because finite counts of independent variables have mutual information.

    Args:
        features: Frames of one layer, [n_frames, dim].
        division: Which frames train and which are counted.
        n_labels: Labels are below it.
        k: Number of clusters.

    Returns:
        nan if the features are constant, or all counted frames have one label.

    Raises:
        ConfigError: There are fewer frames, or different frames, than clusters.
    """
    trained = torch.from_numpy(features[division.train])
    if bool((trained == trained[0]).all()):
        return math.nan, math.nan
    found = train(
        _InMemory(trained), KMeansSettings(k, division.seed), n_threads=torch.get_num_threads()
    )
    codes, _ = Quantizer(torch.from_numpy(found.centroids)).assign(
        torch.from_numpy(features[division.test])
    )
    values = []
    for labels in (division.labels, division.shuffled):
        quality = label_quality(joint_counts([(labels, codes)], n_labels, k))
        values.append(math.nan if quality.pnmi is None else quality.pnmi)
    return values[0], values[1]
