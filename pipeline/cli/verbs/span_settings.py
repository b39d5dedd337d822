"""Settings of a file with spans, `spans=FILE` and `spans.KEY=VALUE`, of verbs without YAML."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from pipeline.cli.options import items, whole
from pipeline.config.ranges import Range
from pipeline.config.spans_schema import SpansConfig
from pipeline.errors import ConfigError

if TYPE_CHECKING:
    from pipeline.spans.table import Spans

SPANS = {f"spans.{item.name}": item.name for item in fields(SpansConfig) if item.name != "path"}
"""Settings of the file, and the arguments of `read_spans` and `place_spans`."""
_LISTS = ("tier", "skip")
_PLACING = ("times", "segment_start")


def check_alone(given: Mapping[str, str]) -> None:
    """Refuse settings of a file that is not given.

    Raises:
        ConfigError: There are some.
    """
    if "spans" not in given and (alone := [key for key in given if key in SPANS]):
        raise ConfigError(f"{alone[0]} is about the file of spans=FILE, which is not given")


def read_given_spans(given: Mapping[str, str]) -> tuple[Spans, dict[str, Any]]:
    """Read the spans of `spans=`; return them and the settings of `place_spans`.

    Raises:
        ConfigError: A setting has no effect, or another form.
        SourceError: The file cannot be read.
    """
    from pipeline.spans.reading import read_spans

    reading: dict[str, Any] = {}
    for key, name in SPANS.items():
        if key in given:
            reading[name] = items(given, key) if name in _LISTS else given[key]
    if "sample_rate_hz" in reading:
        rate = whole(given, "spans.sample_rate_hz", 0, Range(1, 10**9, "hertz"))
        reading["sample_rate_hz"] = float(rate)
    placing = {name: reading.pop(name) for name in _PLACING if name in reading}
    return read_spans(given["spans"], **reading), placing
