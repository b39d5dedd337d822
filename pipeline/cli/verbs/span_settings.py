"""Settings of a file with spans, `spans=FILE` and `spans.KEY=VALUE`, of verbs without YAML."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any

from pipeline.cli.options import items, whole
from pipeline.config.ranges import Range
from pipeline.config.spans_schema import SpansConfig
from pipeline.errors import ConfigError, first_few

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


def read_given_spans(
    given: Mapping[str, str], silence: Sequence[str] = ()
) -> tuple[Spans, dict[str, Any]]:
    """Read the spans of `spans=`; return them and the settings of `place_spans`.

    Args:
        given: The settings.
        silence: Labels that are left out, in upper or lower case, unless `spans.skip` is given.

    Raises:
        ConfigError: A setting has no effect, or another form.
        SourceError: The file cannot be read.
    """
    from pipeline.spans.reading import read_spans, without_labels

    reading: dict[str, Any] = {}
    for key, name in SPANS.items():
        if key in given:
            reading[name] = items(given, key) if name in _LISTS else given[key]
    if "sample_rate_hz" in reading:
        rate = whole(given, "spans.sample_rate_hz", 0, Range(1, 10**9, "hertz"))
        reading["sample_rate_hz"] = float(rate)
    placing = {name: reading.pop(name) for name in _PLACING if name in reading}
    skip = reading.pop("skip", None)
    spans = read_spans(given["spans"], **reading)
    if skip is None:
        return without_labels(spans, given["spans"], silence, ignore_case=True), placing
    absent = [repr(label) for label in skip if label not in spans.labels]
    kept = without_labels(spans, given["spans"], skip)
    if absent:
        note = f"no span has the label {first_few(absent)} of spans.skip"
        kept = replace(kept, notes=(*kept.notes, note))
    return kept, placing
