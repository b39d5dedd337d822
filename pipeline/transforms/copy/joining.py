"""The utterances of all sources of a copy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from pipeline.store.backend.folders import name_of
from pipeline.store.read.catalogue import IntArray
from pipeline.store.read.joined.columns import Column, class_names_of, join_metadata
from pipeline.transforms.copy.sources import Source


@dataclass(frozen=True)
class Joined:
    """The utterances of all sources, one after the other.

    Attributes:
        metadata: `id` and the carried columns, a row per utterance.
        columns: Name, type and class names of each carried column.
        source: Source of each utterance, [n_utterances].
        position: Its position in the catalogue of its source.
        n_frames: Its frames.
    """

    metadata: pa.Table
    columns: tuple[Column, ...]
    source: IntArray
    position: IntArray
    n_frames: IntArray

    def __len__(self) -> int:
        return len(self.source)

    @property
    def class_names(self) -> dict[str, list[str]]:
        """Class names of each column of classes."""
        return class_names_of(self.columns)

    def take(self, positions: IntArray) -> Joined:
        """Return the utterances at `positions`, in that order."""
        rows = pa.array(positions)
        return Joined(
            self.metadata.take(rows).combine_chunks(),
            self.columns,
            self.source[positions],
            self.position[positions],
            self.n_frames[positions],
        )


def join(sources: Sequence[Source], with_prefix: bool) -> Joined:
    """Join the utterances of sources; see `join_metadata`.

    Args:
        sources: The sources.
        with_prefix: Whether ids become `<folder of the store>/<id>`.

    Raises:
        StoreError: A column has different types.
    """
    prefixes = [f"{name_of(source.backend)}/" if with_prefix else "" for source in sources]
    metadata, columns = join_metadata(sources, prefixes)
    counts = [len(source.catalogue) for source in sources]
    return Joined(
        metadata.combine_chunks(),
        columns,
        np.repeat(np.arange(len(sources)), counts),
        np.concatenate([np.arange(n, dtype=np.int64) for n in counts]),
        np.concatenate([source.catalogue.frame_counts for source in sources]),
    )
