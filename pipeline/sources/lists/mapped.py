"""Tables in a temporary file that is mapped into memory: a large dataset takes no heap.

The system loads the pages of such a file when they are used, and drops them when memory is scarce.
The file has no name, so it ends with the table, or with the process.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import pyarrow as pa

from pipeline.errors import SourceError

HEAP_BYTES = 1 << 24
"""Larger tables are mapped."""


def mapped_if_large(table: pa.Table) -> pa.Table:
    """Return a table, mapped if it is larger than `HEAP_BYTES`."""
    return table if table.nbytes <= HEAP_BYTES else mapped(table.schema, table.to_batches())


def mapped(schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> pa.Table:
    """Write batches to a temporary file, one after the other, and return its table.

    Args:
        schema: Columns of the batches.
        batches: The rows.

    Raises:
        SourceError: The file cannot be written.
    """
    with _explained():
        file = tempfile.NamedTemporaryFile(prefix="strata-", suffix=".arrow")  # noqa: SIM115 - below
    with file:
        with pa.OSFile(file.name, "wb") as sink:
            writer = pa.ipc.new_file(sink, schema)
            for batch in batches:
                with _explained():
                    writer.write_batch(batch)
            with _explained():
                writer.close()
        return pa.ipc.open_file(pa.memory_map(file.name)).read_all()


@contextmanager
def _explained() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise SourceError(
            f"a large dataset cannot be kept in {tempfile.gettempdir()}: {error}. Make room there, "
            "or set the environment variable TMPDIR to another folder"
        ) from error
