"""The base of the formats that have a file for each utterance."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any, ClassVar

from torch import Tensor

from pipeline.store.backend.base import Buffer
from pipeline.transforms.export.base import (
    MAX_FILES_PER_FOLDER,
    Appender,
    Chunk,
    Entry,
    ExportFormat,
)
from pipeline.transforms.export.names import distinct, encoded

_MAX_OPEN = 64
"""Files that are written before they are synced together."""
_THREADS = 8  # that sync; they wait for the disk


class FilePerUtterance(ExportFormat):
    """Writes `<folder>/<id><suffix>`, with at most a thousand files in a folder."""

    suffix: ClassVar[str]
    overhead_bytes = 8192  # a header, and the rest of the last block on the disk
    part_utterances = 2000

    @abstractmethod
    def file_parts(self, name: str, values: Tensor, columns: dict[str, Any]) -> Sequence[Buffer]:
        """Return the content of a file, in parts.

        Args:
            name: The id.
            values: With the axes of `Content.axes`.
            columns: The columns, for JSON.
        """

    def write_part(self, number: int, chunks: Iterable[Chunk]) -> Iterator[Entry]:
        """Write a file for each utterance; sync and publish some dozen together."""
        del number
        with ThreadPoolExecutor(_THREADS) as pool:
            for chunk in chunks:
                names, paths = chunk.ids, []
                for first in range(0, len(names), _MAX_OPEN):
                    with ExitStack() as stack:
                        partials = []
                        for i in range(first, min(first + _MAX_OPEN, len(names))):
                            parts = self.file_parts(names[i], chunk.values[i], chunk.columns[i])
                            folder = f"{(chunk.start + i) // MAX_FILES_PER_FOLDER:05d}"
                            paths.append(f"{folder}/{self._name(names[i])}{self.suffix}")
                            partials.append(self.out.open_partial(paths[-1]))
                            stack.callback(partials[-1].discard)
                            file = Appender(partials[-1])
                            for part in parts:
                                file.write(part)
                        self.out.publish(partials, pool.map)
                yield from chunk.entries(paths)

    def _name(self, name: str) -> str:
        return distinct(name) if name in self.content.ambiguous else encoded(name)
