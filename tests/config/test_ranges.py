"""Every number in the settings has a range with a maximum; absurd values are refused at once."""

from __future__ import annotations

import dataclasses
import types
import typing

import pytest

from pipeline.config import Config, SweepConfig, load_config, load_sweep_config
from pipeline.config.ranges import RANGES
from pipeline.errors import ConfigError

ABSURD = ["-5", "nan", "9" * 30]
MORE = ["-1e9", "inf", "-inf", "1e15", "1e308", "9" * 400, "9" * 5000]
VALUES = [*ABSURD, *(pytest.param(value, marks=pytest.mark.slow) for value in MORE)]


def numbers_of(kind: type, prefix: str = "") -> set[str]:
    """Dotted names of the fields that may hold a number or a list of numbers."""
    names = set()
    for key, hint in typing.get_type_hints(kind).items():
        options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
        for option in options:
            if dataclasses.is_dataclass(option):
                names |= numbers_of(option, f"{prefix}{key}.")
            items = typing.get_args(option) if typing.get_origin(option) is tuple else (option,)
            of_items = [typing.get_args(item) or (item,) for item in items]
            if {int, float} & {kind for kinds in of_items for kind in kinds}:
                names.add(f"{prefix}{key}")
    return names


PLAN, SWEEP = numbers_of(Config), numbers_of(SweepConfig)


def load(name: str, value: str) -> Config | SweepConfig:
    """Compose a configuration with one setting."""
    override = f"{name}={value}"
    if name in PLAN:
        return load_config([override])
    task = dict.fromkeys(("task.min_count", "task.max_classes"), "word")
    task |= dict.fromkeys(("task.n_trials", "task.sample_seed"), "sv")
    task |= dict.fromkeys(("task.max_items", "task.max_speakers"), "abx")
    task["task.units"] = "asr"
    return load_sweep_config([f"task={task.get(name, 'ks')}", override])


def is_list(name: str) -> bool:
    """Whether the setting is a list of numbers."""
    lists = ("extract.layers", "layers", "seeds", "fractions", "task.lrs", "split.ratios")
    return name in lists


def test_every_number_has_a_range() -> None:
    """A new numeric setting needs a line in the table."""
    assert RANGES.keys() == PLAN | SWEEP
    assert "split.folds" in SWEEP
    assert "extract.max_window_s" in PLAN


@pytest.mark.parametrize("name", sorted(RANGES))
@pytest.mark.parametrize("value", VALUES, ids=lambda value: f"{value[:6]}x{len(value)}")
def test_absurd_values_are_refused_with_the_range(name: str, value: str) -> None:
    """One line that names the setting and what was expected."""
    with pytest.raises(ConfigError) as caught:
        load(name, f"[{value}]" if is_list(name) else value)
    message = str(caught.value)
    assert name in message
    assert "expected" in message or "too long" in message
    assert "\n" not in message
    assert len(message) < 300


@pytest.mark.parametrize("name", sorted(RANGES))
def test_the_ends_of_a_range_are_as_stated(name: str) -> None:
    """The ends are valid, what is beyond them is not, and the message has both."""
    expected = RANGES[name]
    if name == "split.ratios":
        return  # three shares that sum to 1
    step = 1e-3 if name in ("run.max_quarantined", "task.lrs", "fractions") else 1
    ends = [expected.minimum + step * expected.is_open, expected.maximum]
    for end, beyond in zip(ends, [expected.minimum - 1, expected.maximum + step], strict=True):
        load(name, f"[{end}]" if is_list(name) else f"{end}")
        with pytest.raises(ConfigError) as caught:
            load(name, f"[{beyond}]" if is_list(name) else f"{beyond}")
        assert f"{expected.maximum:,}" in str(caught.value)


def test_a_list_has_a_largest_length() -> None:
    """A thousand seeds are a mistake in a script."""
    many = ",".join(map(str, range(2000)))
    with pytest.raises(ConfigError, match="seeds has 2,000 items; expected at most 1,000"):
        load("seeds", f"[{many}]")


def test_a_deep_list_is_refused() -> None:
    """A thousand brackets do not end in a traceback."""
    with pytest.raises(ConfigError):
        load("seeds", "[" * 5000 + "]" * 5000)


@pytest.mark.parametrize("name", ["extract.layers", "layers"])
def test_a_layer_counted_from_the_end_is_refused_with_what_there_is(name: str) -> None:
    """-2 in Python is the one before the last; here it is nothing."""
    with pytest.raises(ConfigError, match=r"is .*-2.*; expected at least -1 .* from the end$"):
        load(name, "[-2]")
