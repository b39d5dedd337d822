"""The audio column of a Parquet file, of which the paths are read, but not the bytes."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.sources.archives.parquet.pages import UnknownFormError
from pipeline.sources.columns import below, is_text


def leaves_of(name: str, kind: pa.DataType) -> tuple[str | None, str | None]:
    """Return the columns of the file with the bytes and the paths of an audio column."""
    children = children_of(kind)
    if _is_binary(kind):
        return name, None
    has_bytes = not pa.types.is_null(children.get("bytes", pa.null()))
    leaf = f"{name}.bytes" if has_bytes else None
    if leaf is not None and not _is_binary(children["bytes"]):
        raise UnknownFormError(f"{leaf} is {children['bytes']}, not binary")
    is_path = is_text(children.get("path", pa.null()))
    return leaf, f"{name}.path" if is_path else None


def _is_binary(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def stand_in(
    kind: pa.DataType, paths: pa.ChunkedArray, has_bytes: npt.NDArray[np.bool_], folder: str
) -> pa.Array | pa.ChunkedArray:
    """Return the audio column with empty bytes in the place of embedded ones.

    Args:
        kind: Type of the column in the file.
        paths: The column, of which only paths were read.
        has_bytes: Whether each row has bytes.
        folder: Folder that the relative paths of rows without bytes start from; empty for none.
    """
    mask = pa.array(has_bytes)
    data = pc.if_else(mask, pa.scalar(b"", pa.binary()), pa.scalar(None, pa.binary()))
    if _is_binary(kind):
        return data
    children = children_of(kind)
    if not children:
        return _below(folder, paths) if is_text(kind) else paths
    names = pa.nulls(len(mask), pa.string())
    if is_text(children.get("path", pa.null())):
        names = pc.struct_field(paths, "path").cast(pa.string())
        names = pc.if_else(mask, names, _below(folder, names))
    if isinstance(names, pa.ChunkedArray):
        names = names.combine_chunks()
    return pa.StructArray.from_arrays([data, names], ["bytes", "path"])


def _below(folder: str, paths: pa.ChunkedArray) -> pa.ChunkedArray:
    return below(folder, paths) if folder else paths


def children_of(kind: pa.DataType) -> dict[str, pa.DataType]:
    """Return the types of the children of a struct; none for other types."""
    return {field.name: field.type for field in kind} if pa.types.is_struct(kind) else {}
