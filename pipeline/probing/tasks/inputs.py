"""Inputs of heads on utterances: statistics over frames."""

from __future__ import annotations

import torch
from torch import Tensor

from pipeline.config import TaskConfig
from pipeline.errors import ConfigError
from pipeline.probing.tasks.base import TaskData
from pipeline.store.format.pooling import STATISTICS


def pooled_inputs(data: TaskData) -> Tensor:
    """Return the statistics that heads get, concatenated: float32 [n_layers, n_utterances, dim].

    Raises:
        ConfigError: A statistic is unknown, or there is none.
    """
    parts = [data.store.pooled(data.layers, statistic=name) for name in check_pooling(data.config)]
    pooled = torch.cat(parts, dim=-1) if len(parts) > 1 else parts[0]
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
