"""Settings of a sweep: the recipe of its task, the split and the heads."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from pipeline.config.spans_schema import SpansConfig

_UNTRAINED = ("verification", "abx")  # kinds of task
_POOLED = ("utterance", "regression", "verification")  # those on statistics over frames

LINEAR, MLP, ATTENTIVE, LSTM, COSINE, LDA = "linear", "mlp", "attentive", "lstm", "cosine", "lda"

HEADS: dict[str, tuple[str, ...]] = {
    "utterance": (LINEAR, MLP, ATTENTIVE),
    "regression": (LINEAR, MLP, ATTENTIVE),
    "spans": (LINEAR, MLP),
    "framewise": (LINEAR, MLP, LSTM),
    "frames": (LINEAR, MLP, LSTM),
    "verification": (COSINE, LDA),
    "abx": (LINEAR,),
}
"""Heads of each kind of task; the first is that of the recipe. ABX has none, and ignores it."""


@dataclass(frozen=True)
class TaskConfig:
    """Recipe of a task.

    Attributes:
        name: Short name: "ks", "sid", "lid", "ic", "er", "regression", "sv", "pr", "asr", "phone",
            "word", "frame" or "abx".
        kind: "utterance" (a class per utterance, on pooled features), "regression" (a number per
            utterance), "verification" (pairs of utterances), "frames" (CTC), "spans" (a class per
            span, on pooled features), "framewise" (a class per frame, from spans) or "abx"
            (comparisons of spans).
        labels: Columns that may hold the labels; the first one in the store is used.
        slots: Whether every column of `labels` is an intent slot with its own classes; an utterance
            is correct if all its intent slots are. Not a storage slot.
        metric: "accuracy"; "f1" is possible if `kind` is framewise; "ccc", "pearson" or "mae" for
            regression; "eer" or "min_dcf" for verification; "abx_within"
            or "abx_across" for ABX; "cer", "wer" or "per" for frames.
        speaker_independent: Whether train, dev and test must have disjoint speakers.
        lrs: Learning rates of Adam. Tasks that train nothing have none.
        steps: Maximum number of optimiser steps. 0: 640, or 20 epochs of train if that is more. Set
            it for frame tasks, whose `batch` counts frames.
        batch: Utterances per step if `kind` is utterance; frames per step (utterances × frames of
            the longest one) if it is frames; spans, or frames, of the other kinds.
        eval_every: Steps between two evaluations on dev. 0: steps / 32, at least 1.
        patience: Evaluations without a better dev score after which a head stops.
        projection: Width of the linear projection before the classes.
        pooling: For utterance tasks, the statistics over the frames of an utterance that heads get,
            one after the other: "mean", "std", "max", "first", "last".
        tokens: For frame tasks, the symbols of the labels: "characters", or "words" (separated by
            spaces, e.g. phones).
        normalize: For frame tasks, whether each frame of each layer is normalised by a LayerNorm
            without parameters, as in SUPERB.
        loss: For regression, "ccc" or "mse".
        head: One of `HEADS` of the kind.
        units: For `head` lstm, the units of each direction of each of its two layers.
        trials: For verification, file of the test trials; None draws them from test.
        n_trials: Trials that are drawn, half of them of one speaker.
        sample_seed: Seed of what is drawn: trials, or spans for ABX.
        trial_id_form: For verification, form of the ids of `trials`, as `spans.id_form`.
        skip_missing_trials: Whether trials of utterances that are not in the store are left out.
        silence: For tasks on spans, labels of spans that are left out, in upper or lower case,
            unless `spans.skip` is set.
        min_count: For tasks on spans, the fewest spans of a class that is learned.
        max_classes: For tasks on spans, how many of the most frequent classes are learned; None:
            all.
        unlabelled: For framewise tasks, name of a class for frames in no span; None: such frames
            are neither trained on nor scored.
        context: For ABX, "triphone": spans have the same labels before and after; or "any".
        speaker_column: For ABX, column of the speaker; None finds it by its name.
        max_items: For ABX, spans of a class, context and speaker, drawn.
        max_speakers: For ABX across speakers, speakers of X for a context and a speaker, drawn.
    """

    name: str
    kind: str
    labels: tuple[str, ...]
    metric: str
    speaker_independent: bool
    lrs: tuple[float, ...] = ()
    steps: int = 0
    batch: int = 1
    eval_every: int = 0
    patience: int = 1
    slots: bool = False
    projection: int = 256
    pooling: tuple[str, ...] = ("mean",)
    tokens: str | None = None
    normalize: bool = False
    loss: str | None = None
    head: str = LINEAR
    units: int = 256
    trials: str | None = None
    n_trials: int = 20_000
    sample_seed: int = 0
    trial_id_form: str | None = None
    skip_missing_trials: bool = False
    silence: tuple[str, ...] = ()
    min_count: int = 1
    max_classes: int | None = None
    unlabelled: str | None = None
    context: str | None = None
    speaker_column: str | None = None
    max_items: int = 10
    max_speakers: int = 5

    @property
    def is_trained(self) -> bool:
        """Whether heads are trained, by learning rate and seed."""
        return self.kind not in _UNTRAINED

    @property
    def reads_frames(self) -> bool:
        """Whether a store of statistics over frames alone is not enough."""
        return self.kind not in _POOLED or self.head == ATTENTIVE


@dataclass(frozen=True)
class SplitConfig:
    """Split into train, dev (for selection) and test (for the report).

    Attributes:
        column: Column with the corpus's split. "auto": a column with a usual name (split,
            split_set, partition, subset), if `folds` is None and the column has values of both
            `train` and `test`; or one with no values but those of the parts; otherwise a random
            split. None: a random split.
        train: Values of `column` for training, compared without regard to case and hyphens.
        dev: Values of `column` for dev; if no utterance has one, dev is cut from train.
        test: Values of `column` for test.
        speaker: Column whose values must not be shared between train, dev and test. "none": a
            speaker may be in several parts. None: a speaker-independent task looks for a column
            with a usual name, and refuses a random split that has its values in several parts, or
            that finds none.
        folds: An integer k for k-fold cross-validation, or "groups": leave-one-group-out over the
            values of `speaker`. None: one split.
        ratios: Shares of train, dev and test in a random split. When dev is cut from train, dev
            gets ratios[1] / (ratios[0] + ratios[1]) of train.
        seed: Seed of a random split.
    """

    column: str | None = "auto"
    train: str | tuple[str, ...] = ("train", "training", "trn")
    dev: str | tuple[str, ...] = ("dev", "development", "devel", "validation", "valid", "val")
    test: str | tuple[str, ...] = ("test", "testing", "tst", "test1", "eval", "evaluation")
    speaker: str | None = None
    folds: int | str | None = None
    ratios: tuple[float, ...] = (0.8, 0.1, 0.1)
    seed: int = 0


@dataclass(frozen=True)
class SweepConfig:
    """All settings of `strata sweep`.

    Attributes:
        task: Recipe of the task.
        layers: "all", or a list of layers by number or name.
        weighted: Whether to train on the learned weighted sum of these layers too.
        seeds: Seeds of initial values and data order; heads are trained for each seed.
        labels: Label columns that replace the recipe's.
        device: "auto", "cpu" or "cuda".
        out: Folder of the results; None uses sweeps/STORE/TASK-LABELS.
        memory: For tasks on spans and for heads on frames, the largest size of the features in
            memory, as text such as "4GB"; for heads on frames, of their training, too.
        split: Split of the corpus.
        spans: Where labelled intervals are read from, for tasks on spans.
        heads: Kinds of heads to compare, each of which replaces `task.head`; None: only that one.
        fractions: Shares of train, each of which heads are trained on; None: all of train.
    """

    task: TaskConfig
    layers: str | tuple[int | str, ...] = "all"
    weighted: bool = True
    seeds: tuple[int, ...] = (0, 1, 2)
    labels: tuple[str, ...] | None = None
    device: str = "auto"
    out: str | None = None
    memory: str = "4GB"
    split: SplitConfig = field(default_factory=SplitConfig)
    spans: SpansConfig = field(default_factory=SpansConfig)
    heads: tuple[str, ...] | None = None
    fractions: tuple[float, ...] | None = None

    @property
    def variants(self) -> tuple[SweepConfig, ...]:
        """Settings of one sweep for each head and share of train, the largest share first."""
        return tuple(
            replace(self, task=replace(self.task, head=head), heads=None, fractions=(fraction,))
            for head in self.heads or (self.task.head,)
            for fraction in sorted(self.fractions or (1.0,), reverse=True)
        )

    @property
    def fraction(self) -> float:
        """Share of train of settings with one share."""
        return self.fractions[0] if self.fractions else 1.0
