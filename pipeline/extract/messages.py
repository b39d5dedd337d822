"""What passes between a driver and its workers: what to do, and what became of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import pyarrow as pa

from pipeline.audio.decode import decode
from pipeline.audio.types import Decoded
from pipeline.config import DatasetConfig
from pipeline.encoders.base import Encoder
from pipeline.sources.base import Segment
from pipeline.store.backend.base import Backend
from pipeline.store.coordination.worker_failures import Probation
from pipeline.store.format.layout import Layout


@dataclass(frozen=True)
class Job:
    """All that a worker must know to do any unit of a run; small, and it pickles.

    Attributes:
        backend: The store.
        layout: Its shapes.
        dataset: Where the audio comes from.
        load_encoder: Makes the encoder, in the worker's process.
        max_batch_frames: Bound on the padded frames of a batch.
        threads: CPU threads of a worker.
        decode: Makes a waveform of a segment; tests give one that fails as real ones do.
    """

    backend: Backend
    layout: Layout
    dataset: DatasetConfig
    load_encoder: Callable[[], Encoder]
    max_batch_frames: int
    threads: int
    decode: Callable[[Segment, int], Decoded] = decode


@dataclass(frozen=True)
class UnitTask:
    """One attempt at one unit.

    Attributes:
        unit: Its number.
        slot: Where to write.
        attempt: 1 for the first one.
        rows: Its rows of the plan.
        probation: Given to a unit that took workers with it: try its utterances alone first.
        exclusive: Whether its worker must hold no other unit meanwhile, so that a failure of the
            worker has one culprit.
    """

    unit: int
    slot: int
    attempt: int
    rows: pa.Table
    probation: Probation | None = None
    exclusive: bool = False


@dataclass(frozen=True)
class UnitReport:
    """What became of an attempt.

    Attributes:
        unit: The unit.
        slot: Where it lies.
        won: False if another attempt had committed it before.
        n_ok: Utterances with features.
        n_quarantined: Utterances without, for a reason.
        n_deferred: Utterances left for a later unit.
        n_fp32: Utterances that had to be encoded again in fp32.
        audio_s: Seconds of audio in the features.
        wall_s: Seconds from its turn at the encoder to its commit.
        n_bytes: Bytes written.
        worker: Host and process of the worker, as `host:pid`.
        seconds: Where the time went. The encoder's thread: wait (for audio, or for the unit before
            to be written), front_end, transformer (on CUDA the device's own time), copy. Threads
            beside it: decode, write (checksums and means, too).
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
    seconds: dict[str, float] = field(default_factory=dict)
