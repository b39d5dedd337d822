"""Small extractions with the tiny encoder, and their contents for comparison."""

from __future__ import annotations

import io
from pathlib import Path

import pyarrow.parquet as pq

from pipeline.config import Config, load_config
from pipeline.extract import run
from pipeline.store.backend.base import Location
from pipeline.store.backend.opening import open_backend
from pipeline.store.documents import layout_of, read_attributes
from pipeline.store.format.layout import INDEX_DIR
from pipeline.store.maintain.status import Status

INLINE = ("engine=inline", "engine.threads=1")
"""Overrides for one worker with one thread in this process."""


def overrides(folder: Path, store: Path | str, *more: str) -> list[str]:
    """Overrides for an extraction of a folder with the tiny encoder, in small units."""
    return [
        "dataset=audiofolder",
        f"dataset.path={folder}",
        "model=tiny",
        f"store={store}",
        "plan.frames_per_unit=512",
        *more,
    ]


def configured(folder: Path, store: Path | str, *more: str) -> Config:
    """Configuration with these overrides."""
    return load_config(overrides(folder, store, *more))


def extract(folder: Path, store: Path | str, *more: str) -> Status:
    """Extract a folder with these overrides."""
    return run.extract(configured(folder, store, *more))


def contents(location: Location) -> dict[str, object]:
    """Return what a resumed run must reproduce: all objects and index rows of each unit.

    A unit that was attempted twice lies in a spare slot, so slot and frame_start may differ; they
    are made relative to the slot.
    """
    backend = open_backend(location)
    layout = layout_of(read_attributes(backend))
    found: dict[str, object] = {}
    for name in sorted(name for name in backend.children(INDEX_DIR) if name.startswith("unit-")):
        rows = pq.read_table(io.BytesIO(backend.read(f"{INDEX_DIR}/{name}"))).to_pylist()
        slot = rows[0]["slot"]
        for row in rows:
            assert row.pop("slot") == slot
            if row["frame_start"] is not None:
                row["frame_start"] -= layout.slot_start(slot)
        found[name] = rows
        for number, key in enumerate(layout.slot_objects(slot)):
            found[f"{name} {number}"] = backend.read(key)
    return found
