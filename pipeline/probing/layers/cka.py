"""Linear CKA (centred kernel alignment) of representations of the same frames. Arithmetic only.

See Kornblith et al. 2019, "Similarity of Neural Network Representations Revisited"
(arXiv 1905.00414), equation 4 with linear kernels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

FloatArray = npt.NDArray[np.float64]


def linear_cka(x: Tensor, y: Tensor) -> float:
    """Return the linear centred kernel alignment of two representations of the same frames.

    1 if one is a rotated and scaled copy of the other; near 0 if they are unrelated and there are
    many more frames than features (Kornblith et al., 2019).

    Args:
        x: [n_frames, dim_x].
        y: [n_frames, dim_y].

    Returns:
        0 to 1; nan if one of them is constant.
    """
    x, y = centred(x), centred(y)
    own = cross_norm(x, x) * cross_norm(y, y)
    return cross_norm(x, y) / math.sqrt(own) if own > 0 else math.nan


def centred(x: Tensor) -> Tensor:
    """Subtract the mean over frames, in float64: [n_frames, dim].

    Sums of float16 values are exact in float64, so a constant layer becomes exactly 0.
    """
    wide = x.to(torch.float64, copy=True)
    return wide.sub_(wide.mean(0))


def cross_norm(x: Tensor, y: Tensor) -> float:
    """Return the squared Frobenius norm of xᵀy, by features or frames, whichever are fewer."""
    if len(x) < max(x.shape[1], y.shape[1]):
        return float(((x @ x.T) * (y @ y.T)).sum())
    return float((x.T @ y).square().sum())


def or_none(value: float) -> float | None:
    """Return a number, or None for one that is not finite."""
    return float(value) if math.isfinite(value) else None


@dataclass(frozen=True)
class Alignment:
    """CKA of two representations, with what it is compared with. Each is nan if undefined.

    Attributes:
        cka: Linear CKA, 0 to 1.
        error: Standard error, by a jackknife over groups of utterances.
        chance: Mean CKA over all orders of the frames of one representation: what frames that
            have nothing to do with each other give.
    """

    cka: float
    error: float
    chance: float


class GroupedFrames:
    """A representation of frames that come in groups, prepared for CKA with others.

    Covariances are computed for each group and summed up, so that CKA without each group, for the
    jackknife, costs no further pass over the frames.
    """

    def __init__(self, x: Tensor, bounds: Sequence[int], own: FloatArray | None = None) -> None:
        """Prepare a representation.

        Args:
            x: [n_frames, dim], of any floating-point type.
            bounds: First frame of each group, then the number of frames: [n_groups + 1].
            own: `own` of an earlier object of the same representation, which takes most of the
                time.
        """
        whole = centred(x)
        self.parts = [whole[a:b] for a, b in pairwise(bounds)]
        self.sizes = [len(part) for part in self.parts]
        self.sums = torch.stack([part.sum(0) for part in self.parts])  # [n_groups, dim]
        self.trace = float(whole.square().sum())
        self.own = _cross_norms(self, self) if own is None else own

    def aligned(self, other: GroupedFrames) -> Alignment:
        """Return the CKA with another representation of the same frames in the same groups."""
        own = self.own * other.own
        if not (own > 0).all():
            return Alignment(math.nan, math.nan, math.nan)
        values = _cross_norms(self, other) / np.sqrt(own)
        chance = self.trace * other.trace / ((sum(self.sizes) - 1) * math.sqrt(own[0]))
        return Alignment(float(values[0]), jackknife_error(values[1:]), chance)


def jackknife_error(without: FloatArray) -> float:
    """Return the jackknife's standard error; nan for fewer than two groups.

    Args:
        without: The statistic without each group: [n_groups].
    """
    n = len(without)
    return math.sqrt((n - 1) * without.var()) if n > 1 else math.nan


def _cross_norms(x: GroupedFrames, y: GroupedFrames) -> FloatArray:
    """Return ‖xᵀy‖² of centred frames, of all groups and without each: [1 + n_groups]."""
    products = [a.T @ b for a, b in zip(x.parts, y.parts, strict=True)]
    total = torch.stack(products).sum(0)
    norms = [float(total.square().sum())]
    n_frames = sum(x.sizes)
    for product, size, in_x, in_y in zip(products, x.sizes, x.sums, y.sums, strict=True):
        # the sums over all frames are 0, so those without a group are minus those of the group
        left = (total - product).addr_(in_x, in_y, alpha=-1 / max(n_frames - size, 1))
        norms.append(float(left.square().sum()))
    return np.array(norms if len(products) > 1 else norms[:1])
