"""Canonical correlations of features with classes, on items that they were not fitted to.

Arithmetic only. The statistics are the projection-weighted mean (PWCCA) of Morcos et al. 2018,
"Insights on representational similarity in neural networks with canonical correlation"
(arXiv 1806.05759); the plain mean; and SVCCA of Raghu et al. 2017 (arXiv 1706.05806), the mean
after the features are reduced to directions of most of their variance. Items are divided, and
directions are chosen and scored, as by Pasad et al. 2021, "Layer-wise analysis of a self-supervised
speech representation model" (arXiv 2107.04734).

All is computed from the moments of each part of the items, so that fitting without some parts
costs no further pass over the items. Classes are one-hot vectors.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

RIDGES = (1e-8, 1e-6, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""Regularisation that is tried: added to each variance, as a share of the mean variance."""
KEPT_VARIANCE = 0.99
"""Share of the variance of the features that SVCCA keeps."""
_SMALLEST = 1e-10  # share of the largest eigenvalue from which a direction of the classes counts


@dataclass(frozen=True)
class Correlations:
    """Canonical correlations of features with classes on items that they were not fitted to.

    Attributes:
        pwcca: Mean over directions, weighted by how much of the classes each accounts for.
        cca: Mean over directions.
        svcca: Mean over directions after the features are reduced to 99 % of their variance.
    """

    pwcca: float
    cca: float
    svcca: float


Covariances = tuple[Tensor, Tensor, Tensor]
"""Of x with x, of x with y, and of y with y."""


@dataclass(frozen=True)
class Moments:
    """Sums over items of features x and one-hot classes y.

    Attributes:
        n: Number of items.
        x: Sum of x: [dim].
        y: Items of each class: [n_classes].
        xx: Sum of x xᵀ: [dim, dim].
        xy: Sum of x yᵀ: [dim, n_classes].
    """

    n: int
    x: Tensor
    y: Tensor
    xx: Tensor
    xy: Tensor

    @classmethod
    def of(cls, x: Tensor, classes: Tensor, n_classes: int) -> Moments:
        """Sum up items.

        Args:
            x: Features, float64 [n, dim]; less a constant, best the mean over all items.
            classes: Class of each item, int64 [n].
            n_classes: Number of classes.
        """
        y, xy = _of_classes(x, classes, n_classes)
        return cls(len(x), x.sum(0), y, x.T @ x, xy)

    def with_classes(self, x: Tensor, classes: Tensor) -> Moments:
        """Return the sums of the same items with other classes; `xx` is not computed again."""
        y, xy = _of_classes(x, classes, len(self.y))
        return Moments(self.n, self.x, y, self.xx, xy)

    def __add__(self, other: Moments) -> Moments:
        return Moments(
            self.n + other.n,
            self.x + other.x,
            self.y + other.y,
            self.xx + other.xx,
            self.xy + other.xy,
        )

    def covariances(self) -> Covariances:
        """Return the covariances of x with x, of x with y, and of y with y."""
        x, y = self.x / self.n, self.y / self.n
        return (
            self.xx / self.n - torch.outer(x, x),
            self.xy / self.n - torch.outer(x, y),
            torch.diag(y) - torch.outer(y, y),
        )


def _of_classes(x: Tensor, classes: Tensor, n_classes: int) -> tuple[Tensor, Tensor]:
    """Return the items of each class, and the sum of x yᵀ."""
    y = torch.bincount(classes, minlength=n_classes).double()
    yx = torch.zeros((n_classes, x.shape[1]), dtype=torch.float64).index_add_(0, classes, x)
    return y, yx.T


@dataclass(frozen=True)
class Spectrum:
    """Eigenvectors and eigenvalues of the covariance of features, which all fits of them share.

    Attributes:
        values: Ascending, not negative: [dim].
        vectors: One a column: [dim, dim].
    """

    values: Tensor
    vectors: Tensor

    @classmethod
    def of(cls, covariance: Tensor) -> Spectrum:
        """Decompose a covariance."""
        values, vectors = torch.linalg.eigh(covariance)
        return cls(values.clamp_min(0), vectors)


@dataclass(frozen=True)
class Directions:
    """Canonical directions.

    Attributes:
        x: Direction in the features, one a column: [dim, n_directions].
        y: Direction in the classes: [n_classes, n_directions].
        correlations: Canonical correlation of each on the items of the fit, descending.
        weights: Share of the smaller side, features or classes, that each accounts for
            (Morcos et al., 2018, equation 2): [n_directions].
    """

    x: Tensor
    y: Tensor
    correlations: Tensor
    weights: Tensor

    def score(self, items: Covariances) -> Tensor:
        """Return the correlation along each direction, [n_directions], on other items.

        It may be negative there, and is 0 where all items have one value.
        """
        xx, xy, yy = items
        shared = (self.x * (xy @ self.y)).sum(0)
        own = (self.x * (xx @ self.x)).sum(0) * (self.y * (yy @ self.y)).sum(0)
        return torch.where(own > 0, shared / own.clamp_min(1e-300).sqrt(), 0.0).clamp(-1, 1)


class Fit:
    """Canonical directions of features and classes, for any regularisation.

    Attributes:
        is_defined: Whether neither features nor classes are constant; if not, it has no directions.
    """

    def __init__(self, train: Moments, spectrum: Spectrum) -> None:
        """Prepare a fit.

        Args:
            train: The items.
            spectrum: Of the covariance of their features.
        """
        _, xy, self._yy = train.covariances()
        own, sides = torch.linalg.eigh(self._yy)
        is_used = own > _SMALLEST * own.max()  # one-hot classes sum up to 1: one direction is 0
        self._white_y = sides[:, is_used] / own[is_used].sqrt()  # [n_classes, rank]
        self._spectrum = spectrum
        self._shared = spectrum.vectors.T @ (xy @ self._white_y)  # [dim, rank]
        self.is_defined = bool(is_used.any()) and float(spectrum.values[-1]) > 0

    def regularised(self, ridge: float) -> Directions:
        """Return the directions with a regularisation.

        Args:
            ridge: Added to each variance of the features, as a share of their mean variance.
        """
        values = self._spectrum.values
        return self._directions(values + ridge * values.mean())

    def reduced(self, kept: float = KEPT_VARIANCE) -> Directions:
        """Return the directions after features are reduced to a share of their variance."""
        values = self._spectrum.values
        shares = values.flip(0).cumsum(0) / values.sum()
        n_kept = min(int((shares < kept).sum()) + 1, len(shares))
        return self._directions(values[-n_kept:])

    def _directions(self, variances: Tensor) -> Directions:
        """Return directions in the space of the last eigenvectors, with these variances."""
        deviations = variances.sqrt()[:, None]
        vectors = self._spectrum.vectors[:, -len(variances) :]
        shared = self._shared[-len(variances) :] / deviations
        left, correlations, right = torch.linalg.svd(shared, full_matrices=False)
        y = self._white_y @ right.T
        if self._white_y.shape[1] <= len(variances):
            weights = (y.T @ self._yy).abs().sum(1)
        else:
            weights = (vectors @ (left * deviations)).abs().sum(0)
        return Directions(vectors @ (left / deviations), y, correlations, weights / weights.sum())


def held_out(
    train: Moments,
    spectrum: Spectrum,
    dev: Moments,
    test: Moments,
    ridges: Sequence[float] = RIDGES,
) -> Correlations:
    """Fit directions on train, choose the regularisation on dev, and return the scores on test.

    Args:
        train: Items of the fit.
        spectrum: Of the covariance of their features.
        dev: Items on which the regularisation is chosen, by PWCCA.
        test: Items that are scored.
        ridges: Regularisation to choose from.

    Returns:
        nan if the features or the classes of train are constant.
    """
    found = Fit(train, spectrum)
    if not found.is_defined:
        return Correlations(math.nan, math.nan, math.nan)
    on_dev, on_test = dev.covariances(), test.covariances()
    fits = [found.regularised(ridge) for ridge in ridges]
    best = max(fits, key=lambda one: float((one.weights * one.score(on_dev)).sum()))
    scores = best.score(on_test)
    return Correlations(
        pwcca=float((best.weights * scores).sum()),
        cca=float(scores.mean()),
        svcca=float(found.reduced().score(on_test).mean()),
    )
