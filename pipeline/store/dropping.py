"""The record of a drop that is being made: what it removes, until all of that is gone.

It is written first and deleted last. While it is there no driver may write to the store, so that a
drop that was interrupted is completed before anything else.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa

from pipeline.errors import DamagedError, UnreachableError
from pipeline.store.backend.base import Location
from pipeline.store.backend.opening import open_backend
from pipeline.store.format.layout import DROPPING
from pipeline.store.index import numbers
from pipeline.store.labels import IntArray
from pipeline.store.serialization import parquet_bytes, read_parquet

_METADATA_KEY = b"strata"


@dataclass(frozen=True)
class Dropping:
    """What a drop removes.

    Attributes:
        utterances: Numbers of the utterances, ascending: int64 [n].
        layers: The layers.
    """

    utterances: IntArray
    layers: Sequence[int]


def write_dropping(store: Location, dropping: Dropping) -> None:
    """Record what will be dropped."""
    table = pa.table({"row": pa.array(dropping.utterances, pa.int64())})
    facts = json.dumps({"layers": list(dropping.layers)})
    table = table.replace_schema_metadata({_METADATA_KEY: facts})
    open_backend(store).put(DROPPING, [parquet_bytes(table)])


def read_dropping(store: Location) -> Dropping | None:
    """Return what an interrupted drop removes; None if there is none.

    Raises:
        DamagedError: The record is damaged.
    """
    backend = open_backend(store)
    if not backend.exists(DROPPING):
        return None
    try:
        table = read_parquet(backend, DROPPING)
        layers = json.loads(table.schema.metadata[_METADATA_KEY])["layers"]
        return Dropping(numbers(table["row"]), layers)
    except UnreachableError:
        raise
    except (DamagedError, KeyError, TypeError, ValueError, OSError) as error:
        raise DamagedError(
            f"{backend.locate(DROPPING)} is not readable ({error}); delete it, and repeat the "
            "`strata drop` that was interrupted"
        ) from error


def end_dropping(store: Location) -> None:
    """Delete the record of a drop, durably."""
    backend = open_backend(store)
    backend.delete(DROPPING)
    backend.sync("")
