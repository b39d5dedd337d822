"""The stage that limits a run, from constructed reports."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline.store.coordination.limiting_stage import StageTotals

IDLE = {
    "decode": 0.4,
    "wait": 9.0,
    "front_end": 0.2,
    "transformer": 0.6,
    "copy": 0.1,
    "seal": 0.4,
    "write": 0.4,
    "commit": 0.2,
}
"""Seconds of a unit that took 10 s, in which no stage did much."""


def totals(n_units: int = 1, workers: int = 1, **seconds: float) -> StageTotals:
    """Units of 8,000 s of audio and 6 GB, with 8 decoding and 4 writing threads a worker."""
    found = StageTotals()
    for i in range(n_units):
        report: dict[str, Any] = {
            "audio_s": 8000.0,
            "n_bytes": 6 * 10**9,
            "seconds": IDLE | seconds,
            "threads": {"decode": 8, "write": 4},
            "worker": f"host:{i % workers}",
        }
        found.add(report)
    return found


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        ({"decode": 76.0}, "limited by decoding: 842 × real time on 8 threads"),
        ({"transformer": 9.0}, "limited by the encoder: 860 × real time"),
        ({"copy": 8.2}, "limited by the encoder: 889 × real time"),
        ({"write": 36.0}, "limited by the disk: 0.667 GB/s"),
        ({"seal": 36.0}, "limited by checksums and means: 0.667 GB/s on 4 threads"),
        ({"commit": 5.0}, "limited by the disk: 1.2 GB/s"),
        (
            {},
            "not limited by one stage; busy shares: encoder 9 %, decoding 0 %, "
            "checksums and means 1 %, disk 2 %",
        ),
        ({"decode": 36.0, "commit": 6.0}, "limited by the disk: 1 GB/s"),
        ({"decode": 200.0}, "limited by decoding: 800 × real time on 8 threads"),
    ],
)
def test_the_busiest_stage_is_the_limit(seconds: dict[str, float], expected: str) -> None:
    """By its share of the wall clock, with its threads counted; the speed is that while busy."""
    assert totals(**seconds).limited_by(10.0) == expected


@pytest.mark.parametrize(("audio_s", "speed"), [(3.5, "0.38"), (56.7, "6.1"), (93.0, "10")])
def test_a_low_speed_is_not_rounded_to_zero(audio_s: float, speed: str) -> None:
    """A run of seconds, most of which were start-up, has one, too."""
    found = totals(transformer=9.0)
    found.audio_s = audio_s
    assert found.limited_by(10.0) == f"limited by the encoder: {speed} × real time"


def test_the_stages_of_several_workers_are_counted_together() -> None:
    """Two workers that do a unit each at the same time have twice the speed of one."""
    found = totals(2, workers=2, transformer=9.0)
    assert found.limited_by(10.0) == "limited by the encoder: 1,720 × real time"
    assert found.busy_shares(10.0) == totals(transformer=9.0).busy_shares(10.0)
    decoding = totals(2, workers=2, decode=80.0).limited_by(10.0)
    assert decoding == "limited by decoding: 1,600 × real time on 16 threads"


def test_without_units_or_threads_the_limit_is_unknown() -> None:
    """Reports of earlier versions do not state their threads."""
    assert StageTotals().limited_by(10.0) is None
    old = StageTotals()
    old.add({"audio_s": 1.0, "n_fp32": 0, "seconds": {"write": 9.0}})
    assert old.limited_by(10.0) is None
    assert totals().limited_by(0.0) is None
