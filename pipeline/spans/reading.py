"""Reading of spans from a file or the files of a folder, of any format."""

from __future__ import annotations

import math
import os
from collections.abc import Collection, Sequence
from pathlib import Path, PurePosixPath

from pipeline.config.spans_schema import SPAN_KINDS, SPAN_UNITS, SpansConfig
from pipeline.errors import ConfigError, SourceError, counted, did_you_mean, first_few
from pipeline.files import is_uri, require_regular
from pipeline.spans.id_forms import id_maker
from pipeline.spans.nist import add_ctm, add_rttm
from pipeline.spans.table import SpanBuilder, Spans
from pipeline.spans.tables import add_csv, add_jsonl, add_parquet
from pipeline.spans.textgrid import add_textgrid

_ENDINGS = {kind: kind for kind in SPAN_KINDS} | {"ndjson": "jsonl", "pq": "parquet"}
"""Kinds by what the names of files end with."""
_TABLES = ("csv", "tsv", "parquet", "jsonl")
_TIMES = ("utterance", "recording")


def read_spans(
    path: str | os.PathLike[str],
    *,
    kind: str | None = None,
    tier: str | Sequence[str] | None = None,
    id_column: str | None = None,
    start_column: str | None = None,
    stop_column: str | None = None,
    duration_column: str | None = None,
    label_column: str | None = None,
    label: str | None = None,
    unit: str | None = None,
    sample_rate_hz: float | None = None,
    channel: str | None = None,
    skip: Sequence[str] = (),
    id_form: str | None = None,
    encoding: str | None = None,
) -> Spans:
    """Read labelled intervals of utterances: phones, words, speaker turns.

    Args:
        path: A TextGrid of Praat, CTM, RTTM, csv, tsv, parquet or jsonl file; or a folder of files
            of one of these kinds, read with its subfolders. A TextGrid is of the utterance whose
            id is its path within the folder, without the suffix.
        kind: "textgrid", "ctm", "rttm", "csv", "tsv", "parquet" or "jsonl"; None: by the name.
        tier: Name of the tier of a TextGrid, or several names; None: the only interval tier.
        id_column: Column of a table with the ids; None: a usual name, such as id or utterance. So
            for the other columns.
        start_column: Column with the start.
        stop_column: Column with the end.
        duration_column: Column with the duration, for tables without an end.
        label_column: Column with the label.
        label: Label of all spans of a table that has none, such as "speech".
        unit: Unit of the times of a table: "s", "ms" or "samples"; None: what the names of the
            columns state, as start_ms does, else seconds.
        sample_rate_hz: Rate at which samples are counted.
        channel: Channel of a CTM or RTTM; needed if an utterance has several.
        skip: Labels of spans that are left out, such as "" and "sil"; their number is in `notes`.
        id_form: How ids are made from those in the file: a text with {id}, {stem} (the id without
            its extension) or {name} (the stem after the last slash), as in "{id}.wav".
        encoding: Encoding of text that is neither UTF-8 nor UTF-16.

    Returns:
        The spans, in the order of the files.

    Raises:
        SourceError: A file is missing, empty or not of its kind; or a span has a time that is no
            number, is negative, ends before it starts, or is repeated. The message names the file
            and the line.
        ConfigError: A setting is of no use for this kind, or has a wrong value.

    Example:
        >>> spans = read_spans("alignments", tier="phones", skip=["", "sil"])  # doctest: +SKIP
        >>> spans[0]                                                           # doctest: +SKIP
        Span(id='arctic_a0001', start_s=0.12, stop_s=0.19, label='ao')
    """
    config = SpansConfig(
        path=os.fspath(path),
        kind=kind,
        tier=tier if tier is None or isinstance(tier, str) else tuple(tier),
        id_column=id_column,
        start_column=start_column,
        stop_column=stop_column,
        duration_column=duration_column,
        label_column=label_column,
        label=label,
        unit=unit,
        sample_rate_hz=sample_rate_hz,
        channel=channel,
        skip=(skip,) if isinstance(skip, str) else tuple(skip),
        id_form=id_form,
        encoding=encoding,
    )
    return read_configured(config)


def read_configured(config: SpansConfig) -> Spans:
    """Read spans as configured; see `read_spans`."""
    if config.path is None:
        raise ConfigError("no file of spans is given; set spans=FILE")
    _check(config)
    if is_uri(config.path):
        raise ConfigError(
            f"spans={config.path}: expected a path of this machine; download it first"
        )
    path = Path(config.path)
    if not path.exists():
        raise SourceError(f"no file or folder of spans at {path}")
    kind, found = _files(path, config.kind)
    _check_kind(config, kind)
    builder = SpanBuilder()
    for file in found:
        _add(builder, kind, file, _stem(file, path), config)
    spans = builder.finish()
    if config.id_form is not None:
        spans = spans.with_ids(id_maker(config.id_form))
    if config.skip:
        spans = without_labels(spans, config.path, config.skip)
    return spans


def without_labels(
    spans: Spans, path: str, labels: Collection[str], ignore_case: bool = False
) -> Spans:
    """Return the spans of a file that have none of some labels.

    Args:
        spans: The spans.
        path: The file, for the message of an error.
        labels: The labels.
        ignore_case: Whether labels that differ in case only are equal.

    Raises:
        SourceError: None is left.
    """
    kept = spans.without(labels, ignore_case)
    if len(spans) and not len(kept):
        raise SourceError(f"{path}: all spans have a label that is skipped: {kept.notes[-1]}")
    return kept


def _add(builder: SpanBuilder, kind: str, path: Path, utterance: str, config: SpansConfig) -> None:
    """Add the spans of one file."""
    if kind == "textgrid":
        tier = (config.tier,) if isinstance(config.tier, str) else config.tier
        add_textgrid(builder, path, utterance, tier, config.encoding)
    elif kind == "ctm":
        add_ctm(builder, path, config.channel, config.encoding)
    elif kind == "rttm":
        add_rttm(builder, path, config.channel, config.encoding)
    elif kind == "parquet":
        add_parquet(builder, path, config)
    elif kind == "jsonl":
        add_jsonl(builder, path, config)
    else:
        add_csv(builder, path, config, "\t" if kind == "tsv" else ",")


def _files(path: Path, kind: str | None) -> tuple[str, list[Path]]:
    """Return the kind of the files at a path, and the files, sorted.

    Raises:
        SourceError: A folder has no file of spans, or files of several kinds; or the path is that
            of a pipe.
        ConfigError: The kind of a file is not known by its name.
    """
    if not path.is_dir():
        require_regular(path)
        found = kind or _kind_of(path)
        if found is None:
            raise ConfigError(
                f"the name of {path} does not tell its kind; give kind= one of "
                f"{', '.join(SPAN_KINDS)}"
            )
        return found, [path]
    by_kind: dict[str, list[Path]] = {}
    for item in sorted(path.rglob("*")):
        own = _kind_of(item)
        if own is not None and item.is_file() and not item.name.startswith("."):
            by_kind.setdefault(own, []).append(item)
    if kind is None and len(by_kind) > 1:
        counts = ", ".join(f"{counted(len(some), name)}" for name, some in by_kind.items())
        raise SourceError(f"{path} has files of several kinds ({counts}); give kind=NAME")
    if kind is None and len(by_kind) == 1:
        kind = next(iter(by_kind))
    if kind is None or kind not in by_kind:
        wanted = f"file of kind {kind}" if kind else "file of spans"
        raise SourceError(f"{path} has no {wanted} ({', '.join(f'.{name}' for name in _ENDINGS)})")
    return kind, by_kind[kind]


def _kind_of(path: Path) -> str | None:
    name = path.name.lower().removesuffix(".gz")
    return _ENDINGS.get(name.rpartition(".")[2])  # also a file that is called ctm


def _stem(file: Path, root: Path) -> str:
    """Return the path of a file within a folder, without its suffix; of the root, its own stem."""
    inside = PurePosixPath(file.name if file == root else file.relative_to(root).as_posix())
    if inside.suffix.lower() == ".gz":
        inside = inside.with_suffix("")
    return str(inside.with_suffix(""))


def _check(config: SpansConfig) -> None:
    """Check what has a few values only.

    Raises:
        ConfigError: A value is none of them.
    """
    choices = (("kind", config.kind, SPAN_KINDS), ("unit", config.unit, SPAN_UNITS))
    for name, value, known in (*choices, ("times", config.times, _TIMES)):
        if value is not None and value not in known:
            raise ConfigError(f"{name} is {value!r}{did_you_mean(str(value), known)}")
    rate = config.sample_rate_hz
    if rate is not None and not (math.isfinite(rate) and rate > 0):
        raise ConfigError(f"sample_rate_hz is {rate!r}; expected a rate above 0")
    if rate is not None and config.unit not in (None, "samples"):
        raise ConfigError(f"sample_rate_hz is for unit=samples, and unit is {config.unit}")


def _check_kind(config: SpansConfig, kind: str) -> None:
    """Refuse settings that the kind has no use for.

    Raises:
        ConfigError: There are some.
    """
    of_tables = (
        *("id_column", "start_column", "stop_column", "duration_column", "label_column"),
        *("label", "unit", "sample_rate_hz"),
    )
    unused = [
        name for name in of_tables if kind not in _TABLES and getattr(config, name) is not None
    ]
    if config.tier is not None and kind != "textgrid":
        unused.append("tier")
    if config.channel is not None and kind not in ("ctm", "rttm"):
        unused.append("channel")
    if unused:
        raise ConfigError(f"{first_few(unused)}: of no use for spans of kind {kind}; leave it out")
