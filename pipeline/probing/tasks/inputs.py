"""Inputs of heads, as their settings name them: statistics over frames, or the frames."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pipeline.config import TaskConfig
from pipeline.config.sweep_schema import ATTENTIVE, LSTM
from pipeline.errors import ConfigError
from pipeline.feed.finite import refuse_not_finite
from pipeline.heads.networks import LSTM_UNITS
from pipeline.probing.tasks.base import TaskData
from pipeline.probing.trainers.sequence_data import Lesson, SequenceData
from pipeline.store.format.pooling import MEAN, STATISTICS


def pooled_inputs(data: TaskData, layers: Sequence[int] | None = None) -> Tensor:
    """Return the statistics that heads get, concatenated: float32 [n_layers, n_utterances, dim].

    Args:
        data: What to learn from.
        layers: Layers of the store to read; None: those that are swept.

    Raises:
        ConfigError: A statistic is unknown, or there is none.
        StoreError: A value is not finite.
    """
    layers = data.layers if layers is None else layers
    parts = [data.store.pooled(layers, statistic=name) for name in check_pooling(data.config)]
    pooled = torch.cat(parts, dim=-1) if len(parts) > 1 else parts[0]
    bad = (~pooled.isfinite().all(2).all(1)).nonzero()[:, 0].tolist()
    refuse_not_finite(data.store, bad)
    return pooled.transpose(0, 1).contiguous()


def check_pooling(task: TaskConfig) -> tuple[str, ...]:
    """Return the statistics that heads get.

    Raises:
        ConfigError: A statistic is unknown, or there is none.
    """
    names = task.pooling
    unknown = [name for name in names if name not in STATISTICS]
    if unknown or not names or len(set(names)) < len(names):
        raise ConfigError(
            f"task.pooling is {list(names)}; expected one or more of {', '.join(STATISTICS)}, each "
            "once"
        )
    return names


def check_attentive(data: TaskData) -> None:
    """Check that a head with attentive pooling can be trained.

    Raises:
        ConfigError: `task.pooling` is set.
        StoreError: The store keeps no frames.
    """
    if data.config.pooling != (MEAN,):
        raise ConfigError(
            f"task.pooling is {list(data.config.pooling)}, and task.head={ATTENTIVE} pools the "
            "frames itself; leave task.pooling out, or train task.head=linear"
        )
    data.store.check_frames()


def check_units(task: TaskConfig) -> None:
    """Check that `task.units` is set for an LSTM only.

    Raises:
        ConfigError: It is set, and the head is another one.
    """
    if task.head != LSTM and task.units != LSTM_UNITS:
        raise ConfigError(
            f"task.units is {task.units}, and task.head={task.head} has no LSTM; leave task.units "
            "out, or train task.head=lstm"
        )


def sequence_data(data: TaskData, lessons: Sequence[Lesson]) -> SequenceData:
    """Return what heads on frames are trained on.

    Args:
        data: Features and settings.
        lessons: What the heads of each fold learn.
    """
    return SequenceData(
        data.store, data.layers, data.config, tuple(lessons), data.device, data.memory
    )
