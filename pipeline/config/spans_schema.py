"""Settings of files with spans: how they are written, and which of their parts are read."""

from __future__ import annotations

from dataclasses import dataclass

SPAN_KINDS = ("textgrid", "ctm", "rttm", "csv", "tsv", "parquet", "jsonl")
"""Values of `SpansConfig.kind`."""
SPAN_UNITS = ("s", "ms", "samples")
"""Values of `SpansConfig.unit`."""


@dataclass(frozen=True)
class SpansConfig:
    """How spans are read from a file, or from the files of a folder.

    Attributes:
        path: The file, or a folder of files of one kind; None: there are none.
        kind: Of `SPAN_KINDS`; None: by the name of the file.
        tier: Names of the tiers of a TextGrid that are read; None: the only interval tier.
        id_column: Column of a table with the ids of utterances; None: a usual name.
        start_column: Column with the start of each span; None: a usual name.
        stop_column: Column with the end; None: a usual name, unless there are durations.
        duration_column: Column with the duration, instead of the end; None: a usual name.
        label_column: Column with the label; None: a usual name.
        label: Label of all spans of a table without labels.
        unit: Unit of the times of a table: "s", "ms" or "samples"; None: what the names of the
            columns state (`start_ms`), else seconds.
        sample_rate_hz: Rate at which `samples` are counted.
        channel: Channel of a CTM or RTTM whose spans are read; None: all.
        skip: Labels that are left out; None: in a sweep those of silence in the recipe, else none.
        id_form: Ids of the utterances, made from those in the file: a text with {id}, {stem} (the
            id without its extension) or {name} (the stem after the last slash). None: as they are.
        encoding: Encoding of text that is neither UTF-8 nor UTF-16.
        times: "utterance": times count from the start of the utterance. "recording": ids are those
            of recordings, and times count from the start of these; for stores of segments.
        segment_start: Column of the store with the start of each segment in its recording, in
            seconds; None: `start` or `offset`.
    """

    path: str | None = None
    kind: str | None = None
    tier: str | tuple[str, ...] | None = None
    id_column: str | None = None
    start_column: str | None = None
    stop_column: str | None = None
    duration_column: str | None = None
    label_column: str | None = None
    label: str | None = None
    unit: str | None = None
    sample_rate_hz: float | None = None
    channel: str | None = None
    skip: tuple[str, ...] | None = None
    id_form: str | None = None
    encoding: str | None = None
    times: str = "utterance"
    segment_start: str | None = None
