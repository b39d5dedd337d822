"""A manifest: a table with the paths of audio files, or a list of NeMo or fairseq."""

from __future__ import annotations

import difflib
import string
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import SourceError, first_few, one_line
from pipeline.sources.archives.nemo import tarred_rows
from pipeline.sources.columns import Rows, require_column
from pipeline.sources.lists.delimited import (
    OTHER_SUFFIXES,
    SUFFIXES,
    delimiter_in,
    form_of,
    infer_types,
    read_delimited,
)
from pipeline.sources.lists.lines import from_files
from pipeline.sources.lists.manifests import fairseq_rows, guess_format, nemo_rows
from pipeline.sources.lists.places import Form, Places
from pipeline.sources.lists.swallowed import check_quotes
from pipeline.sources.location import audio_root, existing_path
from pipeline.sources.segments import columns_of, joined_spans
from pipeline.sources.splits import ALL, COLUMN, chosen, with_split, word_of
from pipeline.sources.tabular import TabularSource

if TYPE_CHECKING:
    from pipeline.config import DatasetConfig

FORMATS = ("table", "nemo", "fairseq")
_MADE_PATH = "audio_path"


def open_manifest(config: DatasetConfig) -> TabularSource:
    """Open the list at `dataset.path`: `dataset.format`, or what its first lines look like.

    Relative audio paths start from `dataset.root`, or from the list's directory; those of fairseq
    from the folder in its first line. Of a directory, `dataset.split` names the lists.

    Raises:
        SourceError: The list is missing or cannot be read, or see `TabularSource`.
    """
    if config.split is not None and config.path and Path(config.path).expanduser().is_dir():
        return TabularSource(config, _lists_of_splits(config, config.split))
    if config.tars is not None:
        if config.format not in (None, "nemo"):
            raise SourceError(f"dataset.tars is of manifests of NeMo, not {config.format}")
        return TabularSource(config, _of_splits(config, tarred_rows(config)))
    path = existing_path(config, directory=False)
    return TabularSource(config, _of_splits(config, from_files(_list_rows(config, path), [path])))


def _list_rows(config: DatasetConfig, path: Path) -> Rows:
    """Read a list in its format."""
    kind = _format_of(config, path)
    if kind == "table":
        return _table_rows(config, path)
    rows = (nemo_rows if kind == "nemo" else fairseq_rows)(config, path)
    form = Form(n_header=0 if kind == "nemo" else 1)
    rows = replace(rows, places=Places(((path, len(rows.table), form),)))
    if config.format is None:
        note = f"the list was read as one of {kind}; dataset.format=table reads it as a table"
        rows = replace(rows, notes=(note, *rows.notes))
    return rows


def _format_of(config: DatasetConfig, path: Path) -> str:
    """Return the format of a list that `dataset.format` states, or its first lines look like.

    Raises:
        SourceError: There is no such format.
    """
    if config.format not in (None, *FORMATS):
        raise SourceError(f"dataset.format={config.format} is none of {', '.join(FORMATS)}")
    return config.format or (None if _is_stated(config) else guess_format(path)) or "table"


def _is_stated(config: DatasetConfig) -> bool:
    """Return whether the configuration says that the list is a table of text."""
    return config.delimiter is not None or config.header is not None


def _table_rows(config: DatasetConfig, path: Path) -> Rows:
    if path.suffix.lower() in SUFFIXES or _is_stated(config):
        table, form = _read_text(config, path)
        return _text_rows(config, path.parent, table, Places(((path, len(table), form),)))
    from pipeline.sources import hub

    dataset, root = hub.read_table(path), audio_root(config, path.parent)
    if config.audio_path is None:
        rows = hub.rows_of(dataset, config, root)
        rows = replace(rows, table=hub.as_written(path, rows.table))
    else:
        table, class_names, state = hub.arrow_of(dataset)
        table, column = _with_path(config.audio_path, hub.as_written(path, table))
        rows = Rows(table, class_names, column, root, state)
    places = Places(((path, len(rows.table), hub.table_form(path)),))
    return replace(rows, places=places)


def _read_text(config: DatasetConfig, path: Path) -> tuple[pa.Table, Form]:
    form = form_of(path, config.delimiter, config.header is None)
    return read_delimited(path, form, config.header), form


def _text_rows(config: DatasetConfig, folder: Path, table: pa.Table, places: Places) -> Rows:
    """Make rows of a table of text. Ids and paths are text."""
    column = config.audio_column
    if config.audio_path is not None:
        table, column = _with_path(config.audio_path, table)
    hint = _audio_column_hint(column, table.column_names)
    require_column(column, table.column_names, "dataset.audio_column", hint)
    notes = check_quotes(places, table, column)
    as_text = {column, config.id_column, *(config.types or ())}
    table = infer_types(table, as_text, columns_of(config))
    return Rows(table, {}, column, audio_root(config, folder), notes=notes, places=places)


def _audio_column_hint(column: str, names: list[str]) -> str:
    """Return what to set if the column of paths is missing, or nothing if a name is similar."""
    mark = delimiter_in(names)
    if mark:
        return f"is the delimiter '{mark}'? Set 'dataset.delimiter={mark}'"
    if f'"{column}"' in names:
        return (
            "the header is in quotation marks, which are text in a tsv and wherever the delimiter "
            "is neither a comma nor a semicolon: save the table as csv, or without them"
        )
    if column != "path" or difflib.get_close_matches(column, names, 1):
        return ""
    return "set dataset.audio_column to the column with the paths"


def _with_path(template: str, table: pa.Table) -> tuple[pa.Table, str]:
    """Append a column with the paths that `dataset.audio_path` makes of other columns.

    Returns:
        The table, and the name of the column.

    Raises:
        SourceError: The template is malformed, or names no column of the table.
    """
    try:
        parts = list(string.Formatter().parse(template))
    except ValueError as error:
        raise SourceError(f"dataset.audio_path={template}: {error}") from error
    if not any(name for _, name, _, _ in parts) or any(spec or how for *_, spec, how in parts):
        raise SourceError(
            f"dataset.audio_path={template} names no column in plain braces, as in wavs/{{id}}.wav"
        )
    pieces: list[pa.Scalar | pa.ChunkedArray] = []
    for literal, name, _, _ in parts:
        pieces.append(pa.scalar(literal))
        if name is not None:
            require_column(name, table.column_names, "dataset.audio_path")
            pieces.append(table[name].cast(pa.string()))
    column = _MADE_PATH
    while column in table.column_names:
        column += "_"
    paths = pc.binary_join_element_wise(*pieces, "")
    return table.append_column(column, paths), column


def _lists_of_splits(config: DatasetConfig, setting: str) -> Rows:
    """Read the lists of a directory that `dataset.split` names, without their suffixes.

    `all` stands for those with names of splits.

    Raises:
        SourceError: There is no such list, there are two, or they do not fit together.
    """
    folder = existing_path(config, directory=True)
    found: dict[str, list[Path]] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in (*SUFFIXES, *OTHER_SUFFIXES) and path.is_file():
            found.setdefault(path.stem, []).append(path)
    known = [stem for stem in found if word_of(stem)]
    names = chosen(setting, known if setting == ALL and ALL not in found else [*found])
    if names is None:
        raise SourceError(
            f"dataset.split={setting}: {folder} has no such list; there are "
            f"{first_few([*found]) or 'none'} (csv, tsv, json, jsonl, parquet)"
        )
    twice = next((name for name in names if len(found[name]) > 1), None)
    if twice is not None:
        raise SourceError(
            f"dataset.split={setting}: {folder} has several lists of one split: "
            f"{first_few([path.name for path in found[twice]])}; move one away, or set "
            "dataset.path to a file"
        )
    paths = [found[name][0] for name in names]
    notes: tuple[str, ...] = ()
    if setting == ALL and ALL not in found and len(names) < len(found):
        others = first_few([name for name in found if name not in names])
        notes = (f"dataset.split=all reads {first_few(names)}, and not {others}",)
    if all(p.suffix.lower() in SUFFIXES and _format_of(config, p) == "table" for p in paths):
        rows, lengths = _text_of_splits(config, folder, paths)
    else:
        parts = [_list_rows(config, path) for path in paths]
        rows, lengths = _joined(parts, paths), [len(part.table) for part in parts]
    labels = pa.array(np.repeat(names, lengths).tolist(), pa.string())
    rows = replace(
        rows,
        table=with_split(rows.table, labels),
        splits=labels if len(paths) > 1 else None,
        notes=(*notes, *rows.notes),
    )
    return from_files(rows, paths)


def _text_of_splits(
    config: DatasetConfig, folder: Path, paths: list[Path]
) -> tuple[Rows, list[int]]:
    """Read tables of text, so that a column has one type in all; and return their lengths."""
    tables: list[pa.Table] = []
    places: list[tuple[Path, int, Form]] = []
    for path in paths:
        table, form = _read_text(config, path)
        if tables and table.column_names != tables[0].column_names:
            raise SourceError(
                f"{path} and {paths[0]} have other columns: {', '.join(table.column_names)} "
                f"against {', '.join(tables[0].column_names)}"
            )
        tables.append(table)
        places.append((path, len(table), form))
    rows = _text_rows(config, folder, pa.concat_tables(tables), Places(tuple(places)))
    return rows, [len(table) for table in tables]


def _joined(parts: list[Rows], paths: list[Path]) -> Rows:
    """Join the rows of several lists; a column that some lack is null there.

    Raises:
        SourceError: They differ in form, root folder, class names or the type of a column.
    """
    first = parts[0]
    for part, path in zip(parts, paths, strict=True):
        if (part.audio_column, part.spans is None) != (first.audio_column, first.spans is None):
            raise SourceError(f"{path} and {paths[0]} are lists of different forms")
        if part.class_names != first.class_names:
            raise SourceError(f"{path} and {paths[0]} have other class names")
        if part.root != first.root:
            raise SourceError(
                f"the paths of {path} start from {part.root}, those of {paths[0]} from "
                f"{first.root}: set dataset.root, or extract each into a store of its own"
            )
    try:
        table = pa.concat_tables(
            [part.table.replace_schema_metadata(None) for part in parts],
            promote_options="permissive",
        )
    except pa.ArrowException as error:
        raise SourceError(
            f"{first_few([str(path) for path in paths])} do not fit together: {one_line(error)}"
        ) from error
    spans = [part.spans for part in parts if part.spans is not None]
    places = [part.places for part in parts if part.places is not None]
    return replace(
        first,
        table=table,
        spans=joined_spans(spans) if spans else None,
        places=Places(tuple(file for place in places for file in place.files)),
        notes=tuple(dict.fromkeys(note for part in parts for note in part.notes)),
    )


def _of_splits(config: DatasetConfig, rows: Rows) -> Rows:
    """Return the rows whose column `split` has a value that `dataset.split` names.

    Raises:
        SourceError: There is no such column, or it does not have one of the values.
    """
    if config.split is None:
        return rows
    require_column(COLUMN, rows.table.column_names, f"dataset.split={config.split}")
    values = rows.table[COLUMN].cast(pa.string())
    names = sorted(filter(None, pc.unique(values).to_pylist()))
    splits = chosen(config.split, names)
    if splits is None:
        raise SourceError(
            f"dataset.split={config.split} is not in the column split: {first_few(names)}"
        )
    if config.split == ALL:
        return rows
    return rows.take(pc.indices_nonzero(pc.is_in(values, pa.array(splits, pa.string()))))
