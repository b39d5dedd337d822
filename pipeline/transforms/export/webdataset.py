"""WebDataset: tar shards in which the members of a sample have one key and follow each other.

A sample is `<key>.npy` with the values and `<key>.json` with id, number of frames and columns.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterable, Iterator

from pipeline.transforms.export.base import (
    Appender,
    Chunk,
    Entry,
    ExportFormat,
    json_line,
    value_bytes,
)
from pipeline.transforms.export.names import encoded
from pipeline.transforms.export.npy import npy_header

_BLOCK = tarfile.BLOCKSIZE


class WebDatasetShards(ExportFormat):
    """Writes `shard-<part>.tar`."""

    name = "webdataset"

    def write_part(self, number: int, chunks: Iterable[Chunk]) -> Iterator[Entry]:
        """Write a shard."""
        path, entries = f"shard-{number:05d}.tar", []
        partial = self.out.open_partial(path)
        try:
            shard = Appender(partial)
            for chunk in chunks:
                names = chunk.ids
                for i, name in enumerate(names):
                    document = {"id": name, "n_frames": chunk.n_frames[i], **chunk.columns[i]}
                    values = chunk.values[i]
                    _add(shard, f"{encoded(name)}.npy", [npy_header(values), value_bytes(values)])
                    _add(shard, f"{encoded(name)}.json", [json_line(document)])
                entries += chunk.entries([path] * len(names))
            shard.write(bytes(2 * _BLOCK))
            self.out.publish([partial])
        finally:
            partial.discard()
        yield from entries


def _add(shard: Appender, name: str, parts: list[bytes | memoryview]) -> None:
    """Append a member: its header, its bytes, and zeros up to the next block."""
    member = tarfile.TarInfo(name)
    member.size = sum(map(len, parts))
    shard.write(member.tobuf(tarfile.PAX_FORMAT))
    for part in parts:
        shard.write(part)
    shard.write(bytes(-member.size % _BLOCK))
