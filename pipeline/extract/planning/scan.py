"""Scan of a dataset: the header of every utterance, read in threads or on a cluster."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.audio.probe import FileFacts, probe, probe_part, read_facts
from pipeline.audio.types import Probe
from pipeline.errors import AudioError, counted
from pipeline.sources.base import Segment, Source
from pipeline.sources.remote.uri import is_remote
from pipeline.store.format.geometry import FrameGeometry
from pipeline.store.format.plan import SCHEMA

Facts = npt.NDArray[np.int64]
"""`PROBED`, `RATE` and `MIXED` of some utterances: `[6, n]`; 0 if unreadable."""
Probing = Callable[[Source, FrameGeometry], Iterator[Facts]]
"""Reads the headers of a source; yields the facts of consecutive rows."""

SCAN_THREADS = 32  # they wait for the file system, which may be remote
SCAN_CHUNK = 128
REMOTE_THREADS, REMOTE_CHUNK = 128, 8
"""The same of files in a bucket: each takes two requests, one after the other."""
_SUBMITTED_ROWS = 1 << 16  # tasks that wait take memory, too
PROBED = ("n_samples", "n_frames", "n_bytes", "fingerprint")
"""Plan columns read from the headers."""
RATE = "source_rate_hz"
"""Column of a scan that is not in the plan: the native sample rate, 0 if unreadable."""
MIXED = "mixed_channels"
"""Column of a scan that is not in the plan: channels whose mean is taken; 0 if none is."""


@dataclass(frozen=True)
class Unreadable:
    """Utterances that cannot be read, for one reason.

    Attributes:
        reason: The reason.
        count: Number of utterances.
        ids: Their ids.
    """

    reason: str
    count: int
    ids: tuple[str, ...]


def probe_in_threads(source: Source, geometry: FrameGeometry) -> Iterator[Facts]:
    """Read the headers of a source in threads of this process; see `Probing`."""
    n_threads, n_rows = threads_and_rows(source.segment(0), len(source))

    def probe_chunk(start: int) -> Facts:
        rows = range(start, min(start + n_rows, len(source)))
        return probe_segments((source.segment(row) for row in rows), geometry)

    with ThreadPoolExecutor(n_threads) as pool:
        for start in range(0, len(source), _SUBMITTED_ROWS):
            stop = min(start + _SUBMITTED_ROWS, len(source))
            yield from pool.map(probe_chunk, range(start, stop, n_rows))


def threads_and_rows(first: Segment, n: int) -> tuple[int, int]:
    """Return how many threads read the headers of `n` segments, and how many a task has."""
    if first.data is not None or not is_remote(first.path):
        return SCAN_THREADS, SCAN_CHUNK
    return REMOTE_THREADS, min(max(1, n // REMOTE_THREADS), REMOTE_CHUNK)


def scan(
    source: Source,
    geometry: FrameGeometry,
    progress: Callable[[int], None] = lambda done: None,
    probing: Probing = probe_in_threads,
) -> pa.Table:
    """Read the header of every utterance.

    Args:
        source: The dataset.
        geometry: Geometry of the encoder; samples are counted at its rate.
        progress: Called with the number of headers read so far.
        probing: Reads the headers.

    Returns:
        Rows for `make_plan`, in source order, with the columns `RATE` and `MIXED`; 0 samples for an
        unreadable header.
    """
    n, done = len(source), 0
    # An array for each column: those that the plan lacks are freed before it is made.
    small = {"fingerprint": np.uint32, MIXED: np.int32}
    probed = {name: np.zeros(n, small.get(name, np.int64)) for name in (*PROBED, RATE, MIXED)}
    progress(0)
    for facts in probing(source, geometry):
        for column, values in zip(probed.values(), facts, strict=True):
            column[done : done + len(values)] = values
        done += facts.shape[1]
        progress(done)
    kinds = {item.name: item.type for item in SCHEMA}
    columns = {
        "id": source.ids(),
        "row": np.arange(n),
        **{name: pa.array(probed.pop(name), kinds.get(name)) for name in [*probed]},
        "piece": np.zeros(n, np.int32),
        "n_pieces": np.ones(n, np.int32),
        "piece_start": np.zeros(n, np.int64),
    }
    arrays = [pa.array(values) for values in columns.values()]
    fields = [pa.field(k, v.type, nullable=False) for k, v in zip(columns, arrays, strict=True)]
    return pa.table(arrays, schema=pa.schema(fields))


def explain_unreadable(segments: Sequence[Segment], sample_rate_hz: int) -> tuple[Unreadable, ...]:
    """Probe utterances again that a plan holds as unreadable, and collect the reasons.

    Args:
        segments: Their audio.
        sample_rate_hz: Sample rate of the encoder.

    Returns:
        Most frequent reason first.
    """
    with ThreadPoolExecutor(SCAN_THREADS) as pool:
        reasons = list(pool.map(lambda segment: _reason(segment, sample_rate_hz), segments))
    members: dict[str, list[str]] = defaultdict(list)
    for segment, reason in zip(segments, reasons, strict=True):
        members[reason].append(segment.id)
    found = (Unreadable(reason, len(names), tuple(names)) for reason, names in members.items())
    return tuple(sorted(found, key=lambda item: -item.count))


def mixed_channels(rows: pa.Table) -> list[str]:
    """Return a line for the user for each number of channels whose mean is taken.

    Args:
        rows: Result of `scan`.
    """
    counts = pc.value_counts(rows[MIXED]).to_pylist()
    numbers = sorted((count["values"], count["counts"]) for count in counts if count["values"])
    return [
        f"{n:,} of {counted(len(rows), 'utterance')} have {n_channels} channels: their mean is "
        "taken; dataset.channel=N|each chooses"
        for n_channels, n in numbers
    ]


def probe_segments(segments: Iterable[Segment], geometry: FrameGeometry) -> Facts:
    """Read the headers of some utterances, in the calling thread."""
    probed, known = [], _Known()
    for segment in segments:
        try:
            header = known.probe(segment, geometry.sample_rate_hz)
        except AudioError:  # the worker gets the same error and quarantines the utterance
            probed.append((0, 0, 0, 0, 0, 0))
            continue
        n_frames = geometry.n_frames(header.n_samples)
        facts = header.n_samples, n_frames, header.n_bytes, header.fingerprint
        n_mixed = header.n_channels if segment.channel is None and header.n_channels > 1 else 0
        probed.append((*facts, header.source_rate_hz, n_mixed))
    return np.array(probed, np.int64).T


class _Known:
    """Probes segments; reads a file once for consecutive segments of it."""

    def __init__(self) -> None:
        self._key: tuple[object, ...] = ()
        self._facts: FileFacts | None = None

    def probe(self, segment: Segment, sample_rate_hz: int) -> Probe:
        """Return `probe(segment, sample_rate_hz)`."""
        key = (segment.path, segment.byte_offset, segment.byte_length)
        if segment.path is None or not segment.has_end:
            return probe(segment, sample_rate_hz)
        if self._facts is None or self._key != key:
            self._key, self._facts = key, read_facts(segment)
        return probe_part(segment, self._facts, sample_rate_hz)


def _reason(segment: Segment, sample_rate_hz: int) -> str:
    """Return why an utterance cannot be read."""
    try:
        probe(segment, sample_rate_hz)
    except AudioError as error:
        return str(error)
    return "it could not be read when it was planned: retry_quarantined=true plans it again"
