"""What a sweep can be told: the recipe of its task, how it splits, and which heads it trains."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class TaskConfig:
    """The recipe of a task.

    Attributes:
        name: Short name: ks, sid, ic, er, pr or asr.
        kind: utterance (a class per utterance, on pooled features) or frames (CTC).
        labels: Columns that may hold the labels; the first that the store has is taken.
        slots: Whether all of `labels` are needed together, each a slot of its own; an utterance is
            right only if all its slots are.
        metric: accuracy; cer, wer or per for frames.
        speaker_independent: Whether no speaker may be on both sides of a split.
        lrs: Learning rates of Adam.
        steps: Optimiser steps at most; 0 fits it to the training set.
        batch: Utterances per step; in frame tasks, frames per step (utterances × longest).
        eval_every: Steps between two looks at dev; 0 fits it to the steps.
        patience: Looks at dev without a better score after which a head stops.
        projection: Width of the linear projection in front of the classes.
        tokens: Of frame tasks, what one symbol of the labels is: characters, or words (whatever
            stands between spaces, e.g. phones).
        normalize: Of frame tasks, whether each frame of each layer goes through a LayerNorm without
            parameters first, as SUPERB may.
    """

    name: str
    kind: str
    labels: tuple[str, ...]
    metric: str
    speaker_independent: bool
    lrs: tuple[float, ...]
    steps: int
    batch: int
    eval_every: int
    patience: int
    slots: bool = False
    projection: int = 256
    tokens: str | None = None
    normalize: bool = False


@dataclass(frozen=True)
class SplitConfig:
    """Which utterances train, which select, which are reported.

    Attributes:
        column: Column with the corpus's own split; auto takes a column called split if there is
            one, null makes the split here.
        train: Its value, or values, for training.
        dev: For selection. A corpus without any gets its dev cut from train.
        test: For the report.
        speaker: Column whose values stay on one side of a split that is made here.
        folds: Folds of a cross-validation, or groups: each value of `speaker` is the test set once.
        ratios: Shares of train, dev and test in a split that is made here; the shares of train and
            dev also where dev is cut from train.
        seed: Of a split that is made here.
    """

    column: str | None = "auto"
    train: str | tuple[str, ...] = ("train",)
    dev: str | tuple[str, ...] = ("dev", "validation", "valid", "val")
    test: str | tuple[str, ...] = ("test",)
    speaker: str | None = None
    folds: int | str | None = None
    ratios: tuple[float, ...] = (0.8, 0.1, 0.1)
    seed: int = 0


@dataclass(frozen=True)
class SweepConfig:
    """Everything that `strata sweep` may need.

    Attributes:
        task: The recipe.
        layers: all, or a list of layers.
        weighted: Whether to train the learned weighted sum of these layers too.
        seeds: Of initial values and the order of the data; each trains heads of its own.
        labels: Label columns in place of the recipe's.
        device: auto, cpu or cuda.
        out: Folder of the results; None takes sweeps/STORE/TASK-LABELS.
        split: How the corpus is split.
    """

    task: TaskConfig
    layers: str | tuple[int, ...] = "all"
    weighted: bool = True
    seeds: tuple[int, ...] = (0, 1, 2)
    labels: tuple[str, ...] | None = None
    device: str = "auto"
    out: str | None = None
    split: SplitConfig = field(default_factory=SplitConfig)
