"""The parts of an export, and verified reads of their utterances."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pipeline.errors import StoreError
from pipeline.store.format.codecs import PORTABLE_DTYPES
from pipeline.store.format.pooling import MEAN, STD
from pipeline.store.read.features import FeatureStore
from pipeline.transforms.export.base import Chunk, Content, as_json, dtype_name


@dataclass(frozen=True)
class Part:
    """A run of utterances that is written at once.

    Attributes:
        number: Its number.
        chunks: First utterance, and one past the last, of what is read at a time.
    """

    number: int
    chunks: tuple[tuple[int, int], ...]

    @property
    def n_utterances(self) -> int:
        """Number of its utterances."""
        return self.chunks[-1][1] - self.chunks[0][0]


def plan_parts(
    sizes: Sequence[int], max_bytes: int, max_utterances: int, chunk_bytes: int
) -> list[Part]:
    """Cut consecutive utterances into parts, and these into chunks.

    Args:
        sizes: Bytes of each utterance.
        max_bytes: Most bytes of a part; a larger utterance is a part by itself.
        max_utterances: Most utterances of a part.
        chunk_bytes: Most bytes of a chunk; a larger utterance is a chunk by itself.

    Returns:
        Parts that cover each utterance once, in order.
    """
    runs = _runs(sizes, 0, len(sizes), max_bytes, max_utterances)
    return [
        Part(number, tuple(_runs(sizes, start, stop, chunk_bytes, max_utterances)))
        for number, (start, stop) in enumerate(runs)
    ]


def _runs(
    sizes: Sequence[int], start: int, stop: int, max_bytes: int, max_count: int
) -> Iterator[tuple[int, int]]:
    first, total = start, 0
    for i in range(start, stop):
        if i > first and (total + sizes[i] > max_bytes or i - first == max_count):
            yield first, i
            first, total = i, 0
        total += sizes[i]
    if first < stop:
        yield first, stop


class ChunkReader:
    """Reads chunks of the exported utterances, verified, in the dtype of the export.

    Attributes:
        n_bytes: Bytes of the values of each utterance.
    """

    def __init__(self, view: FeatureStore, content: Content, dtype: torch.dtype) -> None:
        self._view, self._content, self._dtype = view, content, dtype
        self._counts: list[int] = view.frame_counts.tolist()
        row = len(content.layers) * content.dim * torch.empty(0, dtype=dtype).element_size()
        self.n_bytes = [row * (1 if content.is_pooled else n) for n in self._counts]

    def read(self, start: int, stop: int) -> Chunk:
        """Read utterances `start:stop`.

        Raises:
            DamagedError: The store is damaged.
            StoreError: A value exceeds the dtype.
        """
        content, names = self._content, self._content.class_names
        metadata = self._view.metadata.slice(start, stop - start)
        rows = metadata.to_pylist()
        if content.is_pooled:
            some = self._view.take(range(start, stop))
            several = [
                some.pooled(content.layers, statistic=name, verify=self._verifies_pooled and not i)
                for i, name in enumerate(content.statistics)
            ]
            found = list(torch.cat(several, dim=-1))
        else:
            found = self._view.read_many(slice(start, stop), content.layers, verify=True)
        return Chunk(
            start=start,
            n_frames=self._counts[start:stop],
            values=[
                self._as_exported(values, row["id"])
                for values, row in zip(found, rows, strict=True)
            ],
            metadata=metadata,
            columns=[_named(row, names) for row in rows],
        )

    @property
    def _verifies_pooled(self) -> bool:
        """Whether files of statistics, which have checksums of their own, are not enough.

        Without frames, the index has other checksums. What is not kept is computed from frames;
        the deviation of an utterance in several pieces needs their means, too.
        """
        needed = {*self._content.statistics}
        needed |= {MEAN} if STD in needed else set()
        return not self._view.keeps_frames or not needed <= {*self._view.statistics}

    def _as_exported(self, values: Tensor, name: str) -> Tensor:
        if self._content.is_single:
            values = values[0]
        converted = values.to(self._dtype).contiguous()
        largest = torch.finfo(self._dtype).max
        is_narrower = largest < torch.finfo(values.dtype).max
        if is_narrower and not bool(torch.isfinite(converted).all()):
            raise StoreError(
                f"utterance {name!r} has values beyond {largest:g}, the largest of "
                f"{dtype_name(self._dtype)}; set dtype={PORTABLE_DTYPES[-1]}"
            )
        return converted


def read_ahead(reader: ChunkReader, ranges: Sequence[tuple[int, int]]) -> Iterator[Chunk]:
    """Read chunks in order, each while the one before is in use."""
    if not ranges:
        return
    with ThreadPoolExecutor(1, thread_name_prefix="strata-export") as pool:
        coming: Future[Chunk] = pool.submit(reader.read, *ranges[0])
        for following in ranges[1:]:
            chunk = coming.result()
            coming = pool.submit(reader.read, *following)
            yield chunk
            del chunk
        yield coming.result()


def _named(row: Mapping[str, Any], class_names: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """Return the columns of an utterance for JSON, with class names."""
    columns = {}
    for name, value in row.items():
        names = class_names.get(name)
        is_class = names is not None and isinstance(value, int) and 0 <= value < len(names)
        columns[name] = names[value] if names is not None and is_class else as_json(value)
    del columns["id"]
    return columns
