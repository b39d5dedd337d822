"""Export: features of a store as files of another format."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
import time
from collections.abc import Mapping, Sequence

import pyarrow.compute as pc
import torch

from pipeline.errors import ConfigError, NoSpaceError, did_you_mean
from pipeline.events import Observer
from pipeline.store.backend.base import Backend, Location
from pipeline.store.backend.folders import relation
from pipeline.store.backend.opening import open_backend
from pipeline.store.format.codecs import PORTABLE_DTYPES
from pipeline.store.format.pooling import MEAN, STATISTICS
from pipeline.store.read.features import FeatureStore
from pipeline.store.read.opening import open_store
from pipeline.transforms.export import units
from pipeline.transforms.export.base import (
    Content,
    ExportFormat,
    as_json,
    dtype_name,
)
from pipeline.transforms.export.hf import HuggingFaceDataset
from pipeline.transforms.export.kaldi import KaldiArchives
from pipeline.transforms.export.npy import NpyFiles
from pipeline.transforms.export.reading import ChunkReader, Part, plan_parts, read_ahead
from pipeline.transforms.export.result import Export
from pipeline.transforms.export.safetensors import SafetensorsFiles
from pipeline.transforms.export.state import MANIFEST, ExportRecord
from pipeline.transforms.export.webdataset import WebDatasetShards
from pipeline.transforms.selection import select_where

FORMATS: Mapping[str, type[ExportFormat]] = {
    kind.name: kind
    for kind in (NpyFiles, SafetensorsFiles, KaldiArchives, WebDatasetShards, HuggingFaceDataset)
}
SHARD_MB = 512
CHUNK_BYTES = 32 << 20
"""Bytes of the utterances that are read together; two chunks are in memory."""
_PLAIN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
_ROWS = 10_000  # of the metadata that are hashed together


def export(
    store: Location | FeatureStore,
    out: Location,
    format: str,  # noqa: A002  the name of the setting
    *,
    layers: Sequence[int | str] | None = None,
    where: str | None = None,
    pooled: bool = False,
    pooling: Sequence[str] | None = None,
    dtype: str | None = None,
    shard_mb: int = SHARD_MB,
    tokens: str | None = None,
    dedup: bool = False,
    observer: Observer | None = None,
) -> Export:
    """Write features of a store as files of another format.

    Everything is verified against its checksums as it is read. Memory is bounded by some 200 MB, or
    some four times the longest utterance, and about 0.3 kB for each utterance. An interrupted
    export goes on where it stopped when it is repeated.

    Args:
        store: The store, or a selection of an opened one.
        out: The folder to write, or an incomplete export of the same to complete.
        format: npy, safetensors, kaldi, webdataset or hf; or units, for which `out` is a new file
            of text: tokens, not features.
        layers: Layers to export, by number or name, in this order; None exports all. One layer is
            exported without an axis of layers.
        where: Condition on the utterances; see `FeatureStore.select`.
        pooled: Export statistics over the frames of each utterance instead of its frames.
        pooling: With `pooled`, any of mean, std, max, first and last, one after the other in a
            vector; None is the mean.
        dtype: float16 or float32; None keeps that of `FeatureStore.read`, where the format can
            hold it.
        shard_mb: About the largest size of a file with many utterances, in MiB.
        tokens: With format=units, the name of the tokens; None if the store has only one.
        dedup: With format=units, write consecutive equal tokens once.
        observer: Receives the progress.

    Raises:
        ConfigError: The format is unknown, or cannot hold what is asked for; or a setting is wrong.
        StoreError: A layer or column is unknown, no utterance is selected, a value exceeds the
            dtype, or `out` has other content.
        IdentityError: `out` has another export.
        StoreBusyError: Another process is exporting to `out`.
        NoSpaceError: The export does not fit on the disk.
        DamagedError: The store is damaged; the message names the utterance.

    Example:
        >>> export("features", "files", "npy", layers=[6], where="score > 0")  # doctest: +SKIP
    """
    start_s = time.perf_counter()
    if format == units.FORMAT:
        _check_units(layers, pooled, pooling, dtype, shard_mb)
        chosen = store if isinstance(store, FeatureStore) else open_store(store)
        view = select_where(chosen, where, observer)
        return units.export_units(view, str(out), tokens, dedup, observer or Observer())
    if tokens is not None or dedup:
        raise ConfigError(f"tokens and dedup are for format=units; format is {format}")
    kind, target = _format_of(format), open_backend(out)
    if shard_mb < 1:
        raise ConfigError(f"shard_mb is {shard_mb}; expected a whole number from 1")
    opened = store if isinstance(store, FeatureStore) else open_store(store)
    for backend in opened.backends:
        _check_apart(backend, target)
    view = select_where(opened, where, observer)
    hashes = _hashes(view)
    source = "".join(hashes.values())
    statistics = _statistics(view, pooled, pooling)
    content = _content(view, layers, statistics, _dtype_of(dtype), source, shard_mb << 20)
    record, writer = ExportRecord(target), kind(content, target)
    reader = ChunkReader(view, content, writer.dtype)
    settings = {
        "format": format,
        "layers": list(content.layers),
        "pooled": pooled,
        "dtype": dtype_name(writer.dtype),
        "where": where,
        "shard_mb": shard_mb,
        "utterances": len(view),
    } | hashes
    if statistics not in ((), (MEAN,)):
        settings["pooling"] = list(statistics)
    facts = {
        "store": ", ".join(map(str, opened.backends)),
        "axes": list(content.axes),
        "feature_dim": content.dim,
        "frame_rate_hz": view.frame_rate_hz,
        "class_names": content.class_names,
    }
    record.check_folder()
    with record.held():
        record.open(settings, facts)
        n_written = _write(record, writer, reader, observer or Observer())
    return Export(
        format=format,
        out=target.uri,
        manifest=target.locate(MANIFEST),
        utterances=len(view),
        utterances_written=n_written,
        layers=content.layers,
        axes=content.axes,
        dtype=dtype_name(writer.dtype),
        bytes=sum(reader.n_bytes),
        wall_seconds=round(time.perf_counter() - start_s, 3),
    )


def _write(
    record: ExportRecord, writer: ExportFormat, reader: ChunkReader, observer: Observer
) -> int:
    """Write the parts that are missing, and what is made of all; return the new utterances."""
    sizes, n_utterances = reader.n_bytes, len(reader.n_bytes)
    parts = plan_parts(sizes, writer.part_bytes, writer.part_utterances, CHUNK_BYTES)
    todo = [] if record.is_complete else [p for p in parts if not record.is_done(p.number)]
    _check_space(writer, todo, sizes)
    n_done = n_before = n_utterances - sum(part.n_utterances for part in todo)
    observer.utterances_exported(n_done, n_utterances)
    chunks = read_ahead(reader, [chunk for part in todo for chunk in part.chunks])
    for part in todo:
        of_part = itertools.islice(chunks, len(part.chunks))
        record.complete_part(part.number, list(writer.write_part(part.number, of_part)))
        n_done += part.n_utterances
        observer.utterances_exported(n_done, n_utterances)
    if not record.is_complete:
        writer.finish(len(parts), record.entries(len(parts)))
        record.complete(len(parts))
    return n_done - n_before


def _check_units(
    layers: Sequence[int | str] | None,
    pooled: bool,
    pooling: Sequence[str] | None,
    dtype: str | None,
    shard_mb: int,
) -> None:
    """Refuse settings of features for an export of tokens.

    Raises:
        ConfigError: One is given.
    """
    given = {
        "layers": layers is not None,
        "pooled": pooled,
        "pooling": pooling is not None,
        "dtype": dtype is not None,
        "shard_mb": shard_mb != SHARD_MB,
    }
    names = [name for name, is_given in given.items() if is_given]
    if names:
        raise ConfigError(
            f"{', '.join(names)} cannot be set for format=units, which writes tokens; it takes "
            "where, tokens (on the command line: name) and dedup"
        )


def _content(
    view: FeatureStore,
    layers: Sequence[int | str] | None,
    statistics: tuple[str, ...],
    dtype: torch.dtype | None,
    source: str,
    shard_bytes: int,
) -> Content:
    """Return what is exported.

    Raises:
        StoreError: A layer is not in the store.
        ConfigError: A layer is given twice.
    """
    chosen = view.numbers_at(view.axes(layers))
    if layers is not None and len(set(chosen)) < len(chosen):
        raise ConfigError(f"layers={list(layers)} has a layer twice")
    return Content(
        layers=chosen,
        labels=tuple(_file_label(layer, view) for layer in chosen),
        dim=view.feature_dim * max(1, len(statistics)),
        statistics=statistics,
        dtype=dtype,
        stored=torch.float32 if statistics else view.read(0, chosen[:1], 0, 1).dtype,
        columns=view.metadata.schema,
        class_names=view.class_names,
        ambiguous=_ambiguous(view),
        source=source,
        shard_bytes=shard_bytes,
    )


def _file_label(layer: int, view: FeatureStore) -> str:
    """Return what files and columns of a layer are called by: its label, if that is a plain word.

    The layer of a collapsed store goes by its number, as in exports of earlier versions.
    """
    label = view.layer_labels[layer]
    return label if not view.is_collapsed and _PLAIN.fullmatch(label) else str(layer)


def _statistics(view: FeatureStore, pooled: bool, pooling: Sequence[str] | None) -> tuple[str, ...]:
    """Return the statistics that are exported; none for frames.

    Raises:
        ConfigError: They are given for frames, or are no statistics, or one is given twice.
        StoreError: The store keeps neither one of them nor frames.
    """
    if pooling is None:
        return (MEAN,) if pooled else ()
    if not pooled:
        raise ConfigError(f"pooling={list(pooling)} is about statistics; set pooled=true as well")
    known = [name for name in pooling if name in STATISTICS]
    if isinstance(pooling, str) or not known or len(set(known)) < len(pooling):
        given = pooling if isinstance(pooling, str) else list(pooling)
        raise ConfigError(
            f"pooling is {given!r:.80}; expected a list of {', '.join(STATISTICS)}, each at most "
            "once"
        )
    for name in known:
        view.take([0]).pooled(view.layers[:1], statistic=name)  # fails if it cannot be had
    return tuple(known)


def _format_of(name: str) -> type[ExportFormat]:
    if name not in FORMATS:
        raise ConfigError(
            f"no format is called {name!r}{did_you_mean(name, FORMATS)} (the formats are "
            f"{', '.join(FORMATS)}; units for tokens)"
        )
    return FORMATS[name]


def _dtype_of(name: str | None) -> torch.dtype | None:
    if name is None:
        return None
    if name not in PORTABLE_DTYPES:
        raise ConfigError(f"dtype is {name!r}; expected {' or '.join(PORTABLE_DTYPES)}")
    found: torch.dtype = getattr(torch, name)
    return found


def _check_apart(store: Backend, out: Backend) -> None:
    """Check that neither folder is in the other.

    Raises:
        ConfigError: One is.
    """
    found = relation(out, store)
    if found == "the same folder as":
        raise ConfigError(f"a store cannot be exported into itself ({out}); give another path")
    if found == "inside":
        raise ConfigError(f"{out} is inside the store {store}; give a path outside of it")
    if found == "around":
        raise ConfigError(f"{out} contains the store {store}; give the path of a new folder")


def _hashes(view: FeatureStore) -> dict[str, str]:
    """Return the hashes of a store's identity, of the selected utterances and of their columns."""
    identity = json.dumps(view.attributes["identity"], sort_keys=True).encode()
    utterances, columns = hashlib.sha256(), hashlib.sha256()
    utterances.update(view.frame_counts.tobytes())
    utterances.update(view.slots.tobytes())
    columns.update(json.dumps(view.class_names, sort_keys=True).encode())
    for start in range(0, len(view), _ROWS):
        rows = view.metadata.slice(start, _ROWS)
        utterances.update(json.dumps(rows["id"].to_pylist()).encode())
        columns.update(json.dumps(as_json(rows.drop_columns("id").to_pylist())).encode())
    return {
        "store_sha256": hashlib.sha256(identity).hexdigest(),
        "utterances_sha256": utterances.hexdigest(),
        "columns_sha256": columns.hexdigest(),
    }


def _ambiguous(view: FeatureStore) -> frozenset[str]:
    """Return the ids that are equal to another one but for upper and lower case."""
    ids = view.metadata["id"]
    lower = pc.utf8_lower(ids)
    counts = lower.value_counts()
    several = counts.filter(pc.greater(counts.field("counts"), 1)).field("values")
    return frozenset(ids.filter(pc.is_in(lower, value_set=several)).to_pylist())


def _check_space(writer: ExportFormat, todo: Sequence[Part], sizes: Sequence[int]) -> None:
    chunks = [chunk for part in todo for chunk in part.chunks]
    n_bytes = sum(sum(sizes[start:stop]) for start, stop in chunks)
    needed = n_bytes + writer.overhead_bytes * sum(part.n_utterances for part in todo)
    free = writer.out.free_bytes()
    if needed > free:
        raise NoSpaceError(
            f"{needed / 1e9:.2f} GB are needed in {writer.out}, {free / 1e9:.2f} GB are free; free "
            "space, give another path, or export fewer layers or utterances"
        )
