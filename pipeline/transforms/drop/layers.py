"""Layers are removed: their shards are deleted, their statistics and scales become NaN.

The layer axis stays, so that nothing else moves.
"""

from __future__ import annotations

import numpy as np
from crc32c import crc32c

from pipeline.errors import DamagedError
from pipeline.events import Observer
from pipeline.store.backend.base import Backend
from pipeline.store.format.codecs import FloatArray
from pipeline.store.format.layout import FRAMES, POOLED, Layout
from pipeline.store.maintain.cleanup import slots_on_disk
from pipeline.store.maintain.orphans import is_partial
from pipeline.store.read.shards import ShardReader


def remove_layers(backend: Backend, layout: Layout, observer: Observer) -> None:
    """Remove what a store still has of its dropped layers.

    Args:
        backend: The store.
        layout: Its shapes, with `dropped_layers`.
        observer: Receives a warning for a file that is damaged.
    """
    axes = layout.dropped_axes
    shards = ShardReader(backend, layout)
    slots = sorted(slots_on_disk(backend))
    for array in layout.arrays:
        for slot in slots if array != FRAMES else ():
            key, _ = layout.first_object(array, slot)
            _remove_partial_files(backend, layout, key)
            if not backend.exists(key):
                continue
            try:
                values = shards.pooled(slot) if array == POOLED else shards.scale_chunk(slot)
            except DamagedError as error:
                observer.note(f"WARNING: {error}; the layers are still in it")
                continue
            place = np.s_[:, :, axes] if array == POOLED else np.s_[:, axes]
            if not np.isnan(values[place]).all():
                cleared = values.copy()
                cleared[place] = np.nan
                _put_chunk(backend, key, cleared)
    if layout.keeps_frames:
        for axis in axes:
            for name in backend.children(f"{FRAMES}/c/{axis}"):
                if name.isdecimal():
                    backend.delete(layout.shard_key(axis, int(name)))
            backend.sync(f"{FRAMES}/c/{axis}")


def _remove_partial_files(backend: Backend, layout: Layout, key: str) -> None:
    """Delete what a run that was killed has left beside a chunk of an array."""
    folder = key.rpartition("/")[0]
    for name in backend.children(folder):
        if is_partial(f"{folder}/{name}", layout):
            backend.delete(f"{folder}/{name}")


def _put_chunk(backend: Backend, key: str, values: FloatArray) -> None:
    """Replace a chunk of an array, which its checksum follows."""
    backend.put(key, [values.data.cast("B"), crc32c(values.data).to_bytes(4, "little")])
