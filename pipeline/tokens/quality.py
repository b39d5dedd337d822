"""Quality of tokens: how evenly codes are used, and how well they match labels of frames.

Measures with labels are those of Hsu et al. 2021, "HuBERT: Self-Supervised Speech Representation
Learning by Masked Prediction of Hidden Units" (arXiv 2106.07447), section IV-C: cluster purity,
phone purity, and phone-normalised mutual information (PNMI). They are computed from the joint
distribution of labels and codes over frames. Purities also grow with k, so compare equal k.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pipeline.errors import StoreError
from pipeline.spans.frame_labels import FrameLabels
from pipeline.store.read.features import FeatureStore

IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True)
class CodeUsage:
    """How evenly codes are used.

    Attributes:
        used: Codes with at least one frame.
        entropy_bits: Entropy of the distribution of codes over frames; at most log2(k).
        perplexity: 2 ** entropy: the number of codes of which equal use has this entropy.
    """

    used: int
    entropy_bits: float
    perplexity: float


@dataclass(frozen=True)
class LabelQuality:
    """How well codes match labels, over the frames that have a label.

    Attributes:
        frames: Frames with a label.
        labels: Labels with at least one frame.
        phone_purity: Share of frames whose label is the most frequent one of their code.
        cluster_purity: Share of frames whose code is the most frequent one of their label.
        pnmi: Mutual information of labels and codes, as a share of the entropy of the labels; 0 if
            codes and labels are independent, 1 if codes determine the label. None if there is only
            one label.
    """

    frames: int
    labels: int
    phone_purity: float
    cluster_purity: float
    pnmi: float | None


def usage(counts: IntArray) -> CodeUsage:
    """Return how evenly codes are used.

    Args:
        counts: Frames of each code, int64 [k], with at least one frame.
    """
    bits = _entropy_bits(counts)
    return CodeUsage(int((counts > 0).sum()), bits, float(2**bits))


def joint_counts(pairs: Iterable[tuple[IntArray, IntArray]], n_labels: int, k: int) -> IntArray:
    """Count frames by label and code, without those that have no label.

    Args:
        pairs: Labels and codes of the frames of each utterance, int64 [n_frames] each; label -1 is
            none.
        n_labels: Labels are below it.
        k: Codes are below it.

    Returns:
        int64 [n_labels, k].
    """
    counts = np.zeros(n_labels * k, np.int64)
    for labels, codes in pairs:
        has_label = labels >= 0
        counts += np.bincount(labels[has_label] * k + codes[has_label], minlength=n_labels * k)
    return counts.reshape(n_labels, k)


def label_quality(counts: IntArray) -> LabelQuality:
    """Return how well codes match labels.

    Args:
        counts: Frames by label and code, int64 [n_labels, k], with at least one frame.
    """
    n_frames = int(counts.sum())
    label_bits = _entropy_bits(counts.sum(1))
    mutual_bits = label_bits + _entropy_bits(counts.sum(0)) - _entropy_bits(counts.ravel())
    return LabelQuality(
        frames=n_frames,
        labels=int((counts.sum(1) > 0).sum()),
        phone_purity=float(counts.max(0).sum() / n_frames),
        cluster_purity=float(counts.max(1).sum() / n_frames),
        pnmi=max(0.0, mutual_bits) / label_bits if label_bits > 0 else None,
    )


def token_quality(
    store: FeatureStore, labels: FrameLabels, name: str | None = None
) -> LabelQuality:
    """Measure how well tokens match labels of frames, such as phones.

    Args:
        store: The store that the labels are of.
        labels: From `frame_labels`.
        name: Name of the tokens; None if the store has only one.

    Raises:
        StoreError: The store has no such tokens, an utterance with labels has none yet, or no frame
            has a label.

    Example:
        >>> labels = frame_labels(store, read_spans("alignments", tier="phones"))
        ...                                                                     # doctest: +SKIP
        >>> token_quality(store, labels).pnmi                                   # doctest: +SKIP
        0.62
    """
    k = store.codebook(name).k
    pairs = ((labels[i], store.tokens(i, name).numpy()) for i in labels.positions.tolist())
    counts = joint_counts(pairs, len(labels.names), k)
    if not counts.any():
        raise StoreError(f"no frame of {store.location} has a label; see the notes of the labels")
    return label_quality(counts)


def _entropy_bits(counts: IntArray) -> float:
    share = counts[counts > 0] / counts.sum()
    return float(-(share * np.log2(share)).sum()) + 0.0
