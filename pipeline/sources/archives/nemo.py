"""Tarred manifests of NeMo: entries whose audio is a member of a tar file, read in place.

The tar files are those of `dataset.tars`. An entry with `shard_id` is in the tar file whose name
has that number last; others are looked for in all of them.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import SourceError, first_few
from pipeline.sources.archives.ranges import Ranges
from pipeline.sources.archives.shards import find_shards
from pipeline.sources.archives.tar import Member, TarReader
from pipeline.sources.columns import Rows
from pipeline.sources.fingerprint import stamps_of
from pipeline.sources.lists.lines import from_files
from pipeline.sources.lists.manifests import nemo_rows
from pipeline.sources.lists.places import Form, Places
from pipeline.sources.remote.file import RemoteFile
from pipeline.sources.remote.tables import copy_file

if TYPE_CHECKING:
    from pipeline.config import DatasetConfig

_AUDIO, _TAR, _ID, _SHARD = "audio_filepath", "__url__", "__key__", "shard_id"
_NUMBER = re.compile(r"(\d+)\D*")
_SUB = re.compile(r"-sub\d+(?=\.[^.]*$|$)")  # NeMo numbers the entries of one member so
_N_THREADS = 16  # they wait for the file system, which may be remote


def tarred_rows(config: DatasetConfig) -> Rows:
    """Read the manifests of `dataset.path`, whose audio is in the tar files of `dataset.tars`.

    Both may be patterns; NeMo's `_OP_0..7_CL_` is `{0..7}`.

    Raises:
        SourceError: A file is missing or malformed, or an entry has no member or several; the
            message names its line.
    """
    found = find_shards(_braces(str(config.tars)), ".tar")
    tars = [found.root / name for name in found.names]
    if not tars:
        raise SourceError(f"dataset.tars={config.tars} names no tar file")
    if not config.path:
        raise SourceError(f"dataset.tars={config.tars} needs dataset.path, the manifest")
    lists = find_shards(_braces(config.path), ".json")
    named = [lists.root / name for name in lists.names]
    manifests = [path if isinstance(path, Path) else copy_file(str(path)) for path in named]
    parts = [nemo_rows(config, path) for path in manifests]
    rows = _joined(parts)
    places = tuple(
        (path, len(part.table), Form()) for path, part in zip(manifests, parts, strict=True)
    )
    rows = replace(rows, places=Places(places))
    with ThreadPoolExecutor(_N_THREADS) as pool:
        members = list(pool.map(_members, tars))
    rows = _located(rows, tars, members)
    rows = from_files(rows, manifests)
    stamps = " ".join(stamps_of(map(str, tars)))
    return replace(rows, state=f"{rows.state} {stamps}")


def _braces(setting: str) -> str:
    return setting.replace("_OP_", "{").replace("_CL_", "}")


def _joined(parts: Sequence[Rows]) -> Rows:
    """Join the entries of several manifests."""
    table = pa.concat_tables([part.table for part in parts], promote_options="permissive")
    spans = parts[0].spans
    if spans is None or len(parts) == 1:
        return parts[0]
    arrays = {
        name: pa.concat_arrays([getattr(part.spans, name) for part in parts])
        for name in ("start", "duration", "is_rounded")
    }
    return replace(parts[0], table=table.combine_chunks(), spans=replace(spans, **arrays))


def _members(path: Path | RemoteFile) -> dict[str, Member]:
    """Return the members of a tar file by name; without its folders, too, if no other has it."""
    with TarReader(path) as reader:
        files = [member for member in reader.members() if member.kind == "file"]
    plain = [member.name.rpartition("/")[2] for member in files]
    counts = Counter(plain)
    by_name = {name: m for name, m in zip(plain, files, strict=True) if counts[name] == 1}
    return by_name | {member.name.removeprefix("./"): member for member in files}


def _located(
    rows: Rows, tars: Sequence[Path | RemoteFile], members: Sequence[Mapping[str, Member]]
) -> Rows:
    """Add the tar file and the range of each entry, and its id."""
    numbers = {int(m[-1]): i for i, path in enumerate(tars) if (m := _NUMBER.findall(path.stem))}
    names = rows.table[_AUDIO].to_pylist()
    shards: list[int | None] = [None] * len(names)
    if _SHARD in rows.table.column_names:
        shards = rows.table[_SHARD].to_pylist()
        if len(numbers) < len(tars):
            raise SourceError(
                f"entries have a {_SHARD}, but the names of {len(tars)} tar files have only "
                f"{len(numbers)} different numbers: {first_few([path.name for path in tars])}"
            )
    found: list[tuple[str, int, int]] = []
    for row, (name, shard) in enumerate(zip(names, shards, strict=True)):
        if shard is not None and shard not in numbers:
            raise SourceError(
                f"{rows.where(row)}: {_SHARD} is {shard}, but no tar file of dataset.tars has this "
                f"number: {first_few([path.name for path in tars])}"
            )
        wanted = range(len(tars)) if shard is None else (numbers[shard],)
        hits = [(i, hit) for i in wanted if (hit := _member(members[i], name)) is not None]
        if len(hits) != 1:
            where = first_few([tars[i].name for i, _ in hits] or [tars[i].name for i in wanted])
            what = f"is in {len(hits)} tar files" if hits else "is no member of"
            raise SourceError(
                f"{rows.where(row)}: {name} {what} {where}; dataset.tars names the tar files of "
                "this manifest"
            )
        ((i, member),) = hits
        found.append((str(tars[i]), member.start, member.n_bytes))
    paths, offsets, lengths = (list(part) for part in zip(*found, strict=True))
    ids = rows.table[_AUDIO].cast(pa.string())
    if rows.spans is not None:
        ids = pc.binary_join_element_wise(ids, rows.spans.labels(), ":")
    table = rows.table.append_column("recording", rows.table[_AUDIO])
    table = table.append_column(_TAR, pa.array(paths)).append_column(_ID, ids)
    ranges = Ranges("tar", pa.array(offsets, pa.int64()), pa.array(lengths, pa.int64()))
    return replace(
        rows,
        table=table.drop_columns([_AUDIO]),
        audio_column=_TAR,
        id_column=_ID,
        ranges=ranges,
        root=None,
    )


def _member(members: Mapping[str, Member], name: str) -> Member | None:
    """Return the member that an entry names."""
    plain = name.removeprefix("./")
    for candidate in (plain, plain.rpartition("/")[2], _SUB.sub("", plain.rpartition("/")[2])):
        if candidate in members:
            return members[candidate]
    return None
