"""Ranges of the settings, and checks of values that contradict each other.

`RANGES` has every number of `Config` and `SweepConfig`. A maximum is far above any sensible value,
and below those that would take hours or all memory.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.config.schema import Config
from pipeline.config.sweep_schema import HEADS, SplitConfig, SweepConfig
from pipeline.errors import ConfigError, did_you_mean

_MAX_SEED = 2**32 - 1
_DAY_S = 86_400
_LAYERS = (
    "; blocks are 1 to N (`strata models`), 0 is their input, -1 is conv, and no number counts "
    "from the end"
)


@dataclass(frozen=True)
class Range:
    """Valid values of a number, or of each number of a list.

    Attributes:
        minimum: Smallest valid value, or with `is_open` the largest invalid one below it.
        maximum: Largest valid value.
        unit: What the numbers are, for messages; empty for a plain number.
        is_open: Whether the minimum itself is invalid.
        max_items: Largest number of items, for a list.
        hint: What the numbers mean, to append to a message.
    """

    minimum: float
    maximum: float
    unit: str = ""
    is_open: bool = False
    max_items: int = 1000
    hint: str = ""

    def __contains__(self, value: float) -> bool:
        """Whether a number is valid; NaN never is."""
        is_above = self.minimum < value if self.is_open else self.minimum <= value
        return is_above and value <= self.maximum

    def __str__(self) -> str:
        if self.unit in ("a share", "whole numbers"):
            return f"{self.unit} from {self.minimum:,} to {self.maximum:,}"
        unit = f"{self.unit} " if self.unit == "numbers" else f"{self.unit}, " if self.unit else ""
        if self.is_open:
            lower = f"more than {self.minimum:g}"
        else:
            lower = f"{self.minimum:,} or more" if unit else f"at least {self.minimum:,}"
        return f"{unit}{lower} and at most {self.maximum:,}"


RANGES: Mapping[str, Range] = {
    "dataset.limit": Range(1, 10**12),
    "model.seed": Range(0, 2**63 - 1),
    "plan.frames_per_unit": Range(1, _DAY_S * 50),
    "engine.workers": Range(1, 10_000),
    "engine.threads": Range(1, 1024),
    "extract.layers": Range(-1, 1000, hint=_LAYERS),
    "extract.max_batch_s": Range(0, _DAY_S, "seconds", is_open=True),
    "extract.max_window_s": Range(1, 3600, "seconds"),
    "extract.context_s": Range(0, 600, "seconds"),
    "run.max_attempts": Range(1, 1000),
    "run.unit_timeout_s": Range(0, 365 * _DAY_S, "seconds", is_open=True),
    "run.max_quarantined": Range(0, 1, "a share"),
    "run.max_changed": Range(0, 1, "a share"),
    "task.steps": Range(0, 1_000_000),
    "task.batch": Range(1, 10_000_000),
    "task.eval_every": Range(0, 1_000_000),
    "task.patience": Range(1, 1_000_000),
    "task.projection": Range(1, 65_536),
    "task.units": Range(1, 16_384),
    "task.n_trials": Range(2, 10_000_000),
    "task.sample_seed": Range(0, _MAX_SEED),
    "task.max_items": Range(2, 100_000),
    "task.max_speakers": Range(1, 100_000),
    "task.min_count": Range(1, 10**9),
    "task.max_classes": Range(2, 100_000),
    "spans.sample_rate_hz": Range(0, 10**9, "hertz", is_open=True),
    "task.lrs": Range(0, 100, "numbers", is_open=True, max_items=100),
    "layers": Range(-1, 1000, hint=_LAYERS),
    "seeds": Range(0, _MAX_SEED, "whole numbers"),
    "fractions": Range(0, 1, "shares", is_open=True, max_items=100),
    "split.seed": Range(0, _MAX_SEED),
    "split.folds": Range(2, 1000),
    "split.ratios": Range(0, 1, "shares", is_open=True),
}
"""Range of each numeric setting by its dotted name. null, and texts such as `all`, are valid too
where the setting has them."""


def check_ranges(config: Config) -> None:
    """Check the values of a configuration of plan and extract.

    Raises:
        ConfigError: A value is out of range; the message says what was expected.
    """
    _check_numbers(config)


def check_sweep(config: SweepConfig) -> None:
    """Check the values of a configuration of a sweep.

    Raises:
        ConfigError: A value is out of range; the message says what was expected.
    """
    lists = {"seeds": config.seeds, "task.lrs": config.task.lrs if config.task.is_trained else (1,)}
    for name, numbers in lists.items():
        if not numbers or len(set(numbers)) < len(numbers):
            raise ConfigError(
                f"{name} is {_shown(numbers)}; expected one or more different numbers"
            )
    if config.layers == () or (isinstance(config.layers, str) and config.layers != "all"):
        given = repr(config.layers) if config.layers else "[]"
        raise ConfigError(f"layers is {given}; expected all or a list as in [1,6,12]")
    devices = ("auto", "cpu", "cuda")
    if config.device not in devices:
        raise ConfigError(f"device is {config.device!r}{did_you_mean(config.device, devices)}")
    _check_heads(config)
    _check_split(config.split)
    _check_numbers(config)


def check_number(name: str, value: float, expected: Range) -> None:
    """Check one number.

    Args:
        name: Name of the setting, for the message.
        value: The number.
        expected: Its range.

    Raises:
        ConfigError: It is out of range.
    """
    if value not in expected:
        raise ConfigError(f"{name} is {_shown(value)}; expected {expected}")


def _check_numbers(config: Config | SweepConfig) -> None:
    """Check every number of a configuration that `RANGES` names."""
    for name, expected in RANGES.items():
        value: Any = config
        for key in name.split("."):
            value = getattr(value, key, None)
        if isinstance(value, int | float):
            check_number(name, value, expected)
        elif isinstance(value, tuple):
            if len(value) > expected.max_items:
                raise ConfigError(
                    f"{name} has {len(value):,} items; expected at most {expected.max_items:,}"
                )
            if any(item not in expected for item in value if not isinstance(item, str)):
                raise ConfigError(f"{name} is {_shown(value)}; expected {expected}{expected.hint}")


def _check_heads(config: SweepConfig) -> None:
    heads = HEADS.get(config.task.kind, (config.task.head,))  # a task refuses unknown kinds
    if config.task.head not in heads:
        raise ConfigError(f"task.head is {config.task.head!r}; expected {' or '.join(heads)}")
    for name, values in (("heads", config.heads), ("fractions", config.fractions)):
        if values is not None and (not values or len(set(values)) < len(values)):
            raise ConfigError(f"{name} is {_shown(values)}; expected one or more different ones")
    for head in config.heads or ():
        if head not in heads:
            raise ConfigError(
                f"heads has {head!r}{did_you_mean(head, heads)}; task {config.task.name} has "
                f"{', '.join(heads)}"
            )
    if config.fractions is not None and not config.task.is_trained:
        raise ConfigError(
            f"fractions is {_shown(config.fractions)}, and task {config.task.name} trains no "
            "heads; leave it out"
        )


def _check_split(split: SplitConfig) -> None:
    shares = split.ratios
    if len(shares) != 3 or any(share not in RANGES["split.ratios"] for share in shares):
        raise ConfigError(
            f"split.ratios is {_shown(shares)}; expected three shares between 0 and 1, of train, "
            "dev and test"
        )
    if abs(sum(shares) - 1) > 1e-6:
        raise ConfigError(f"split.ratios is {list(shares)}; expected shares that sum to 1")
    folds = split.folds
    if folds is None:
        return
    if isinstance(folds, str) and folds != "groups":
        raise ConfigError(f"split.folds is {folds!r}; expected a whole number, groups or null")
    if folds == "groups" and split.speaker in (None, "none"):
        raise ConfigError("split.folds=groups needs split.speaker=COLUMN, whose values are groups")
    if split.column not in (None, "auto"):
        raise ConfigError(
            f"split.folds={folds} and split.column={split.column} contradict each other; give one"
        )


def _shown(value: Any) -> str:
    """Return a value for a message; long ones are cut."""
    text = repr(list(value) if isinstance(value, tuple) else value)
    return text if len(text) <= 80 else f"{text[:77]}..."
