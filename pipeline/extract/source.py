"""The dataset as rows: an id, undecoded audio and the columns to carry. The only user of `datasets`.

`open_source` loads what the configuration describes and turns it into Arrow tables; nothing here
decodes audio, and nothing loops over rows where Arrow can. Any number of processes may open the
same source: `datasets` locks its cache, and all but the first find the table in it.

An audio folder is listed here rather than by the `audiofolder` loader, which passes over files by
name: those whose extension it does not know (.aac, .m4a) and, as soon as one file or directory is
called train, dev or test, those that are not. Columns and labels come out as it makes them.
"""

from __future__ import annotations

import difflib
import functools
import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import datasets
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import SourceError
from pipeline.extract.audio import EncodedAudio

if TYPE_CHECKING:
    from pipeline.config import DatasetConfig

RESERVED_COLUMNS = frozenset(
    "id row unit position status reason piece n_pieces slot frame_start n_frames n_samples "
    "source_rate_hz flags crc32c".split()
)
"""Columns of the store's index; a dataset's column of the same name cannot be carried."""

AUDIO_EXTENSIONS = frozenset(
    ".3g2 .3gp .aac .ac3 .aif .aifc .aiff .amr .ape .asf .au .avi .avr .caf .dts .f4v .flac .flv "
    ".htk .ircam .m4a .m4b .m4v .mat4 .mat5 .mka .mkv .mov .mp2 .mp3 .mp4 .mpc .mpc2k .mpg .mxf "
    ".nist .nut .oga .ogg .ogm .ogv .opus .paf .pvf .ra .raw .rf64 .sd2 .sds .snd .sph .spx .svx "
    ".tta .voc .w64 .wav .wave .wavex .weba .webm .wma .wmv .wv .wve .xi".split()
)
"""What counts as audio in a folder without metadata, decodable here or not."""

_METADATA_NAMES = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
_READERS: dict[str, tuple[str, dict[str, Any]]] = {
    ".csv": ("csv", {}),
    ".tsv": ("csv", {"sep": "\t"}),
    ".json": ("json", {}),
    ".jsonl": ("json", {}),
    ".parquet": ("parquet", {}),
}
_LOAD_ERRORS = (
    datasets.exceptions.DatasetsError,
    pa.ArrowException,
    OSError,
    ValueError,
    LookupError,
    TypeError,
    ImportError,
    RuntimeError,
)


@dataclass(frozen=True, slots=True)
class Column:
    """A column that travels with the features.

    Attributes:
        name: As in the dataset.
        type: Its Arrow type, as a string.
        class_names: What the integers of a ClassLabel mean; None for any other column.
    """

    name: str
    type: str
    class_names: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True)
class _Rows:
    """A loaded dataset, before its columns are chosen.

    Attributes:
        table: All rows and columns.
        class_names: Names of each ClassLabel column.
        audio_column: Column of `table` with paths, encoded bytes, or structs of both.
        root: Directory that relative paths start from; None where there is none.
        skipped: Files of an audio folder that are no utterance.
        state: What `datasets` takes for the fingerprint of the table.
    """

    table: pa.Table
    class_names: dict[str, tuple[str, ...]]
    audio_column: str
    root: str | None
    state: str
    skipped: tuple[str, ...] = ()


class Source:
    """A dataset of utterances, in a fixed order.

    Attributes:
        config: What it was opened with.
        columns: The columns that `metadata` returns.
        skipped: Files of an audio folder that are no utterance, relative to it.
        skipped_columns: Columns left out because `config.columns` named none and they are
            reserved, nested or binary.
        identity: JSON-able facts that define the content, without paths.
    """

    def __init__(self, config: DatasetConfig, rows: _Rows) -> None:
        """Use `open_source`."""
        self.config = config
        self.skipped = rows.skipped
        self._rows = rows
        self._paths, self._data = _audio_of(rows)
        self.columns, self.skipped_columns = _choose_columns(config, rows)
        self._id_rule, self._ids = _make_ids(config, rows, self._paths, self._data)
        self.identity: dict[str, Any] = {
            "kind": config.kind,
            "name": config.name,
            "config": config.config,
            "split": config.split,
            "revision": config.revision,
            "audio_column": rows.audio_column,
            "ids": self._id_rule,
            "columns": [
                {"name": c.name, "type": c.type, "class_names": c.class_names and [*c.class_names]}
                for c in self.columns
            ],
        }

    def __len__(self) -> int:
        return int(self._rows.table.num_rows)

    def ids(self) -> pa.StringArray:
        """Returns the unique id of every row, in order."""
        return self._ids

    def audio(self, row: int) -> EncodedAudio:
        """Returns the undecoded audio of one row; reads no file."""
        name = self._ids[row].as_py()
        data = None if self._data is None else self._data[row].as_py()
        path = None if data is not None else self._paths[row].as_py()
        return EncodedAudio(path, data, name)

    def metadata(self, rows: Sequence[int]) -> pa.Table:
        """Returns the carried columns of `rows`, in that order and with the dataset's types."""
        table = self._rows.table.select([column.name for column in self.columns])
        if len(rows) and all(b - a == 1 for a, b in zip(rows, rows[1:], strict=False)):
            return table.slice(rows[0], len(rows)).combine_chunks()
        return table.take(pa.array(rows, pa.int64())).combine_chunks()

    @functools.cached_property
    def fingerprint(self) -> str:
        """Changes with the rows, the settings, and the size or modification time of any file."""
        digest = hashlib.sha256(json.dumps([self._rows.state, self.identity]).encode())
        for path in self._paths.to_pylist():
            if path is not None:
                try:
                    stat = os.stat(path)  # noqa: PTH116 - a Path for each of a million files
                    digest.update(f"{path}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode())
                except OSError:
                    digest.update(f"{path}\0missing\n".encode())
        return digest.hexdigest()[:32]


def open_source(config: DatasetConfig) -> Source:
    """Opens the dataset that a configuration describes.

    Args:
        config: `kind` audiofolder takes every audio file under `path`, or the rows of its
            metadata.csv, .jsonl or .parquet; manifest takes a table of paths; disk what
            `save_to_disk` wrote; hub what `load_dataset` finds by `name`.

    Raises:
        SourceError: There is no such dataset, it has no rows, or a column or split that the
            configuration names is not in it; also for ids that are empty or not unique.

    Example:
        >>> source = open_source(DatasetConfig(kind="audiofolder", path="clips"))
        >>> source.audio(0).path
        '/data/clips/anna/0001.flac'
    """
    openers = {
        "audiofolder": _open_folder,
        "manifest": _open_manifest,
        "disk": _open_disk,
        "hub": _open_hub,
    }
    if config.kind not in openers:
        raise SourceError(f"dataset.kind={config.kind} is none of {', '.join(openers)}")
    bars_were_on = datasets.are_progress_bars_disabled() is False
    datasets.disable_progress_bars()
    try:
        rows = openers[config.kind](config)
    finally:
        if bars_were_on:
            datasets.enable_progress_bars()
    if rows.table.num_rows == 0:
        raise SourceError(f"the dataset has no rows: {_where(config)}")
    return Source(config, rows)


# --- the four kinds ---------------------------------------------------------------------------


def _open_folder(config: DatasetConfig) -> _Rows:
    root = _existing(config, directory=True)
    files = _split_of_folder(config, _list_files(root))
    manifests = [file for file in files if file.rpartition("/")[2] in _METADATA_NAMES]
    table: pa.Table
    if manifests:
        state, table, class_names = _read_folder_metadata(root, manifests, files)
        used = set(table.column("file_name").to_pylist())
    else:
        audio = [file for file in files if Path(file).suffix.lower() in AUDIO_EXTENSIONS]
        if not audio:
            raise SourceError(f"no audio file under dataset.path={config.path}")
        state, table, class_names = "files", *_label_by_directory(audio)
        used = set(audio)
    skipped = tuple(file for file in files if file not in used and file not in manifests)
    return _Rows(_first(table, config), class_names, "file_name", str(root), state, skipped)


def _open_manifest(config: DatasetConfig) -> _Rows:
    path = _existing(config, directory=False)
    dataset = _read_table(path)
    _require_column(config.audio_column, dataset, "dataset.audio_column")
    return _rows_of(dataset, config, str(path.parent))


def _open_disk(config: DatasetConfig) -> _Rows:
    path = _existing(config, directory=True)
    try:
        saved = datasets.load_from_disk(str(path))
    except _LOAD_ERRORS as error:
        raise SourceError(
            f"dataset.path={config.path} holds no dataset that save_to_disk wrote "
            f"({_one_line(error)}); for a folder of audio files use dataset=audiofolder"
        ) from error
    return _rows_of(_one_split(saved, config), config, str(path))


def _open_hub(config: DatasetConfig) -> _Rows:
    if not config.name:
        raise SourceError("dataset=hub needs dataset.name, e.g. dataset.name=google/fleurs")
    try:
        loaded = datasets.load_dataset(config.name, config.config, revision=config.revision)
    except (ConnectionError, datasets.exceptions.DatasetNotFoundError) as error:
        raise SourceError(
            f"dataset.name={config.name} is neither on the hub nor in the cache, or the hub "
            f"cannot be reached: {_one_line(error)}"
        ) from error
    except _LOAD_ERRORS as error:
        raise SourceError(f"dataset.name={config.name}: {_one_line(error)}") from error
    return _rows_of(_one_split(loaded, config), config, None)


def _rows_of(dataset: datasets.Dataset, config: DatasetConfig, root: str | None) -> _Rows:
    """Takes a dataset's Arrow table, memory-mapped and undecoded."""
    _require_column(config.audio_column, dataset, "dataset.audio_column")
    if isinstance(dataset.features[config.audio_column], datasets.Audio):
        dataset = dataset.cast_column(config.audio_column, datasets.Audio(decode=False))
    table = dataset.with_format("arrow")[:]
    state = dataset._fingerprint
    names = _class_names(dataset)
    return _Rows(_first(table, config), names, config.audio_column, root, state)


def _one_split(loaded: Any, config: DatasetConfig) -> datasets.Dataset:
    if isinstance(loaded, datasets.Dataset):
        if config.split is not None and str(loaded.split) != config.split:
            raise SourceError(
                f"dataset.split={config.split}: {_where(config)} has no named splits; leave it out"
            )
        return loaded
    names = sorted(loaded)
    if config.split is None and len(names) == 1:
        return loaded[names[0]]
    if config.split is None:
        raise SourceError(
            f"{_where(config)} has {len(names)} splits: choose one, dataset.split={'|'.join(names)}"
        )
    if config.split not in names:
        raise SourceError(
            f"dataset.split={config.split} is not in {_where(config)}: it has {', '.join(names)}"
        )
    return loaded[config.split]


# --- folders and tables -----------------------------------------------------------------------


def _list_files(root: Path) -> list[str]:
    """Paths of all files under `root`, relative to it, sorted; hidden ones left out."""
    found: list[str] = []
    pending = [""]
    while pending:
        prefix = pending.pop()
        with os.scandir(root / prefix) as entries:
            for entry in entries:
                if entry.name.startswith((".", "__")):
                    continue
                if entry.is_dir():
                    pending.append(f"{prefix}{entry.name}/")
                else:
                    found.append(prefix + entry.name)
    return sorted(found)


def _split_of_folder(config: DatasetConfig, files: list[str]) -> list[str]:
    """Keeps the files of the top-level directory that `config.split` names; all without one."""
    if config.split is None:
        return files
    directories = sorted({file.split("/")[0] for file in files if "/" in file})
    if config.split not in directories:
        raise SourceError(
            f"dataset.split={config.split} is no directory in dataset.path={config.path}: "
            f"it has {', '.join(directories) or 'none'}"
        )
    return [file for file in files if file.startswith(config.split + "/")]


def _label_by_directory(audio: list[str]) -> tuple[pa.Table, dict[str, tuple[str, ...]]]:
    """A `label` where all files lie equally deep in two or more directories, as in `datasets`."""
    parents = [Path(file).parent.name for file in audio]
    table = pa.table({"file_name": pa.array(audio, pa.string())})
    names = tuple(sorted(set(parents)))
    if len(names) < 2 or len({file.count("/") for file in audio}) > 1:
        return table, {}
    index = {name: i for i, name in enumerate(names)}
    labels = pa.array([index[parent] for parent in parents], pa.int64())
    return table.append_column("label", labels), {"label": names}


def _read_folder_metadata(
    root: Path, manifests: list[str], files: list[str]
) -> tuple[str, pa.Table, dict[str, tuple[str, ...]]]:
    """Joins a folder's metadata files; `file_name` becomes relative to the folder and is checked."""
    tables, states, names = [], [], {}
    for manifest in manifests:
        dataset = _read_table(root / manifest)
        if "file_name" not in dataset.column_names:
            raise SourceError(
                f"{root / manifest} has no column file_name; it has "
                f"{', '.join(dataset.column_names)}"
            )
        table = dataset.with_format("arrow")[:]
        inside = _clean(table.column("file_name"), f"file_name in {root / manifest}")
        directory = manifest.rpartition("/")[0]
        if directory:
            inside = pc.binary_join_element_wise(directory, inside, "/")
        place = table.schema.get_field_index("file_name")
        tables.append(table.set_column(place, "file_name", inside))
        states.append(dataset._fingerprint)
        names.update(_class_names(dataset))
    if any(table.schema.names != tables[0].schema.names for table in tables):
        raise SourceError(f"the metadata files of {root} differ in their columns: {manifests}")
    try:
        table = pa.concat_tables(tables, promote_options="permissive")
    except pa.ArrowException as error:
        raise SourceError(f"the metadata files of {root} differ: {_one_line(error)}") from error
    paths = table.column("file_name")
    missing = paths.filter(pc.invert(pc.is_in(paths, value_set=pa.array(files, pa.string()))))
    if len(missing):
        raise SourceError(
            f"the metadata of {root} names {_some(missing)}, which "
            f"{'is' if len(missing) == 1 else 'are'} not there"
        )
    return "".join(states), table, names


def _clean(paths: pa.ChunkedArray, what: str) -> pa.ChunkedArray:
    """Normalises relative paths; refuses empty ones and those that lead out of the folder."""
    if not (pa.types.is_string(paths.type) or pa.types.is_large_string(paths.type)):
        raise SourceError(f"{what} is {paths.type}, not text")
    paths = paths.cast(pa.string())
    if paths.null_count:
        raise SourceError(f"{what} is empty in {paths.null_count} rows")
    outside = paths.filter(pc.match_substring_regex(paths, r"^/|://|(^|/)\.\.(/|$)"))
    if len(outside):
        raise SourceError(
            f"{what} leads out of the folder: {_some(outside)}; use dataset=manifest for such files"
        )
    return pc.replace_substring_regex(paths, r"(^|/)(\.?/)+", r"\1")


def _read_table(path: Path) -> datasets.Dataset:
    """Reads csv, tsv, json, jsonl or parquet through `datasets` and its cache."""
    if path.suffix.lower() not in _READERS:
        raise SourceError(f"{path} is none of {', '.join(_READERS)}")
    builder, options = _READERS[path.suffix.lower()]
    try:
        return datasets.load_dataset(builder, data_files=[str(path)], split="train", **options)
    except _LOAD_ERRORS as error:
        raise SourceError(
            f"{path} cannot be read: {_one_line(error.__cause__ or error)}"
        ) from error


# --- columns, ids, audio ----------------------------------------------------------------------


def _choose_columns(
    config: DatasetConfig, rows: _Rows
) -> tuple[tuple[Column, ...], tuple[str, ...]]:
    """The columns to carry, and those left out though none were named."""
    schema = rows.table.schema
    kept: Iterable[str]
    if config.columns is None:
        others = [n for n in schema.names if n != rows.audio_column]
        kept = [n for n in others if n not in RESERVED_COLUMNS and _is_plain(schema.field(n).type)]
        skipped = [n for n in others if n not in kept and n != config.id_column]
    else:
        kept, skipped = config.columns, []
        for name in kept:
            _check_column(name, schema, config)
    columns = (Column(n, str(schema.field(n).type), rows.class_names.get(n)) for n in kept)
    return tuple(columns), tuple(skipped)


def _check_column(name: str, schema: pa.Schema, config: DatasetConfig) -> None:
    if name in RESERVED_COLUMNS:
        raise SourceError(
            f"dataset.columns names {name}, which the store's index uses itself: rename the "
            "column in the dataset"
            + (", or use it as dataset.id_column" if name == "id" and not config.id_column else "")
        )
    _require_name(name, schema.names, "dataset.columns")
    if not _is_plain(schema.field(name).type):
        raise SourceError(
            f"dataset.columns names {name}, which is {schema.field(name).type}: only numbers, "
            "text, truth values, times and lists of these can be carried"
        )


def _is_plain(kind: pa.DataType) -> bool:
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return _is_plain(kind.value_type)
    tests = (
        pa.types.is_integer,
        pa.types.is_floating,
        pa.types.is_boolean,
        pa.types.is_string,
        pa.types.is_large_string,
        pa.types.is_decimal,
        pa.types.is_temporal,
    )
    return any(test(kind) for test in tests)


def _audio_of(rows: _Rows) -> tuple[pa.ChunkedArray, pa.ChunkedArray | None]:
    """Paths and encoded bytes of every row; either may be null, and bytes win."""
    column = rows.table.column(rows.audio_column)
    kind, data = column.type, None
    if pa.types.is_struct(kind) and {"bytes", "path"} <= {field.name for field in kind}:
        data, paths = pc.struct_field(column, "bytes"), pc.struct_field(column, "path")
    elif pa.types.is_string(kind) or pa.types.is_large_string(kind):
        paths = column
    elif pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        data, paths = column, pa.chunked_array([pa.nulls(len(column), pa.string())])
    else:
        raise SourceError(f"column {rows.audio_column} is {kind}, neither audio nor paths")
    if data is not None and data.null_count == len(data):
        data = None
    paths = paths.cast(pa.string())
    if rows.root is not None:
        joined = pc.binary_join_element_wise(rows.root, paths, "/")
        paths = pc.if_else(pc.starts_with(paths, "/"), paths, joined)
    return paths, data


def _make_ids(
    config: DatasetConfig, rows: _Rows, paths: pa.ChunkedArray, data: pa.ChunkedArray | None
) -> tuple[str, pa.StringArray]:
    """The rule by which ids are made, and the ids."""
    if config.id_column is not None:
        _require_name(config.id_column, rows.table.column_names, "dataset.id_column")
        column = rows.table.column(config.id_column)
        kind = column.type
        if not (pa.types.is_integer(kind) or "string" in str(kind)):
            raise SourceError(f"dataset.id_column={config.id_column} is {kind}, not text or whole")
        rule, ids = f"column {config.id_column}", column.cast(pa.string())
    else:
        rule, ids = "path", _names(paths, rows.root)
        if data is not None and (ids.null_count or pc.count_distinct(ids).as_py() < len(ids)):
            rule, ids = "row", pa.chunked_array([pa.array(range(len(ids))).cast(pa.string())])
    where = f"dataset.id_column={config.id_column}" if config.id_column else "the audio's path"
    n_empty = ids.null_count + (pc.sum(pc.equal(ids, "")).as_py() or 0)
    if n_empty:
        raise SourceError(f"{where} is empty in {n_empty} of {len(ids)} rows; ids must not be")
    if pc.count_distinct(ids).as_py() < len(ids):
        counts = pc.value_counts(ids)
        repeated = counts.filter(pc.greater(counts.field("counts"), 1)).field("values")
        raise SourceError(
            f"{where} is not unique: {len(repeated)} ids occur more than once, such as "
            f"{_some(repeated)}; name a column of unique ids with dataset.id_column"
            + (", or leave it out to use the file's path" if config.id_column else "")
        )
    return rule, ids.combine_chunks()


def _names(paths: pa.ChunkedArray, root: str | None) -> pa.ChunkedArray:
    """Each path relative to `root`, or the file's name where it lies elsewhere."""
    names = pc.replace_substring_regex(paths, r"^.*/", "")
    if root is None:
        return names
    prefix = root.rstrip("/") + "/"
    inside = pc.utf8_slice_codeunits(paths, start=len(prefix))
    return pc.if_else(pc.starts_with(paths, prefix), inside, names)


# --- small things -----------------------------------------------------------------------------


def _existing(config: DatasetConfig, *, directory: bool) -> Path:
    if not config.path:
        raise SourceError(f"dataset={config.kind} needs dataset.path")
    path = Path(config.path).expanduser()
    if not path.exists():
        raise SourceError(f"dataset.path={config.path} does not exist")
    if path.is_dir() != directory:
        raise SourceError(
            f"dataset.path={config.path} is {'no' if directory else 'a'} directory; "
            f"dataset={config.kind} needs {'one' if directory else 'a file'}"
        )
    return path.absolute()


def _require_column(name: str, dataset: datasets.Dataset, setting: str) -> None:
    _require_name(name, dataset.column_names, setting)


def _require_name(name: str, names: Sequence[str], setting: str) -> None:
    if name not in names:
        near = difflib.get_close_matches(name, names, 1)
        raise SourceError(
            f"{setting} names {name}, which is not in the dataset"
            f"{f'; did you mean {near[0]}?' if near else ''} (it has {', '.join(names)})"
        )


def _class_names(dataset: datasets.Dataset) -> dict[str, tuple[str, ...]]:
    labels = {n: f for n, f in dataset.features.items() if isinstance(f, datasets.ClassLabel)}
    return {name: tuple(feature.names) for name, feature in labels.items()}


def _first(table: pa.Table, config: DatasetConfig) -> pa.Table:
    return table if config.limit is None else table.slice(0, config.limit)


def _where(config: DatasetConfig) -> str:
    return f"dataset.name={config.name}" if config.kind == "hub" else f"dataset.path={config.path}"


def _some(values: pa.ChunkedArray) -> str:
    shown = ", ".join(str(value) for value in values.slice(0, 3).to_pylist())
    return shown + (f" and {len(values) - 3} more" if len(values) > 3 else "")


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
