"""Datasets and tables that `datasets` loads: saved to disk, found on the hub, or read from a file.

Arrow tables are loaded; no audio is decoded. Parquet files of the hub are read in place: see
`repository/`. `datasets` takes a second to import, so other modules import this one where they need
it.
"""

from __future__ import annotations

import glob
import json
import mmap
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import datasets
import numpy as np
import pyarrow as pa

from pipeline.errors import SourceError, one_line
from pipeline.sources.columns import Rows, require_column
from pipeline.sources.fingerprint import stat_stamp
from pipeline.sources.lists.delimited import OTHER_SUFFIXES, SUFFIXES
from pipeline.sources.lists.lines import place, read_objects, read_values
from pipeline.sources.lists.places import Form
from pipeline.sources.location import describe_location, existing_path
from pipeline.sources.splits import ALL, chosen, is_several, with_split
from pipeline.sources.table_cache import cache_folder
from pipeline.sources.tabular import TabularSource
from pipeline.sources.torchcodec_stand_in import importable_torchcodec

if TYPE_CHECKING:
    from pipeline.config import DatasetConfig

_BUILDERS = {name: "parquet" if name == ".parquet" else "json" for name in OTHER_SUFFIXES}
# A line break cannot be part of a text in json.
_NULL_RECORD = re.compile(rb"\A(?:\xef\xbb\xbf)?\s*null|}\s*\n\s*null")
_MANY_BRACKETS = 500  # fewer cannot be nested too deeply
_LIST = re.compile(rb"(?:\xef\xbb\xbf)?\s*\[")
LOAD_ERRORS = (
    datasets.exceptions.DatasetsError,
    pa.ArrowException,
    OSError,
    ValueError,
    LookupError,
    TypeError,
    ImportError,
    RuntimeError,
    StopIteration,
)
"""Observed errors of load_dataset and load_from_disk, and their bases."""


@contextmanager
def quiet() -> Iterator[None]:
    """Silence progress bars and logs of `datasets`; errors are raised as usual."""
    were_off, level = datasets.are_progress_bars_disabled(), datasets.logging.get_verbosity()
    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    try:
        yield
    finally:
        datasets.logging.set_verbosity(level)
        if not were_off:
            datasets.enable_progress_bars()


@quiet()
def open_disk(config: DatasetConfig) -> TabularSource:
    """Open a dataset that `save_to_disk` wrote to `dataset.path`.

    Raises:
        SourceError: There is no such dataset or split; see also `TabularSource`.
    """
    path = existing_path(config, directory=True)
    try:
        saved = datasets.load_from_disk(str(path))
    except LOAD_ERRORS as error:
        raise SourceError(
            f"{describe_location(config)} holds no dataset that save_to_disk wrote "
            f"({one_line(error)}); for a folder of audio files use dataset=audiofolder"
        ) from error
    return TabularSource(config, _choose_splits(saved, config, str(path)))


@quiet()
def open_hub(config: DatasetConfig) -> TabularSource:
    """Open the dataset that `load_dataset` finds under `dataset.name`; it converts it to Arrow.

    Args:
        config: Configuration of the dataset, as `check_name_and_split` allows it.

    Raises:
        SourceError: It is neither in the cache nor on the hub, or cannot be loaded; see also
            `TabularSource`.
    """
    local = Path(str(config.name))
    split = None if is_several(config.split) else config.split
    try:
        with importable_torchcodec():
            loaded = datasets.load_dataset(
                config.name,
                config.config,
                split=split,
                revision=config.revision,
                cache_dir=cache_dir(local) if local.is_dir() else None,
            )
    except (ConnectionError, datasets.exceptions.DatasetNotFoundError) as error:
        raise SourceError(
            f"{describe_location(config)} is not in the local cache and could not be fetched from "
            f"the hub: {one_line(error)}; check the name and the network"
        ) from error
    except LOAD_ERRORS as error:
        raise SourceError(
            f"{describe_location(config)} cannot be loaded: {one_line(error)}"
        ) from error
    if split is not None:  # which is perhaps a slice
        return TabularSource(config, rows_of(loaded, config, None))
    return TabularSource(config, _choose_splits(loaded, config, None))


def check_name_and_split(config: DatasetConfig) -> None:
    """Refuse a missing name, and slices of several splits.

    Raises:
        SourceError: It is one of these.
    """
    if not config.name:
        raise SourceError("dataset=hub needs dataset.name, e.g. dataset.name=google/fleurs")
    split = "" if config.split is None or is_several(config.split) else config.split
    if len({part.partition("[")[0] for part in split.split("+")}) > 1:
        raise SourceError(
            f"dataset.split={split}: slices of several splits are not joined; name whole splits, "
            "as in train+test, or extract each slice into a store of its own"
        )


def rows_of(dataset: datasets.Dataset, config: DatasetConfig, root: str | None) -> Rows:
    """Take a dataset's Arrow table, memory-mapped and undecoded.

    Args:
        dataset: The dataset.
        config: Its configuration, which names the audio column.
        root: Directory that relative paths start from; None if there is none.

    Raises:
        SourceError: The audio column does not exist.
    """
    audio_columns = [n for n, f in dataset.features.items() if isinstance(f, datasets.Audio)]
    hint = f"its audio is in {', '.join(audio_columns)}" if audio_columns else ""
    require_column(config.audio_column, dataset.column_names, "dataset.audio_column", hint)
    for name in audio_columns:
        dataset = dataset.cast_column(name, datasets.Audio(decode=False))
    stamps = (
        [stat_stamp(file["filename"]) for file in dataset.cache_files]
        if config.kind == "disk"
        else []
    )
    table, class_names, state = arrow_of(dataset)
    return Rows(table, class_names, config.audio_column, root, json.dumps([state, *stamps]))


@quiet()
def read_table(path: Path) -> datasets.Dataset:
    """Read json, jsonl or parquet through `datasets` and its cache; for text see `delimited.py`.

    A file that was replaced is read again whatever its time says; see `table_cache.py`.

    Raises:
        SourceError: The file is of another type, damaged, or has no rows.
    """
    builder = _BUILDERS.get(path.suffix.lower())
    if builder is None:
        known = ", ".join((*SUFFIXES, *OTHER_SUFFIXES))
        raise SourceError(
            f"{path} is none of {known}; for another name of a table of text set dataset.delimiter"
        )
    if path.stat().st_size == 0:
        raise SourceError(f"{path} has no rows: it is empty (0 bytes)")
    if builder == "json":
        _check_records(path)
    try:
        dataset: datasets.Dataset = datasets.load_dataset(
            builder,
            data_files=[glob.escape(str(path))],
            split="train",
            cache_dir=cache_dir(path),
        )
    except LOAD_ERRORS as error:
        if builder == "json" and table_form(path).kind == "lines":
            before = 0
            for number, _ in read_objects(path):  # names the line
                if number > before + 1:
                    raise SourceError(f"{place(path, before + 1)} is blank; remove it") from error
                before = number
        cause = one_line(error.__cause__ or error)
        if "corresponds to no data" in cause:
            raise SourceError(f"{path} has no rows") from error
        raise SourceError(f"{path} cannot be read: {cause}") from error
    return dataset


def as_written(path: Path, table: pa.Table) -> pa.Table:
    """Return a table that `read_table` has read, with texts as they are in the file.

    Json has no times. Arrow converts texts such as 2020-01-02 to times, and `datasets` reads a
    column of numbers and texts as a type that cannot be carried.

    Args:
        path: The file.
        table: The rows of `read_table`.
    """
    if _BUILDERS.get(path.suffix.lower()) != "json":
        return table
    changed = [field.name for field in table.schema if _is_guessed(field.type)]
    if not changed:
        return table
    for name, values in read_values(path, changed, table_form(path).kind == "lines").items():
        if len(values) == len(table):
            table = table.set_column(table.column_names.index(name), name, values)
    return table


def _is_guessed(kind: pa.DataType) -> bool:
    """Return whether json has no such type: times, and columns of several types."""
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return _is_guessed(kind.value_type)
    return pa.types.is_temporal(kind) or isinstance(kind, pa.BaseExtensionType)


def table_form(path: Path) -> Form:
    """Return how the rows of json, jsonl or parquet are written."""
    if _BUILDERS.get(path.suffix.lower()) != "json":
        return Form("rows")
    with path.open("rb") as file:
        line = file.readline()
    is_lines = not _LIST.match(line) and _is_json(line)
    return Form("lines" if is_lines or path.suffix.lower() == ".jsonl" else "rows")


def _check_records(path: Path) -> None:
    """Refuse json that ends the process in a reader: deep nesting, null in the place of a record.

    Arrow's reader fails if a block begins with null. Those of text in lines and of a whole document
    recurse without a limit; Python's has one.

    Raises:
        SourceError: There is one of these.
    """
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        has_null = _NULL_RECORD.search(content) is not None
        try:
            if _LIST.match(content) or not _is_json(content.readline()):
                records = json.loads(content[:].decode("utf-8-sig"))
                has_null = has_null or (isinstance(records, list) and None in records)
            else:
                content.seek(0)
                for line in iter(content.readline, b""):
                    if line.count(b"[") + line.count(b"{") > _MANY_BRACKETS:
                        json.loads(line)
        except ValueError:
            pass  # the reader reports it
        except RecursionError as error:
            raise SourceError(f"{path} is nested too deeply") from error
    if has_null:
        raise SourceError(f"{path} holds null in the place of a row; remove it")


def _is_json(line: bytes) -> bool:
    """Return whether a line is a value of json by itself."""
    try:
        json.loads(line.decode("utf-8-sig"))
    except ValueError:
        return False
    return True


def cache_dir(path: Path) -> str:
    """Return the folder in which `datasets` keeps what it reads from a file or folder."""
    return str(cache_folder(Path(datasets.config.HF_DATASETS_CACHE) / "strata", path))


def arrow_of(dataset: datasets.Dataset) -> tuple[pa.Table, dict[str, tuple[str, ...]], str]:
    """Return a dataset's table, the names of each ClassLabel column, and its fingerprint."""
    table = dataset.with_format("arrow")[:]
    return table, class_names_of(dataset.features), dataset._fingerprint


def class_names_of(features: datasets.Features) -> dict[str, tuple[str, ...]]:
    """Return the names of each ClassLabel column."""
    labels = {n: f for n, f in features.items() if isinstance(f, datasets.ClassLabel)}
    return {name: tuple(feature.names) for name, feature in labels.items()}


def _choose_splits(loaded: Any, config: DatasetConfig, root: str | None) -> Rows:
    """Return the rows of the splits that the configuration names, or of the only one.

    Several splits are joined, with a column `split`.
    """
    if isinstance(loaded, datasets.Dataset):
        if config.split not in (None, ALL, str(loaded.split)):
            raise SourceError(
                f"dataset.split={config.split}: {describe_location(config)} is a dataset without "
                "splits; leave dataset.split out"
            )
        return rows_of(loaded, config, root)
    names = sorted(loaded)
    if config.split is None and len(names) > 1:
        raise SourceError(
            f"{describe_location(config)} has {len(names)} splits: choose with "
            f"dataset.split={'|'.join([ALL, *names])}, or several as in {'+'.join(names[:2])}"
        )
    splits = names if config.split is None else chosen(config.split, names)
    if splits is None:
        raise SourceError(
            f"dataset.split={config.split} is not in {describe_location(config)}: "
            f"{', '.join(names)}"
        )
    parts = [rows_of(loaded[split], config, root) for split in splits]
    if len(parts) == 1:
        return parts[0]
    schemas = [part.table.schema.remove_metadata() for part in parts]
    if any(part.class_names != parts[0].class_names for part in parts) or len(set(schemas)) > 1:
        raise SourceError(
            f"the splits of {describe_location(config)} have other columns, types or class names; "
            "extract each into a store of its own"
        )
    table = pa.concat_tables(part.table.replace_schema_metadata(None) for part in parts)
    lengths = [len(part.table) for part in parts]
    labels = pa.array(np.repeat(splits, lengths).tolist(), pa.string())
    state = json.dumps([part.state for part in parts])
    return replace(parts[0], table=with_split(table, labels), state=state, splits=labels)
