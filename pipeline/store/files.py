"""Durable writes on a file system: a file is there whole, or not at all."""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.store.layout import PARTIAL_SUFFIX

Buffer = bytes | memoryview


def write_atomic(path: Path, parts: Sequence[Buffer]) -> None:
    """Writes `parts` one after the other to `path`: temporary name, fsync, rename."""
    with _partial(path) as partial:
        write_synced(partial, parts)
        partial.replace(path)
    sync_folder(path.parent)


def create_exclusive(path: Path, parts: Sequence[Buffer]) -> bool:
    """Creates `path` with all its content, unless it exists.

    Returns:
        False if it existed, which leaves it as it was.
    """
    with _partial(path) as partial:
        write_synced(partial, parts)
        try:
            os.link(partial, path)
        except FileExistsError:
            return False
        except OSError:  # a file system without hard links: exclusive, but not atomic
            try:
                with path.open("xb") as file:
                    file.writelines(parts)
                    file.flush()
                    os.fsync(file.fileno())
            except FileExistsError:
                return False
    sync_folder(path.parent)
    return True


def write_synced(path: Path, parts: Sequence[Buffer]) -> None:
    """Writes a file and waits until the disk has it."""
    with path.open("wb", buffering=0) as file:
        for part in parts:
            view = memoryview(part).cast("B")
            while len(view):
                view = view[file.write(view) :]
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Makes renames and links in `folder` durable."""
    with suppress(OSError):  # some network file systems refuse it, and need it not
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def make_folder(folder: Path) -> None:
    """Makes a folder and those above it, durably."""
    if not folder.is_dir():
        make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        sync_folder(folder.parent)


def parquet_bytes(table: pa.Table) -> memoryview:
    """A table as the bytes of a Parquet file; equal tables give equal bytes."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    return memoryview(sink.getvalue())


def json_bytes(document: Any) -> bytes:
    """A document as indented JSON."""
    return (json.dumps(document, indent=2) + "\n").encode()


@contextmanager
def _partial(path: Path) -> Iterator[Path]:
    """A name beside `path` that no reader looks at; gone afterwards."""
    make_folder(path.parent)
    partial = path.with_name(f"{path.name}.{uuid.uuid4().hex}{PARTIAL_SUFFIX}")
    try:
        yield partial
    finally:
        partial.unlink(missing_ok=True)
