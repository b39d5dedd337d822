"""Messages between the driver and its workers: the job, a unit to do, and its report."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from pipeline.config import DatasetConfig
from pipeline.sources.base import Segment
from pipeline.store.backend.base import Backend
from pipeline.store.coordination.ledger import Claim
from pipeline.store.coordination.worker_failures import Isolation
from pipeline.store.format.layout import Layout

if TYPE_CHECKING:  # they import torch, which a driver's messages do not need
    from pipeline.audio.types import Decoded
    from pipeline.encoders.base import Encoder


class DeviceLostError(Exception):
    """A GPU has failed: its worker's process can compute nothing more, and must be replaced."""


Place = Segment | int | None
"""Where the audio of an utterance is: its segment; or the row of the source that holds its bytes;
None if the dataset does not have the utterance any more."""


@dataclass(frozen=True)
class Job:
    """Settings that a worker needs to extract any unit of a run; small and picklable.

    Attributes:
        backend: The store.
        layout: Shapes of its arrays.
        dataset: Dataset with the audio.
        load_encoder: Loads the encoder in the worker's process.
        encoder_identity: Identity of the encoder that the store was set up for; None checks
            nothing.
        max_batch_frames: Maximum of frames in a batch.
        threads: CPU threads of a worker.
        decode: Decodes a segment at a sample rate; None is `pipeline.audio.decode.decode`. Tests
            pass a faulty decoder.
        opens_source: Whether tasks name rows of the source as places, so that a worker opens it.
    """

    backend: Backend
    layout: Layout
    dataset: DatasetConfig
    load_encoder: Callable[[], Encoder]
    max_batch_frames: int
    threads: int
    decode: Callable[[Segment, int], Decoded] | None = None
    encoder_identity: dict[str, Any] | None = None
    opens_source: bool = True


@dataclass(frozen=True)
class UnitTask:
    """One attempt at one unit.

    Attributes:
        unit: Number of the unit.
        slot: Slot to write to.
        attempt: Number of the attempt, from 1.
        rows: The unit's rows of the plan, in the order of their positions.
        places: Where the audio of each of these rows is; None if their `row` is that of the source.
        isolation: Utterances to try one at a time before the unit is extracted; None for a unit
            that did not fail repeatedly.
        exclusive: Whether its worker must hold no other unit, so that a failure of the
            worker has one culprit.
        labels: Columns of the dataset to carry, of the same rows. They are those of the driver's
            table: a worker that opens the dataset later may find another one. None takes the
            worker's own.
        claim: The driver's claim on the slot, which the worker must see before it begins; None
            checks nothing.
    """

    unit: int
    slot: int
    attempt: int
    rows: pa.Table
    places: Sequence[Place] | None = None
    isolation: Isolation | None = None
    exclusive: bool = False
    labels: pa.Table | None = None
    claim: Claim | None = None

    def all_places(self) -> Sequence[Place]:
        """Return the place of each row."""
        if self.places is not None:
            return self.places
        numbers: list[int] = self.rows["row"].to_pylist()
        return numbers


@dataclass(frozen=True)
class UnitReport:
    """Result of an attempt that was written.

    Attributes:
        unit: Number of the unit.
        slot: Slot that was written.
        won: Whether this attempt committed the unit; False if another attempt was first.
        n_ok: Utterances with features.
        n_quarantined: Quarantined utterances.
        n_deferred: Utterances moved to a later unit.
        n_fp32: Utterances that were encoded again in fp32.
        audio_s: Seconds of audio in the features.
        wall_s: Seconds from the unit's turn at the encoder to its commit.
        n_bytes: Bytes written.
        worker: Host and process of the worker, as `host:pid`.
        n_halved: Batches that were halved because the device was out of memory.
        seconds: Seconds per stage. In the encoding thread: wait (for audio, or for the writes of
            an earlier unit), front_end, transformer (on CUDA the device's time), copy. In parallel
            threads: decode, seal (checksums and means), write, commit (with the sync of the files).
        threads: Threads of the stages that have several.
    """

    unit: int
    slot: int
    won: bool
    n_ok: int
    n_quarantined: int
    n_deferred: int
    n_fp32: int
    audio_s: float
    wall_s: float
    n_bytes: int
    worker: str
    n_halved: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    threads: dict[str, int] = field(default_factory=dict)
