"""What a comparison of sweeps consists of, as plain values.

A variant is one sweep of a comparison: an encoder, a head, a share of train. Its best candidate is
the layer, or the weighted sum, with the best dev score. Scores are fractions.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from pipeline.errors import StrataError
from pipeline.probing.ranking import best_single_layer
from pipeline.probing.result_files import summary
from pipeline.probing.results import (
    SIGNIFICANCE_LEVEL,
    WEIGHTED,
    Candidate,
    CandidateScore,
    Sweep,
)


@dataclass(frozen=True)
class Variant:
    """A sweep of a comparison.

    Attributes:
        name: Short name, unique within its task.
        encoder: Name of the encoder, the same in all tasks.
        head: Kind of the head.
        fraction: Share of train, above 0 and at most 1.
        folder: Folder of the sweep.
        sweep: Its results.
        test_set: Hash of what is tested; None if the results do not say it.
        setting: Name of the folder, where encoder, head and share of train do not tell two sweeps
            of a task apart; else empty.
    """

    name: str
    encoder: str
    head: str
    fraction: float
    folder: str
    sweep: Sweep = field(repr=False)
    test_set: str | None = None
    setting: str = ""

    @property
    def best(self) -> CandidateScore:
        """Scores of the best candidate."""
        return self.sweep.score(self.sweep.best)

    @property
    def best_layer(self) -> CandidateScore:
        """Scores of the single layer with the best dev score."""
        layer = best_single_layer(self.sweep.scores, self.sweep.higher_is_better)
        return self.sweep.score(layer)

    @property
    def weighted(self) -> CandidateScore | None:
        """Scores of the weighted sum; None without one."""
        found = [score for score in self.sweep.scores if score.layer == WEIGHTED]
        return found[0] if found else None


@dataclass(frozen=True)
class PairTest:
    """Paired test of two candidates on the same test units.

    Attributes:
        first: Name of a variant.
        first_candidate: Its candidate.
        second: Name of another variant, or of the same.
        second_candidate: Its candidate.
        difference: Test score of the first minus that of the second.
        low: Lower bound of the 95 % bootstrap interval of the difference.
        high: Upper bound of that interval.
        p_value: p-value of the test, not corrected.
        adjusted: p-value after Holm's correction for all tests of `Pairs`.
        test: Name of the test.
        first_name: Name of the first candidate: layer 6, conv, weighted sum.
        second_name: Name of the second candidate.
    """

    first: str
    first_candidate: Candidate
    second: str
    second_candidate: Candidate
    difference: float
    low: float
    high: float
    p_value: float
    adjusted: float
    test: str
    first_name: str
    second_name: str

    @property
    def is_significant(self) -> bool:
        """Whether the corrected p-value is below the level of significance."""
        return self.adjusted < SIGNIFICANCE_LEVEL


@dataclass(frozen=True)
class HeadChange:
    """Whether another head has another best layer, for one encoder.

    Attributes:
        encoder: Name of the encoder.
        reference: The head that comes first.
        head: The other head.
        reference_layer: Best single layer with the first head, by dev.
        layer: Best single layer with the other head, by dev.
        n_layers: Number of layers that both have.
        rank_correlation: Spearman's correlation of the dev scores of these layers; None with fewer
            than five.
        test: With the other head, its best layer against that of the first head; None if they are
            equal, or if predictions are missing.
        reference_name: Name of `reference_layer`: layer 6, conv.
        name: Name of `layer`.
    """

    encoder: str
    reference: str
    head: str
    reference_layer: Candidate
    layer: Candidate
    n_layers: int
    rank_correlation: float | None
    test: PairTest | None
    reference_name: str
    name: str


@dataclass(frozen=True)
class TaskComparison:
    """Sweeps of one task.

    Attributes:
        task: Name of the task.
        labels: Label columns.
        metric: The metric.
        higher_is_better: Direction of the metric.
        name: Short name, unique within the comparison.
        variants: The sweeps, by encoder, head and share of train.
        pairs: Tests of the best candidates of two variants with the largest share of train.
        head_changes: Comparisons of other heads with the first one.
        notes: What could not be compared, and why.
    """

    task: str
    labels: tuple[str, ...]
    metric: str
    higher_is_better: bool
    name: str
    variants: tuple[Variant, ...]
    pairs: tuple[PairTest, ...] = ()
    head_changes: tuple[HeadChange, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def full(self) -> tuple[Variant, ...]:
        """The variants with the largest share of train of the task."""
        largest = max(variant.fraction for variant in self.variants)
        return tuple(variant for variant in self.variants if variant.fraction == largest)

    @property
    def winner(self) -> Variant:
        """Of the variants with the largest share of train, the one with the best test score."""
        sign = 1 if self.higher_is_better else -1
        return max(self.full, key=lambda variant: sign * variant.best.test)

    def test_of(self, one: Variant, other: Variant) -> PairTest | None:
        """Return the test of two variants; None if they were not tested."""
        names = {one.name, other.name}
        return next((pair for pair in self.pairs if {pair.first, pair.second} == names), None)

    def is_best(self, variant: Variant) -> bool:
        """Whether a variant is the winner, or does not differ from it significantly."""
        if variant not in self.full:
            return False
        test = self.test_of(variant, self.winner)
        return variant == self.winner or (test is not None and not test.is_significant)


@dataclass(frozen=True)
class Comparison:
    """A comparison of sweeps of one or several tasks.

    Attributes:
        tasks: One entry per task.
        encoders: Names of the encoders, in the order in which they were given.
        heads: Kinds of heads.
        fractions: Shares of train, ascending.
        warnings: Warnings to show before the scores.
        version: Version of Strata.
    """

    tasks: tuple[TaskComparison, ...]
    encoders: tuple[str, ...]
    heads: tuple[str, ...]
    fractions: tuple[float, ...]
    warnings: tuple[str, ...] = ()
    version: str = ""

    @property
    def names_heads(self) -> bool:
        """Whether names have the head: if there are several for one task."""
        return any(len({variant.head for variant in task.variants}) > 1 for task in self.tasks)

    @property
    def random_encoders(self) -> tuple[str, ...]:
        """Names of the encoders that have random weights."""
        variants = [variant for task in self.tasks for variant in task.variants]
        return tuple(
            dict.fromkeys(
                v.encoder for v in variants if v.sweep.setup.encoder.get("weights") == "random"
            )
        )

    @property
    def n_sweeps(self) -> int:
        """Number of sweeps."""
        return sum(len(task.variants) for task in self.tasks)

    def task(self, name: str) -> TaskComparison:
        """Return a task by its name.

        Raises:
            StrataError: There is no such task.
        """
        for task in self.tasks:
            if name in (task.name, task.task):
                return task
        raise StrataError(f"no task {name!r}; there are {', '.join(t.name for t in self.tasks)}")


def document(comparison: Comparison) -> dict[str, Any]:
    """Return a comparison as JSON has it, each sweep as `strata sweep --json` prints it."""
    return {
        "encoders": list(comparison.encoders),
        "heads": list(comparison.heads),
        "fractions": list(comparison.fractions),
        "warnings": list(comparison.warnings),
        "version": comparison.version,
        "tasks": [_task(task) for task in comparison.tasks],
    }


def _task(task: TaskComparison) -> dict[str, Any]:
    return {
        "task": task.task,
        "name": task.name,
        "labels": list(task.labels),
        "metric": task.metric,
        "higher_is_better": task.higher_is_better,
        "winner": task.winner.name,
        "best": [variant.name for variant in task.variants if task.is_best(variant)],
        "variants": [
            {
                "name": variant.name,
                "encoder": variant.encoder,
                "head": variant.head,
                "fraction": variant.fraction,
                "folder": variant.folder,
                "test_set": variant.test_set,
                "best": variant.best.layer,
                "best_layer": variant.best_layer.layer,
                "sweep": summary(variant.sweep),
            }
            for variant in task.variants
        ],
        "pairs": [asdict(pair) for pair in task.pairs],
        "head_changes": [asdict(change) for change in task.head_changes],
        "notes": list(task.notes),
    }
