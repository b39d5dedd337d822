"""The dataset as rows: an id, undecoded audio, columns to carry. The only user of `datasets`.

`open_source` loads what the configuration describes and turns it into Arrow tables. Nothing here
decodes audio, and nothing loops over rows where Arrow can. Any number of processes may open the
same source: `datasets` locks its cache, and all but the first find the table there.

The files of an audio folder come from `folder`, the rows of its metadata from `datasets`' table
readers; columns and labels are those that its audiofolder loader makes.
"""

from __future__ import annotations

import functools
import glob
import hashlib
import itertools
import json
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import datasets
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.audio.decode import EncodedAudio
from pipeline.errors import SourceError
from pipeline.sources import folder
from pipeline.sources.columns import (
    Column,
    Rows,
    audio_of,
    carried,
    choose_columns,
    is_text,
    make_ids,
    require_column,
    some,
)

if TYPE_CHECKING:
    from pipeline.config import DatasetConfig

__all__ = ["Column", "Source", "open_source"]

_CSV = {
    "chunksize": 1 << 24,  # one chunk: a column's type is inferred from all of it
    "keep_default_na": False,  # "NA", "None" and "null" are words
    "na_values": [""],
}
_READERS: dict[str, tuple[str, dict[str, Any]]] = {
    ".csv": ("csv", _CSV),
    ".tsv": ("csv", {**_CSV, "sep": "\t"}),
    ".json": ("json", {}),
    ".jsonl": ("json", {}),
    ".parquet": ("parquet", {}),
}
_STAT_ROWS = 1 << 12
_STAT_THREADS = 32  # they wait for the file system, which may be far away
_LOAD_ERRORS = (  # what load_dataset and load_from_disk were seen to raise, and their bases
    datasets.exceptions.DatasetsError,
    pa.ArrowException,
    OSError,
    ValueError,
    LookupError,
    TypeError,
    ImportError,
    RuntimeError,
)


class Source:
    """A dataset of utterances, in a fixed order. Made by `open_source`.

    Attributes:
        config: What it was opened with.
        columns: The columns that `metadata` returns.
        skipped: Files of an audio folder that are no utterance, relative to it: no audio by their
            extension, or not named in its metadata.
        skipped_columns: Columns left out, where the configuration names none, because they are
            reserved, nested, binary or empty.
        identity: JSON-able facts that define the content, without paths.
    """

    def __init__(self, config: DatasetConfig, rows: Rows) -> None:
        self.config = config
        self.skipped = rows.skipped
        self.columns, self.skipped_columns = choose_columns(config, rows)
        self._state = rows.state
        self._paths, self._data = audio_of(rows)
        id_rule, self._ids = make_ids(config, rows, self._paths, self._data)
        self._metadata = carried(rows.table, self.columns)
        self.identity: dict[str, Any] = {
            "kind": config.kind,
            "name": config.name,
            "config": config.config,
            "split": config.split,
            "revision": config.revision,
            "audio_column": rows.audio_column,
            "ids": id_rule,
            "columns": [
                {"name": c.name, "type": c.type, "class_names": c.class_names and [*c.class_names]}
                for c in self.columns
            ],
        }

    def __len__(self) -> int:
        return len(self._ids)

    def ids(self) -> pa.StringArray:
        """Returns the unique id of every row, in order."""
        return self._ids

    def audio(self, row: int) -> EncodedAudio:
        """Returns the undecoded audio of one row; opens no file."""
        data = None if self._data is None else self._data[row].as_py()
        path = None if data is not None else self._paths[row].as_py()
        return EncodedAudio(path, data, self._ids[row].as_py())

    def metadata(self, rows: Sequence[int]) -> pa.Table:
        """Returns the carried columns of `rows`, in that order and with the dataset's types."""
        if len(rows) and all(b - a == 1 for a, b in itertools.pairwise(rows)):
            return self._metadata.slice(rows[0], len(rows)).combine_chunks()
        return self._metadata.take(pa.array(rows, pa.int64())).combine_chunks()

    @functools.cached_property
    def fingerprint(self) -> str:
        """Changes with the rows, the settings, and the size or modification time of any file."""
        digest = hashlib.sha256(json.dumps([self._state, self.identity]).encode())
        with ThreadPoolExecutor(_STAT_THREADS) as pool:
            for lines in pool.map(self._stamps, range(0, len(self), _STAT_ROWS)):
                digest.update(lines)
        return digest.hexdigest()[:32]

    def _stamps(self, start: int) -> bytes:
        """A line for each of some rows: its id, and the size and time of its file."""
        names = self._ids.slice(start, _STAT_ROWS).to_pylist()
        paths = self._paths.slice(start, _STAT_ROWS).to_pylist()
        lines = (f"{name}\0{_stamp(path)}\n" for name, path in zip(names, paths, strict=True))
        return "".join(lines).encode()


def open_source(config: DatasetConfig) -> Source:
    """Opens the dataset that a configuration describes.

    Args:
        config: Its `kind` is audiofolder (every audio file under `path`, or the rows of its
            metadata.csv, .jsonl or .parquet), manifest (a table of paths), disk (what
            `save_to_disk` wrote) or hub (what `load_dataset` finds by `name`).

    Raises:
        SourceError: There is no such dataset, it has no rows, or a column or split that the
            configuration names is not in it; also for ids that are empty or not unique.

    Example:
        >>> source = open_source(DatasetConfig(kind="audiofolder", path="clips"))
        >>> source.audio(0).name
        'anna/0001.flac'
    """
    openers = {
        "audiofolder": _open_folder,
        "manifest": _open_manifest,
        "disk": _open_disk,
        "hub": _open_hub,
    }
    if config.kind not in openers:
        raise SourceError(f"dataset.kind={config.kind} is none of {', '.join(openers)}")
    with _quiet():
        rows = openers[config.kind](config)
    if rows.table.num_rows == 0:
        raise SourceError(f"{_where(config)} has no rows")
    source = Source(config, rows)
    pa.default_memory_pool().release_unused()  # for a million files, 80 MB that Arrow would keep
    return source


# --- the four kinds ---------------------------------------------------------------------------


def _open_folder(config: DatasetConfig) -> Rows:
    root = _existing(config, directory=True)
    files = folder.list_files(root)
    prefix = folder.split_prefix(config.split, files)
    manifests = [
        file
        for file in files
        if folder.is_metadata(file) and (file.startswith(prefix) or "/" not in file)
    ]
    files = [file for file in files if file.startswith(prefix) and file not in manifests]
    if manifests:
        state, table, class_names = _read_metadata(root, manifests)
        paths = table.column("file_name")
        table = table.filter(pc.starts_with(paths, prefix))
        _require_files(table.column("file_name"), files, root)
        used = set(table.column("file_name").to_pylist())
        skipped = [file for file in files if file not in used]
    else:
        state = "files"
        skipped = [file for file in files if not folder.is_audio(file)]
        audio = [file for file in files if folder.is_audio(file)]
        table, class_names = folder.table_without_metadata(audio)
    if not len(table):
        raise SourceError(f"{_where(config)} holds no audio file ({len(skipped)} other files)")
    return Rows(_first(table, config), class_names, "file_name", str(root), state, tuple(skipped))


def _open_manifest(config: DatasetConfig) -> Rows:
    path = _existing(config, directory=False)
    return _rows_of(_read_table(path), config, str(path.parent))


def _open_disk(config: DatasetConfig) -> Rows:
    path = _existing(config, directory=True)
    try:
        saved = datasets.load_from_disk(str(path))
    except _LOAD_ERRORS as error:
        raise SourceError(
            f"{_where(config)} holds no dataset that save_to_disk wrote ({_one_line(error)}); "
            "for a folder of audio files use dataset=audiofolder"
        ) from error
    return _rows_of(_one_split(saved, config), config, str(path))


def _open_hub(config: DatasetConfig) -> Rows:
    if not config.name:
        raise SourceError("dataset=hub needs dataset.name, e.g. dataset.name=google/fleurs")
    try:
        loaded = datasets.load_dataset(
            config.name, config.config, split=config.split, revision=config.revision
        )
    except (ConnectionError, datasets.exceptions.DatasetNotFoundError) as error:
        raise SourceError(
            f"{_where(config)} is not in the local cache and the hub did not give it: "
            f"{_one_line(error)}; check the name and the network"
        ) from error
    except _LOAD_ERRORS as error:
        raise SourceError(f"{_where(config)} cannot be loaded: {_one_line(error)}") from error
    if isinstance(loaded, datasets.DatasetDict):
        loaded = _one_split(loaded, config)
    return _rows_of(loaded, config, None)


def _rows_of(dataset: datasets.Dataset, config: DatasetConfig, root: str | None) -> Rows:
    """Takes a dataset's Arrow table, memory-mapped and undecoded."""
    audible = [n for n, f in dataset.features.items() if isinstance(f, datasets.Audio)]
    hint = f"its audio is in {', '.join(audible)}" if audible else ""
    require_column(config.audio_column, dataset.column_names, "dataset.audio_column", hint)
    for name in audible:
        dataset = dataset.cast_column(name, datasets.Audio(decode=False))
    files = (
        [_stamp(file["filename"]) for file in dataset.cache_files] if config.kind == "disk" else []
    )
    state = json.dumps([dataset._fingerprint, *files])
    table = dataset.with_format("arrow")[:]
    names = _class_names(dataset)
    return Rows(_first(table, config), names, config.audio_column, root, state)


def _one_split(loaded: Any, config: DatasetConfig) -> datasets.Dataset:
    if isinstance(loaded, datasets.Dataset):
        if config.split not in (None, str(loaded.split)):
            raise SourceError(
                f"dataset.split={config.split}: {_where(config)} is a dataset without splits; "
                "leave dataset.split out"
            )
        return loaded
    names = sorted(loaded)
    if config.split is None and len(names) > 1:
        raise SourceError(
            f"{_where(config)} has {len(names)} splits: choose one with "
            f"dataset.split={'|'.join(names)}"
        )
    split = names[0] if config.split is None else config.split
    if split not in names:
        raise SourceError(f"dataset.split={split} is not in {_where(config)}: {', '.join(names)}")
    return loaded[split]


# --- tables -----------------------------------------------------------------------------------


def _read_table(path: Path) -> datasets.Dataset:
    """Reads csv, tsv, json, jsonl or parquet through `datasets` and its cache."""
    if path.suffix.lower() not in _READERS:
        raise SourceError(f"{path} is none of {', '.join(_READERS)}")
    builder, options = _READERS[path.suffix.lower()]
    try:
        dataset = datasets.load_dataset(
            builder, data_files=[glob.escape(str(path))], split="train", **options
        )
    except _LOAD_ERRORS as error:
        cause = _one_line(error.__cause__ or error)
        if "corresponds to no data" in cause:
            raise SourceError(f"{path} has no rows") from error
        raise SourceError(f"{path} cannot be read: {cause}") from error
    if "__index_level_0__" in dataset.column_names:  # pandas took the surplus for an index
        raise SourceError(f"{path} has rows with more fields than its header")
    return dataset


def _read_metadata(
    root: Path, manifests: list[str]
) -> tuple[str, pa.Table, dict[str, tuple[str, ...]]]:
    """Joins a folder's metadata files; `file_name` becomes relative to the folder."""
    tables, states, class_names = [], [], {}
    for manifest in manifests:
        dataset = _read_table(root / manifest)
        require_column("file_name", dataset.column_names, str(root / manifest))
        table = dataset.with_format("arrow")[:]
        paths = _inside(table.column("file_name"), f"file_name in {root / manifest}")
        directory = manifest.rpartition("/")[0]
        if directory:
            paths = pc.binary_join_element_wise(directory, paths, "/")
        place = table.schema.get_field_index("file_name")
        tables.append(table.set_column(place, "file_name", paths))
        states.append(dataset._fingerprint)
        class_names.update(_class_names(dataset))
    for manifest, table in zip(manifests, tables, strict=True):
        if table.schema.remove_metadata() != tables[0].schema.remove_metadata():
            raise SourceError(
                f"{root / manifest} and {root / manifests[0]} differ in their columns: "
                f"{_one_line(table.schema.remove_metadata())} against "
                f"{_one_line(tables[0].schema.remove_metadata())}"
            )
    return json.dumps(states), pa.concat_tables(tables), class_names


def _inside(paths: pa.ChunkedArray, what: str) -> pa.ChunkedArray:
    """Normalises relative paths; refuses empty ones and those that lead out of the folder."""
    if not is_text(paths.type):
        raise SourceError(f"{what} is {paths.type}, not text")
    paths = paths.cast(pa.string())
    if paths.null_count:
        raise SourceError(f"{what} is empty in {paths.null_count} of {len(paths)} rows")
    outside = paths.filter(pc.match_substring_regex(paths, r"^/|://|(^|/)\.\.(/|$)"))
    if len(outside):
        raise SourceError(
            f"{what} leads out of the folder: {some(outside)}; use dataset=manifest for such files"
        )
    return pc.replace_substring_regex(paths, r"(^|/)(\.?/)+", r"\1")


def _require_files(paths: pa.ChunkedArray, files: list[str], root: Path) -> None:
    there = pc.is_in(paths, value_set=pa.array(files, pa.string()))
    missing = paths.filter(pc.invert(there))
    if len(missing):
        raise SourceError(
            f"the metadata of {root} names {len(missing)} files that are not there: "
            f"{some(missing)}; remove their rows or add the files"
        )


# --- small things -----------------------------------------------------------------------------


@contextmanager
def _quiet() -> Iterator[None]:
    """No progress bars, and no log beside the error that is raised."""
    were_off, level = datasets.are_progress_bars_disabled(), datasets.logging.get_verbosity()
    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    try:
        yield
    finally:
        datasets.logging.set_verbosity(level)
        if not were_off:
            datasets.enable_progress_bars()


def _existing(config: DatasetConfig, *, directory: bool) -> Path:
    if not config.path:
        raise SourceError(f"dataset={config.kind} needs dataset.path")
    path = Path(config.path).expanduser()
    if not path.exists():
        raise SourceError(f"{_where(config)} does not exist")
    if path.is_dir() != directory:
        need = "a directory" if directory else "a csv, tsv, json, jsonl or parquet file"
        raise SourceError(f"{_where(config)}: dataset={config.kind} needs {need}")
    return path.absolute()


def _class_names(dataset: datasets.Dataset) -> dict[str, tuple[str, ...]]:
    labels = {n: f for n, f in dataset.features.items() if isinstance(f, datasets.ClassLabel)}
    return {name: tuple(feature.names) for name, feature in labels.items()}


def _stamp(path: str | None) -> str:
    """Size and modification time of a file, without its path."""
    if path is None:
        return "bytes"
    try:
        stat = os.stat(path)  # noqa: PTH116 - no Path for each of a million files
    except OSError:
        return "missing"
    return f"{stat.st_size} {stat.st_mtime_ns}"


def _first(table: pa.Table, config: DatasetConfig) -> pa.Table:
    return table if config.limit is None else table.slice(0, config.limit)


def _where(config: DatasetConfig) -> str:
    return f"dataset.name={config.name}" if config.kind == "hub" else f"dataset.path={config.path}"


def _one_line(error: object) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
