"""Metadata files of an audio folder: tables of its files, in the folder and in its sub-folders."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import SourceError, one_line
from pipeline.files import require_regular
from pipeline.sources.columns import check_text, first_values, is_text, require_column
from pipeline.sources.lists.delimited import (
    SUFFIXES,
    delimiter_in,
    form_of,
    infer_types,
    read_delimited,
)
from pipeline.sources.lists.places import Form, Places
from pipeline.sources.lists.swallowed import check_quotes
from pipeline.sources.segments import columns_of
from pipeline.sources.table_cache import table_state

if TYPE_CHECKING:
    from pipeline.config import DatasetConfig


def read_metadata(
    config: DatasetConfig, root: Path, metadata_files: list[str]
) -> tuple[pa.Table, dict[str, tuple[str, ...]], str, Places]:
    """Concatenate a folder's metadata files; `file_name` becomes relative to the folder.

    Returns:
        The table, the names of each ClassLabel column, the state of all files, and the places of
        the rows.
    """
    tables: list[pa.Table] = []
    states: list[str] = []
    places: list[tuple[Path, int, Form]] = []
    class_names: dict[str, tuple[str, ...]] = {}
    for file in metadata_files:
        require_regular(root / file)
        file_class_names: dict[str, tuple[str, ...]] = {}
        if (root / file).suffix in SUFFIXES:
            form = form_of(root / file)
            table = read_delimited(root / file, form)
            table = infer_types(
                table, {"file_name", config.id_column, *(config.types or ())}, columns_of(config)
            )
        else:
            from pipeline.sources import hub

            form = hub.table_form(root / file)
            table, file_class_names, _ = hub.arrow_of(hub.read_table(root / file))
            table = hub.as_written(root / file, table)
        places.append((root / file, len(table), form))
        hint = _delimiter_hint(root / file, table.column_names)
        require_column("file_name", table.column_names, str(root / file), hint)
        if form.kind == "csv":
            check_quotes(Places((places[-1],)), table, "file_name")
        check_text("column file_name", table.column("file_name"), str(root / file))
        paths = _normalized_paths(table.column("file_name"), Places((places[-1],)))
        directory = file.rpartition("/")[0]
        if directory:
            paths = pc.binary_join_element_wise(directory, paths, "/")
        number = table.schema.get_field_index("file_name")
        tables.append(table.set_column(number, "file_name", paths))
        states.append(table_state(root / file))
        class_names.update(file_class_names)
    schemas = [table.schema.remove_metadata() for table in tables]
    for file, schema in zip(metadata_files, schemas, strict=True):
        if schema != schemas[0]:
            raise SourceError(
                f"{root / file} and {root / metadata_files[0]} differ in their columns: "
                f"{one_line(schema)} against {one_line(schemas[0])}"
            )
    return pa.concat_tables(tables), class_names, json.dumps(states), Places(tuple(places))


def _delimiter_hint(path: Path, names: list[str]) -> str:
    """Return what to set if the header of a csv is not separated by commas; "" if it is."""
    mark = delimiter_in(names)
    if not mark:
        return ""
    return (
        f"it is separated by '{mark}', not by commas: dataset=manifest dataset.path={path} "
        f"'dataset.delimiter={mark}' dataset.audio_column=file_name reads it"
    )


def _normalized_paths(paths: pa.ChunkedArray, places: Places) -> pa.ChunkedArray:
    """Normalise relative paths; refuse empty ones and those that point outside of the folder."""
    if not is_text(paths.type):
        raise SourceError(f"{places.of(0)}: file_name is {paths.type}, not text")
    paths = paths.cast(pa.string())
    if paths.null_count:
        first = places.of(pc.index(pc.is_null(paths), True).as_py())
        raise SourceError(
            f"{first}: file_name is empty; so it is in {paths.null_count} of {len(paths)} rows"
        )
    is_outside = pc.match_substring_regex(paths, r"^/|://|(^|/)\.\.(/|$)")
    outside = paths.filter(is_outside)
    if len(outside):
        first = places.of(pc.index(is_outside, True).as_py())
        raise SourceError(
            f"{first}: file_name points outside of the folder: {first_values(outside)}; use "
            "dataset=manifest for such files"
        )
    return pc.replace_substring_regex(paths, r"(^|/)(\.?/)+", r"\1")


def require_files(paths: pa.ChunkedArray, files: list[str], root: str, places: Places) -> None:
    is_missing = pc.invert(pc.is_in(paths, value_set=pa.array(files, pa.string())))
    missing = paths.filter(is_missing)
    if len(missing):
        first = places.of(pc.index(is_missing, True).as_py())
        raise SourceError(
            f"the metadata of {root} names {len(missing)} files that do not exist: "
            f"{first_values(missing)} (first in {first}); remove their rows or add the files"
        )
