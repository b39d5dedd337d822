"""Writing a store: its frame, and a unit at once.

`commit_unit` takes a unit that is in memory as a whole; a worker, whose features come one batch
after the other, uses `SlotWriter` itself.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipeline import files
from pipeline.errors import DamagedError, IdentityError, StoreError, StoreNotFoundError
from pipeline.store.format.layout import (
    FORMAT_VERSION,
    FRAMES,
    GROUP,
    INDEX_DIR,
    LEDGER_DIR,
    PLAN,
    POOLED,
    Layout,
    group_document,
)
from pipeline.store.format.plan import Plan
from pipeline.store.write.slot import (
    CommitOutcome,
    SlotWriter,
    UnitBuffer,
    crc32c,
    discard_slot,
    pool,
)

__all__ = [
    "CommitOutcome",
    "UnitBuffer",
    "check_format_shape",
    "commit_unit",
    "crc32c",
    "discard_slot",
    "layout_of",
    "pool",
    "read_attributes",
    "read_plan",
    "resize",
    "write_group",
    "write_plan",
]


def write_plan(root: Path, plan: Plan) -> None:
    """Writes plan.parquet, whole or not at all."""
    files.write_atomic(root / PLAN, [files.parquet_bytes(plan.to_arrow())])


def read_plan(root: Path) -> Plan | None:
    """The plan of the store at `root`, or None if it has none yet.

    Raises:
        DamagedError: It is not what was written.
        StoreError: It is of another format version.
    """
    try:
        return Plan.from_arrow(files.read_parquet(root / PLAN))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except DamagedError as error:
        raise DamagedError(f"{error}; restore it from a copy") from error
    except OSError as error:
        raise StoreError(f"{root / PLAN} is not readable ({error})") from error


def write_group(root: Path, layout: Layout, n_slots: int, attributes: dict[str, Any]) -> None:
    """Writes the three zarr.json documents; makes the folders of the store.

    Args:
        root: The store.
        layout: Its shapes.
        n_slots: Slots that the arrays have room for.
        attributes: Of the group.
    """
    for folder in (INDEX_DIR, LEDGER_DIR):
        with files.store_errors(root / folder):
            files.make_folder(root / folder)
    resize(root, layout, n_slots)
    files.write_atomic(root / GROUP / "zarr.json", [files.json_bytes(group_document(attributes))])


def resize(root: Path, layout: Layout, n_slots: int) -> None:
    """Sets how many slots the arrays have room for."""
    documents = {FRAMES: layout.frames_document(n_slots), POOLED: layout.pooled_document(n_slots)}
    for key, document in documents.items():
        path, content = root / key / "zarr.json", files.json_bytes(document)
        if not path.is_file() or path.read_bytes() != content:
            files.write_atomic(path, [content])


def read_attributes(root: Path) -> dict[str, Any]:
    """The attributes of the store's group.

    Raises:
        StoreNotFoundError: There is no store at `root`.
        DamagedError: Its attributes are not readable.
        StoreError: There is one of another format version.
    """
    path = root / GROUP / "zarr.json"
    try:
        attributes = json.loads(path.read_bytes())["attributes"]
        version = attributes.get("format_version")
    except (FileNotFoundError, NotADirectoryError):
        raise StoreNotFoundError(f"no store at {root} ({path} does not exist)") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedError(f"{path} is not readable ({error}); restore it from a copy") from error
    except OSError as error:
        raise StoreError(f"{path} is not readable ({error})") from error
    if version != FORMAT_VERSION:
        raise StoreError(
            f"store {root} has format version {version}; this strata reads {FORMAT_VERSION}"
        )
    return dict(attributes)


def layout_of(attributes: dict[str, Any]) -> Layout:
    """The shapes that a store's attributes spell out.

    Raises:
        DamagedError: They do not spell out any.
    """
    try:
        return Layout(
            layers=tuple(attributes["layers"]),
            dim=attributes["feature_dim"],
            frames_per_unit=attributes["frames_per_unit"],
            utterances_per_slot=attributes["utterances_per_slot"],
        )
    except (KeyError, TypeError, ValueError) as error:
        raise DamagedError(
            f"the attributes in {GROUP}/zarr.json are damaged ({error}); restore it from a copy"
        ) from error


def check_format_shape(attributes: dict[str, Any], layout: Layout, root: Path) -> None:
    """Makes sure that the plan and the arrays of a store belong together.

    Raises:
        IdentityError: They have different shapes.
    """
    stored = layout_of(attributes)
    if stored != layout:
        raise IdentityError(f"store {root} has {stored}, but its plan asks for {layout}")


def commit_unit(
    root: Path, buffer: UnitBuffer, unit: int, slot: int, index: pa.Table
) -> CommitOutcome:
    """Writes a unit into its slot and makes it visible.

    Args:
        root: The store.
        buffer: The unit's features.
        unit: Number of the unit.
        slot: The slot that this attempt has claimed.
        index: The unit's index rows (`records_table`).

    Returns:
        Whether this attempt won. If another one had committed the unit before, this one's shards
        are removed again.

    Raises:
        NoSpaceError: The disk is full. Nothing is visible.
        StoreError: The store cannot be written.
    """
    with SlotWriter(root, buffer, unit, slot) as writer:
        writer.write(0, buffer.layout.frames_per_unit)
        writer.complete()
        return writer.commit(index)
