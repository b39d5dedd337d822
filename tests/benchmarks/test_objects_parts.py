"""The parts of bench_objects that count requests: they run, and their figures are bounded."""

from __future__ import annotations

from pathlib import Path

from benchmarks.objects_open import measure_open
from benchmarks.objects_segments import measure_segments


def test_a_third_of_a_recording_takes_half_of_its_bytes(tmp_path: Path, s3: str) -> None:
    """Segments of 6 s, evenly spread: what is fetched around each is no more than half as much."""
    found = measure_segments(tmp_path, s3, n_segments=20, seconds=360)
    assert 0.3 < found["samples_share"] < 0.34
    assert found["samples_share"] <= found["bytes_share"] <= 0.6
    assert found["requests"] <= 5 * 20


def test_a_store_of_many_units_opens_by_few_requests(tmp_path: Path, s3: str) -> None:
    """The index is a few files that never change; the list of its units has pages of 1,000."""
    found = measure_open(tmp_path / "index", s3, n_utterances=20_000, rounds=1)
    assert found["LIST"] <= 6
    assert found.get("GET", 0) + found.get("HEAD", 0) <= 8
