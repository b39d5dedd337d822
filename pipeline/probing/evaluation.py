"""Test scores as functions of weights of test groups.

A group is an utterance, or a speaker in tasks that compare speakers. The bootstrap draws groups
again, so a drawn test set is a vector of weights: the number of times that each group was drawn.
With a weight of 1 for every group, the score is the reported one.

An accuracy, an error rate, an F1 score, a correlation or an absolute error is a function of sums
over utterances (`Sums`). An equal error rate is not, so a task may have an evaluation of its own.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]


class Evaluation(ABC):
    """Test score of the heads of one candidate and seed.

    A subclass must define `scores`.

    Attributes:
        n_groups: Number of test groups.
        group: What a group is, in the plural, for the name of a test.
    """

    def __init__(self, n_groups: int, group: str = "utterances") -> None:
        self.n_groups, self.group = n_groups, group

    @abstractmethod
    def scores(self, weights: FloatArray) -> FloatArray:
        """Return the score for each vector of weights.

        Args:
            weights: Weights of the groups, not negative, [n_draws, n_groups].

        Returns:
            [n_draws]. Finite: a score that is undefined for a draw has a stated value.
        """

    @property
    def score(self) -> float:
        """The score on the test set as it is."""
        return float(self.scores(np.ones((1, self.n_groups)))[0])


class Sums(Evaluation):
    """A score that is a function of sums over the test groups.

    Attributes:
        values: Summands of each group, [n_groups, n_sums].
    """

    def __init__(self, values: FloatArray, function: Callable[[FloatArray], FloatArray]) -> None:
        """Take the summands and the function.

        Args:
            values: [n_groups, n_sums].
            function: Maps sums [n_draws, n_sums] to scores [n_draws].
        """
        super().__init__(len(values))
        self.values, self._function = np.asarray(values, np.float64), function

    def scores(self, weights: FloatArray) -> FloatArray:
        """Return the score for each vector of weights."""
        return self.of_sums(weights @ self.values)

    def of_sums(self, sums: FloatArray) -> FloatArray:
        """Return the score of each row of sums, [n_draws, n_sums]."""
        return self._function(sums)


class Ratio(Sums):
    """A score `counts.sum() / sizes.sum()`, where a total size of 0 counts as 1.

    For an accuracy, a count is 1 if the prediction is correct, else 0, and every size is 1. For an
    error rate, a count is the number of errors and a size the number of reference symbols.

    Attributes:
        counts: [n_groups].
        sizes: [n_groups].
    """

    def __init__(self, counts: npt.NDArray[np.generic], sizes: npt.NDArray[np.generic]) -> None:
        """Take counts and sizes, [n_groups] each."""
        values = np.stack([counts, sizes], axis=1).astype(np.float64)
        super().__init__(values, _ratio)
        self.counts, self.sizes = self.values.T


def _ratio(sums: FloatArray) -> FloatArray:
    return np.asarray(sums[:, 0] / np.maximum(1.0, sums[:, 1]))
