"""A Hugging Face dataset on disk, for `datasets.load_from_disk`, without the library.

The files are those of `Dataset.save_to_disk`: Arrow streams, `state.json`, `dataset_info.json`.
Frames of a layer are a column of type `Array2D` [n_frames, dim], pooled statistics one of lists of
length dim. One layer is called `features`, several `layer_<n>`. Types that Arrow does not have are
stated as `datasets` states them: those of arrays in the metadata of their field, class names in
that of the schema.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from hashlib import sha256
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from pipeline.errors import ConfigError, StoreError
from pipeline.store.backend.base import Backend
from pipeline.store.format.pooling import MEAN
from pipeline.store.serialization import json_bytes
from pipeline.transforms.export.base import (
    Appender,
    Chunk,
    Content,
    Entry,
    ExportFormat,
    dtype_name,
)

_MAX_VALUES = 2**31 - 1
"""Values of a column in a record batch, whose lists have offsets of 32 bits."""
_ARRAY_TYPE = b"datasets.features.features.Array2DExtensionType"


class HuggingFaceDataset(ExportFormat):
    """Writes `data-<part>.arrow`; a chunk is a record batch."""

    name = "hf"

    def __init__(self, content: Content, out: Backend) -> None:
        """Prepare the columns.

        Raises:
            ConfigError: A column of the store has the name of a column of features.
        """
        super().__init__(content, out)
        names = [f"layer_{label}" for label in content.labels]
        self._names = ["features"] if content.is_single else names
        clash = [name for name in self._names if name in content.columns.names]
        if clash:
            raise ConfigError(
                f"the store has a column {clash[0]!r}, and format=hf writes features under this "
                "name; choose another format, or other layers"
            )
        self._schema = self._make_schema()

    def write_part(self, number: int, chunks: Iterable[Chunk]) -> Iterator[Entry]:
        """Write an Arrow file."""
        path, entries = _file(number), []
        partial = self.out.open_partial(path)
        try:
            with pa.ipc.new_stream(pa.PythonFile(Appender(partial), "w"), self._schema) as stream:
                for chunk in chunks:
                    stream.write_batch(self._batch(chunk))
                    entries += chunk.entries([path] * len(chunk.values))
            self.out.publish([partial])
        finally:
            partial.discard()
        yield from entries

    def finish(self, n_parts: int, entries: Iterable[Entry]) -> None:
        """Write the two documents that `load_from_disk` needs."""
        for _ in entries:
            pass
        self.out.put("dataset_info.json", [json_bytes({"features": None})])
        state: dict[str, Any] = {
            "_data_files": [{"filename": _file(number)} for number in range(n_parts)],
            "_fingerprint": self._fingerprint(),
            "_format_columns": None,
            "_format_kwargs": {},
            "_format_type": None,
            "_output_all_columns": False,
            "_split": None,
        }
        self.out.put("state.json", [json_bytes(state)])

    def _fingerprint(self) -> str:
        """Return what `datasets` names its caches by: equal content has an equal one."""
        content = self.content
        parts = [content.source, content.layers, content.is_pooled, dtype_name(self.dtype)]
        parts += [] if content.statistics in ((), (MEAN,)) else [content.statistics]
        return sha256(json.dumps(parts).encode()).hexdigest()[:16]

    def _make_schema(self) -> pa.Schema:
        content, fields = self.content, []
        for field in content.columns:
            kind = pa.int64() if field.name in content.class_names else field.type
            fields.append(pa.field(field.name, kind))
        fields.append(pa.field("n_frames", pa.int64()))
        value = pa.from_numpy_dtype(torch.empty(0, dtype=self.dtype).numpy().dtype)
        for name in self._names:
            if content.is_pooled:
                fields.append(pa.field(name, pa.list_(value, content.dim)))
            else:
                shape = json.dumps([[None, content.dim], dtype_name(self.dtype)]).encode()
                extension = {
                    b"ARROW:extension:name": _ARRAY_TYPE,
                    b"ARROW:extension:metadata": shape,
                }
                fields.append(pa.field(name, pa.list_(pa.list_(value)), metadata=extension))
        classes = {
            name: {"names": list(names), "_type": "ClassLabel"}
            for name, names in content.class_names.items()
        }
        info = {"info": {"features": classes}}
        return pa.schema(fields, {b"huggingface": json.dumps(info).encode()})

    def _batch(self, chunk: Chunk) -> pa.RecordBatch:
        table = chunk.metadata.combine_chunks()
        arrays = []
        for field in self._schema:
            if field.name in self._names:
                axis = self._names.index(field.name)
                several = [item if self.content.is_single else item[axis] for item in chunk.values]
                arrays.append(self._lists(several, chunk, field.type))
            elif field.name == "n_frames":
                arrays.append(pa.array(chunk.n_frames, pa.int64()))
            else:
                column = table[field.name].cast(field.type)
                arrays.append(pa.concat_arrays(column.chunks) if column.num_chunks else column)
        return pa.RecordBatch.from_arrays(arrays, schema=self._schema)

    def _lists(self, values: list[Tensor], chunk: Chunk, kind: pa.DataType) -> pa.Array:
        """Return the values of a layer: a list of lists, or of one fixed length."""
        flat = np.concatenate([item.numpy().reshape(-1) for item in values])  # torch.cat is slow
        if self.content.is_pooled:
            return pa.FixedSizeListArray.from_arrays(pa.array(flat), type=kind)
        if len(flat) > _MAX_VALUES:
            raise StoreError(
                f"utterance {chunk.ids[0]!r} has {len(flat):,} values per layer; a row of "
                f"format=hf holds {_MAX_VALUES:,}. Leave it out by where=, or choose another format"
            )
        dim = self.content.dim
        inner = np.arange(0, len(flat) + 1, dim, dtype=np.int32)
        outer = np.concatenate([[0], np.cumsum(chunk.n_frames)]).astype(np.int32)
        frames = pa.ListArray.from_arrays(pa.array(inner), pa.array(flat))
        return pa.ListArray.from_arrays(pa.array(outer), frames)


def _file(number: int) -> str:
    return f"data-{number:05d}.arrow"
