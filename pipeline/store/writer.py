"""Writing a store: its frame, and one unit after the other.

A worker fills a `UnitBuffer` in memory and hands it to `commit_unit`, which writes one flat shard
per layer into the slot, then the pooled chunk, then the unit's index file. The index file is the
commit: it is created exclusively and last, so that a unit is visible whole or not at all.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.errors import DamagedError, IdentityError, StoreError, StoreNotFoundError
from pipeline.store import files
from pipeline.store.layout import (
    FORMAT_VERSION,
    FRAMES,
    GROUP,
    INDEX_DIR,
    LEDGER_DIR,
    PLAN,
    POOLED,
    Layout,
    group_document,
    index_key,
)
from pipeline.store.plan import Plan


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


class UnitBuffer:
    """The features of one unit in memory, laid out as the shards will be.

    It is reused from unit to unit: `start` with the number of frames that the unit has, `put` or
    `blank` each of its utterances, then `commit_unit`.

    Attributes:
        frames: float16 [n_layers, frames_per_unit, dim].
        pooled: float32 [utterances_per_slot, n_layers, dim].
    """

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self.frames: npt.NDArray[np.float16] = np.empty(
            (layout.n_layers, layout.frames_per_unit, layout.dim), np.float16
        )
        self.pooled: npt.NDArray[np.float32] = np.empty(
            (layout.utterances_per_slot, layout.n_layers, layout.dim), np.float32
        )

    def start(self, n_frames: int) -> None:
        """Begins a unit of `n_frames`; what lies beyond them is filled with NaN."""
        self.pooled.fill(np.nan)
        self.blank(n_frames, self.layout.frames_per_unit)

    def blank(self, start: int, stop: int) -> None:
        """Fills frames with NaN: they belong to nobody."""
        self.frames[:, start:stop].fill(np.nan)

    def seal(self, position: int, start: int, stop: int) -> tuple[int, ...]:
        """Pools and checksums an utterance whose frames have been put into their place.

        The mean is taken over the stored float16 values, so that it can be verified from them.

        Args:
            position: The utterance's place in the unit.
            start: Its first frame, within the slot.
            stop: One past its last frame.

        Returns:
            crc32c of the stored bytes of each layer.
        """
        stored = self.frames[:, start:stop]
        self.pooled[position] = pool(stored)
        return tuple(crc32c(layer) for layer in stored)


@dataclass(frozen=True)
class CommitOutcome:
    """How a commit ended.

    Attributes:
        won: Whether this attempt is the one that counts.
        n_bytes: Bytes written to the slot.
    """

    won: bool
    n_bytes: int


def pool(stored: npt.NDArray[np.float16]) -> npt.NDArray[np.float32]:
    """Mean over frames, [n_layers, n_frames, dim] → [n_layers, dim], summed in float64."""
    mean = stored.mean(axis=1, dtype=np.float64)
    return np.asarray(mean, np.float32)


def crc32c(array: npt.NDArray[Any]) -> int:
    """Checksum of the bytes of a contiguous array."""
    return int(google_crc32c.value(array))


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
    layout = buffer.layout
    content = files.parquet_bytes(index)
    try:
        _write_slot(root, buffer, slot)
        check_there(root)
        won = files.create_exclusive(root / index_key(unit), [content])
    except StoreError as error:
        if not (root / index_key(unit)).exists():
            discard_slot(root, layout, slot)
        raise type(error)(
            f"unit {unit} ({layout.slot_bytes:,} bytes) is not committed: {error}"
        ) from error
    if not won:
        discard_slot(root, layout, slot)
    return CommitOutcome(won, layout.slot_bytes)


def _write_slot(root: Path, buffer: UnitBuffer, slot: int) -> None:
    layout = buffer.layout
    for key, matrix in zip(layout.shard_keys(slot), buffer.frames, strict=True):
        check_there(root)
        files.write_atomic(root / key, [matrix.data.cast("B"), layout.shard_index])
    checksum = crc32c(buffer.pooled).to_bytes(4, "little")
    pooled = buffer.pooled.data.cast("B")
    files.write_atomic(root / layout.pooled_key(slot), [pooled, checksum])


def check_there(root: Path) -> None:
    """Makes sure that a store which was unmounted is not begun anew below its mount point.

    Raises:
        StoreError: It is gone.
    """
    if not (root / GROUP / "zarr.json").is_file():
        raise StoreError(
            f"store {root} has vanished (is it still mounted?); what was committed is safe there: "
            "bring it back and run the same command again"
        )


def discard_slot(root: Path, layout: Layout, slot: int) -> None:
    """Removes the shards and the pooled chunk of a slot, as far as they are there."""
    for key in (*layout.shard_keys(slot), layout.pooled_key(slot)):
        try:
            (root / key).unlink(missing_ok=True)
        except OSError:
            return  # garbage, which the next sweep removes
