"""Checks of values that have the right type but are out of range or contradict each other."""

from __future__ import annotations

import math
from typing import Any

from pipeline.config.checking import did_you_mean
from pipeline.config.schema import Config
from pipeline.config.sweep_schema import SplitConfig, SweepConfig
from pipeline.errors import ConfigError

_MINIMA = {
    "dataset.limit": 1,
    "plan.frames_per_unit": 1,
    "engine.workers": 1,
    "engine.threads": 1,
    "run.max_attempts": 1,
}
"""Smallest valid value of each whole number in the settings of plan and extract."""
_MINIMA_OF_SWEEP = {
    "task.steps": 0,
    "task.batch": 1,
    "task.eval_every": 0,
    "task.patience": 1,
    "task.projection": 1,
}


def check_ranges(config: Config) -> None:
    """Check the values of a configuration of plan and extract.

    Raises:
        ConfigError: A value is out of range; the message says what was expected.
    """
    _check_minima(config, _MINIMA)
    limit_s = config.run.unit_timeout_s
    if limit_s is not None and limit_s <= 0:
        raise ConfigError(f"run.unit_timeout_s is {limit_s}; expected seconds, more than 0")
    batch_s, share = config.extract.max_batch_s, config.run.max_quarantined
    if batch_s is not None and not 0 < batch_s < float("inf"):
        raise ConfigError(f"extract.max_batch_s is {batch_s}; expected seconds, more than 0")
    if not 0 <= share <= 1:
        raise ConfigError(f"run.max_quarantined is {share}; expected a share from 0 to 1")


def check_sweep(config: SweepConfig) -> None:
    """Check the values of a configuration of a sweep.

    Raises:
        ConfigError: A value is out of range; the message says what was expected.
    """
    _check_minima(config, _MINIMA_OF_SWEEP)
    for name, numbers in (("seeds", config.seeds), ("task.lrs", config.task.lrs)):
        if not numbers or len(set(numbers)) < len(numbers):
            raise ConfigError(f"{name} is {list(numbers)}; expected one or more different numbers")
    if any(not 0 < lr < math.inf for lr in config.task.lrs):
        raise ConfigError(f"task.lrs is {list(config.task.lrs)}; expected numbers more than 0")
    if any(seed < 0 for seed in config.seeds):
        raise ConfigError(f"seeds is {list(config.seeds)}; expected whole numbers from 0")
    if config.layers == () or (isinstance(config.layers, str) and config.layers != "all"):
        raise ConfigError(f"layers is {config.layers!r}; expected all or a list as in [1,6,12]")
    devices = ("auto", "cpu", "cuda")
    if config.device not in devices:
        raise ConfigError(f"device is {config.device!r}{did_you_mean(config.device, devices)}")
    _check_split(config.split)


def _check_split(split: SplitConfig) -> None:
    shares = split.ratios
    if len(shares) != 3 or any(not 0 < share < 1 for share in shares):
        raise ConfigError(
            f"split.ratios is {list(shares)}; expected three shares between 0 and 1, of train, dev "
            "and test"
        )
    if abs(sum(shares) - 1) > 1e-6:
        raise ConfigError(f"split.ratios is {list(shares)}; expected shares that sum to 1")
    folds = split.folds
    if folds is None:
        return
    if isinstance(folds, str) and folds != "groups":
        raise ConfigError(f"split.folds is {folds!r}; expected a whole number, groups or null")
    if isinstance(folds, int) and folds < 2:
        raise ConfigError(f"split.folds is {folds}; expected at least 2")
    if folds == "groups" and split.speaker is None:
        raise ConfigError("split.folds=groups needs split.speaker=COLUMN, whose values are groups")
    if split.column not in (None, "auto"):
        raise ConfigError(
            f"split.folds={folds} and split.column={split.column} contradict each other; give one"
        )


def _check_minima(config: Any, minima: dict[str, int]) -> None:
    """Refuse whole numbers below their minimum, by dotted name."""
    for name, minimum in minima.items():
        group, _, key = name.partition(".")
        value = getattr(getattr(config, group), key)
        if value is not None and value < minimum:
            raise ConfigError(f"{name} is {value}; expected at least {minimum}")
