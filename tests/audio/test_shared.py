"""Segments of one file by one pass: the waveforms, flags and errors of decoding each on its own."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.audio import shared
from pipeline.audio.backends import forward
from pipeline.audio.decode import decode
from pipeline.audio.shared import SharedFile, SharedFiles
from pipeline.audio.types import Decoded
from pipeline.errors import AudioError
from pipeline.sources.base import Segment, TimeSpan
from tests.helpers.audio_files import flac_with_length, speechlike, write

RATE_HZ = 16_000
FORWARD = ["ogg", "opus", "mp3"]
SECONDS = 6


def outcome(decode: Any, segment: Segment) -> Any:
    try:
        decoded = decode(segment, RATE_HZ)
    except AudioError as error:
        return str(error)
    return (
        decoded.waveform.numpy().tobytes(),
        decoded.source_rate_hz,
        decoded.n_channels,
        decoded.flags,
    )


def segments(encoded: Segment, n: int, seed: int = 0) -> list[Segment]:
    """Draw segments in samples and in seconds, of each channel; some end beyond the file."""
    draw = random.Random(seed)
    found = []
    for _ in range(n):
        start_s = draw.uniform(0, SECONDS + 0.3)
        span = TimeSpan(start_s, duration_s=draw.uniform(0.01, 1.5), rounding="nearest")
        start = int(start_s * 24_000)
        found += [
            replace(encoded, span=span, channel=draw.choice([None, 0, 1])),
            replace(encoded, start_sample=start, stop_sample=start + draw.randrange(1, 30_000)),
        ]
    return sorted(found, key=lambda segment: segment.span.start_s if segment.span else 0)


@pytest.mark.parametrize("name", [*FORWARD, "wav", "flac"])
def test_each_segment_is_that_of_decoding_it_alone(tmp_path: Path, name: str) -> None:
    """In any order, in several threads; errors have the same words."""
    path = write(tmp_path / f"a.{name}", speechlike(SECONDS * 24_000, 2), 24_000)
    wanted = [*segments(Segment("clip", str(path)), 12), Segment("clip", str(path))]
    expected = [outcome(decode, segment) for segment in wanted]
    assert any(isinstance(result, str) for result in expected)
    file = SharedFile(decode)
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda segment: outcome(file.decode, segment), wanted)) == expected
    file.close()
    assert outcome(file.decode, wanted[0]) == expected[0]


@pytest.mark.parametrize("held_s", [0, 1, 60])
def test_the_file_is_decoded_once_unless_a_segment_begins_before_what_is_held(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, held_s: int
) -> None:
    path = write(tmp_path / "a.mp3", speechlike(SECONDS * RATE_HZ))
    monkeypatch.setattr(forward, "_HELD_S", held_s)
    opened = []
    open_bytes = shared.open_bytes
    monkeypatch.setattr(shared, "open_bytes", lambda s: opened.append(s) or open_bytes(s))
    file = SharedFile(no_decoding)
    whole = decode(Segment("clip", str(path)), RATE_HZ).waveform
    for start_s in (0.5, 2.0, 4.0, 3.5, 0.1):
        segment = Segment("clip", str(path), span=TimeSpan(start_s, start_s + 1))
        first = int(start_s * RATE_HZ)
        assert torch.equal(file.decode(segment, RATE_HZ).waveform, whole[first : first + RATE_HZ])
    assert len(opened) == {0: 3, 1: 2, 60: 1}[held_s]


@pytest.mark.parametrize("name", FORWARD)
@pytest.mark.parametrize("in_place", [False, True])
def test_a_file_that_was_replaced_is_read_again(tmp_path: Path, name: str, in_place: bool) -> None:
    """Also if its content is again the planned one, so that no later check could notice."""
    path = write(tmp_path / f"a.{name}", speechlike(SECONDS * RATE_HZ, seed=1))
    planned = write(tmp_path / f"planned.{name}", speechlike(SECONDS * RATE_HZ, seed=2))
    first, second = (
        Segment("clip", str(path), start_sample=n, stop_sample=n + 9000) for n in (500, 40_000)
    )
    file = SharedFile(decode)
    file.decode(first, RATE_HZ)
    if in_place:
        path.write_bytes(planned.read_bytes())
    else:
        planned.replace(path)
    assert outcome(file.decode, second) == outcome(decode, second)
    path.unlink()
    assert "cannot be opened" in outcome(file.decode, second)


def no_decoding(segment: Segment, sample_rate_hz: int) -> Decoded:
    raise AssertionError("decoded on its own")


@pytest.mark.parametrize("name", FORWARD)
def test_damage_is_an_error_of_the_segments_that_reach_it(tmp_path: Path, name: str) -> None:
    """The same segments fail, with the same words, and the others are decoded."""
    encoded = write(tmp_path / f"a.{name}", speechlike(SECONDS * RATE_HZ)).read_bytes()
    at = len(encoded) * 3 // 4
    cut = encoded[:at]
    for damaged in (cut, cut + bytes(300) + encoded[at + 300 :]):
        segment = Segment("clip", data=damaged)
        wanted = segments(segment, 8, seed=1)
        wanted = [s for s in wanted if s.channel is None]
        wanted += [replace(segment, stop_sample=n) for n in range(68_000, 78_000, 700)]
        file = SharedFile(decode)
        for one in wanted:
            assert outcome(file.decode, one) == outcome(decode, one)


def test_a_flac_without_a_length_is_decoded_forward(tmp_path: Path) -> None:
    raw = write(tmp_path / "a.flac", speechlike(SECONDS * RATE_HZ)).read_bytes()
    segment = Segment("clip", data=flac_with_length(raw, 0))
    file = SharedFile(decode)
    for one in segments(segment, 8, seed=2):
        assert outcome(file.decode, one) == outcome(decode, one)
    assert file._is_forward


def test_files_are_kept_open_up_to_a_number(tmp_path: Path) -> None:
    """Whole files and bytes are decoded on their own; the file used longest ago is closed."""
    paths = [write(tmp_path / f"{i}.mp3", speechlike(SECONDS * RATE_HZ, seed=i)) for i in range(3)]
    alone = []

    def counted(segment: Segment, sample_rate_hz: int) -> Decoded:
        alone.append(segment)
        return decode(segment, sample_rate_hz)

    files = SharedFiles(counted, 2)
    parts = [Segment(path.name, str(path), stop_sample=16_000) for path in paths]
    others = [Segment("whole", str(paths[0])), Segment("bytes", data=paths[0].read_bytes())]
    for segment in [parts[0], parts[1], parts[0], parts[2], *others, parts[1]]:
        assert outcome(files.decode, segment) == outcome(decode, segment)
    assert alone == others
    assert [path for path, _ in files._files] == [str(paths[2]), str(paths[1])]
    files.close()
    assert not files._files


def test_a_file_that_is_being_read_does_not_delay_its_closing(tmp_path: Path) -> None:
    path = write(tmp_path / "a.mp3", speechlike(RATE_HZ))
    file = SharedFile(decode)
    segment = Segment("clip", str(path), stop_sample=9000)
    with file._lock:
        file.close()
    assert len(file.decode(segment, RATE_HZ).waveform) == 9000
