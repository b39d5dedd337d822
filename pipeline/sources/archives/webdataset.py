"""WebDataset: shards of samples in tar files, whose audio is read in place.

Every utterance is a range of bytes of its shard. Opening the dataset reads the headers of the
shards and the labels, in threads, and no audio.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import SourceError, counted, first_few
from pipeline.sources.archives.labels import typed
from pipeline.sources.archives.ranges import Ranges
from pipeline.sources.archives.samples import ANY_AUDIO, Shard, read_shard
from pipeline.sources.archives.shards import choose_shards, find_shards
from pipeline.sources.columns import Rows
from pipeline.sources.fingerprint import stamps_of
from pipeline.sources.lists.ids import has_duplicates
from pipeline.sources.splits import with_split
from pipeline.sources.tabular import TabularSource

if TYPE_CHECKING:
    from pipeline.config import DatasetConfig

KEY, URL = "__key__", "__url__"
"""Columns with the key and the shard of each sample, named as in the WebDataset library."""
SUFFIX = ".tar"
_COMPRESSED = (
    *(f"{SUFFIX}{packing}" for packing in (".gz", ".bz2", ".xz", ".zst", ".lz4")),
    *(".tgz", ".tbz2", ".txz", ".tzst"),
)
_N_THREADS = 16  # they wait for the file system, which may be remote


def open_webdataset(config: DatasetConfig) -> TabularSource:
    """Open the shards that `dataset.path` names: a tar file, a folder of them, or a pattern.

    Raises:
        SourceError: There are no shards, or one is compressed, damaged or not in the form of
            WebDataset; see `read_shard` and `TabularSource`.
    """
    if not config.path:
        raise SourceError("dataset=webdataset needs dataset.path, e.g. 'shards/x-{000..012}.tar'")
    found = find_shards(config.path, SUFFIX)
    _refuse_compressed([*found.names, *found.skipped])
    if not found.names:
        others = f"; it holds {first_few(found.skipped)}" if found.skipped else ""
        raise SourceError(f"dataset.path={config.path} holds no {SUFFIX} file{others}")
    found, splits = choose_shards(config.split, found)
    paths = [found.root / name for name in found.names]
    audio = config.audio_column.lower().lstrip(".")
    with ThreadPoolExecutor(_N_THREADS) as pool:
        shards = list(pool.map(lambda path: read_shard(path, audio), paths))
    lengths = [len(shard.keys) for shard in shards]
    if not sum(lengths):
        raise SourceError(
            f"dataset.path={config.path} has no rows: {_without_audio(shards, audio)}"
        )
    keys = pa.chunked_array([shard.keys for shard in shards])
    names = [name.removesuffix(SUFFIX) for name in found.names]
    notes = _notes(shards, names, audio)
    split = None if splits is None else _repeated(splits, lengths)
    is_one = config.split is not None and len(set(splits or ())) == 1
    by_split = None if split is None else pc.binary_join_element_wise(split, keys, "/")
    if has_duplicates(keys) and (by_split is None or has_duplicates(by_split)):
        keys, by_split = pc.binary_join_element_wise(_repeated(names, lengths), keys, "/"), None
        if config.id_column is None:
            notes.append("keys repeat across shards, so ids begin with the name of the shard")
    columns = {KEY: keys, URL: _repeated([str(path) for path in paths], lengths)}
    table = pa.table({**_label_columns(shards), **columns})
    offset, length = (
        pa.concat_arrays([getattr(shard, name) for shard in shards])
        for name in ("offset", "length")
    )
    rows = Rows(
        table if split is None or is_one else with_split(table, split),
        {},
        URL,
        None,
        json.dumps(stamps_of(map(str, paths))),
        found.skipped,
        ranges=Ranges("tar", offset, length),
        id_column=KEY,
        notes=tuple(notes),
        splits=None if by_split is None else split,
    )
    return TabularSource(config, rows)


def _refuse_compressed(names: Sequence[str]) -> None:
    packed = [name for name in names if name.lower().endswith(_COMPRESSED)]
    if packed:
        raise SourceError(
            f"{first_few(packed)}: parts of a compressed tar cannot be read in place; decompress "
            "it, e.g. with gunzip or zstd -d (audio hardly becomes larger)"
        )


def _repeated(values: Sequence[str], lengths: Sequence[int]) -> pa.Array:
    """Return each value as often as `lengths` says, as text."""
    rows = np.repeat(np.arange(len(values), dtype=np.int32), lengths)
    return pa.array(values, pa.string()).take(pa.array(rows))


def _label_columns(shards: Sequence[Shard]) -> dict[str, pa.ChunkedArray]:
    """Take the labels of all shards away, and join them: a column has one type over all shards."""
    columns: dict[str, pa.ChunkedArray] = {}
    names = dict.fromkeys(name for shard in shards for name in shard.columns)
    for name in names:
        kinds: set[str] = set()
        chunks = []
        for shard in shards:
            values, shard_kinds = shard.columns.pop(name, (None, set()))
            chunks.append(pa.nulls(len(shard.keys), pa.string()) if values is None else values)
            kinds |= shard_kinds
        columns[name] = typed(pa.chunked_array(chunks), kinds)
    return columns


def _notes(shards: Sequence[Shard], names: Sequence[str], audio: str) -> list[str]:
    """Say what was left out, and what is wrong with a shard."""
    notes = [f"{shard.path}: {shard.fault}" for shard in shards if shard.fault]
    empty = [name for name, shard in zip(names, shards, strict=True) if not len(shard.keys)]
    if empty:
        notes.append(f"{len(empty)} of {len(shards)} shards hold no audio: {first_few(empty)}")
    silent = [f"{name}/{key}" for name, s in zip(names, shards, strict=True) for key in s.silent]
    if silent:
        kind = "audio" if audio == ANY_AUDIO else f".{audio}"
        samples = counted(len(silent), "sample")
        notes.append(f"left out: {samples} without {kind} ({first_few(silent)})")
    links = [f"{name}/{link}" for name, s in zip(names, shards, strict=True) for link in s.links]
    if links:
        notes.append(f"not followed: {counted(len(links), 'link')} ({first_few(links)})")
    others = _total(shard.others for shard in shards)
    if others:
        listed = [f"{n:,} {f'.{kind}' if kind else 'without extension'}" for kind, n in others]
        notes.append(f"members that are neither audio nor labels: {first_few(listed)}")
    nested = [f"{name} ({n:,})" for name, n in _total(shard.nested for shard in shards)]
    if nested:
        notes.append(f"json: nested values are not carried: {first_few(nested)}")
    second = [f"{name} ({n:,})" for name, n in _total(shard.second for shard in shards)]
    if second:
        notes.append(
            f"two members of a sample have a column, with different values, of which the first is "
            f"taken: {first_few(second)}"
        )
    return notes


def _total(counters: Iterable[Counter[str]]) -> list[tuple[str, int]]:
    total: Counter[str] = Counter()
    for counter in counters:
        total += counter
    return total.most_common()


def _without_audio(shards: Sequence[Shard], audio: str) -> str:
    """Say what samples have in place of audio."""
    others = [f".{kind}" for kind, _ in _total(shard.others for shard in shards) if kind]
    n = sum(len(shard.silent) for shard in shards)
    kind = "an audio member" if audio == ANY_AUDIO else f"a member .{audio}"
    choices = f"; other members: {first_few(others)}" if others else ""
    return f"none of {counted(n, 'sample')} has {kind}{choices}; dataset.audio_column names it"
