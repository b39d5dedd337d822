"""Sources whose rows are ranges of bytes of a file."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest

from pipeline.audio.decode import decode
from pipeline.audio.probe import probe
from pipeline.config import DatasetConfig
from pipeline.sources.archives.ranges import Ranges
from pipeline.sources.base import Segment
from pipeline.sources.columns import Rows
from pipeline.sources.tabular import TabularSource
from tests.helpers.audio_files import speechlike, write

N_SAMPLES = (1600, 3200, 800)


@pytest.fixture
def rows(tmp_path: Path) -> Rows:
    """Three clips behind each other in one file, and one that is a file of its own."""
    encoded = [write(tmp_path / "clip.wav", speechlike(n)).read_bytes() for n in N_SAMPLES]
    (tmp_path / "all").write_bytes(b"".join(encoded))
    lengths = [len(part) for part in encoded]
    offsets = [sum(lengths[:i]) for i in range(4)]
    paths = [*(str(tmp_path / "all") for _ in encoded), str(tmp_path / "clip.wav")]
    table = pa.table({"name": [*"abcd"], "audio": paths, "duration": [0.1] * 4})
    ranges = Ranges("tar", pa.array(offsets), pa.array([*lengths, None], pa.int64()))
    return Rows(table, {}, "audio", None, ranges=ranges, id_column="name")


def test_a_segment_has_its_range(rows: Rows) -> None:
    """A row without a length is a whole file."""
    source = TabularSource(DatasetConfig("disk"), rows)
    segments = [source.segment(row) for row in range(4)]
    assert [len(decode(s, 16_000).waveform) for s in segments] == [*N_SAMPLES, 800]
    assert segments[1] == Segment(
        "b", segments[0].path, container="tar", byte_offset=3244, byte_length=6444
    )
    assert segments[3] == Segment("d", segments[3].path)


def test_ranges_follow_the_choice_of_rows(rows: Rows) -> None:
    """`dataset.limit` and `Rows.take` take the ranges along."""
    whole = TabularSource(DatasetConfig("disk"), rows)
    limited = TabularSource(DatasetConfig("disk", limit=2), rows)
    assert [limited.segment(row) for row in range(2)] == [whole.segment(row) for row in range(2)]
    turned = TabularSource(DatasetConfig("disk"), rows.take(pa.array([2, 0])))
    assert [turned.segment(row) for row in range(2)] == [whole.segment(2), whole.segment(0)]


def test_the_fingerprint_follows_the_ranges(rows: Rows) -> None:
    """Other bytes of the same file are another dataset."""
    config = DatasetConfig("disk")
    assert rows.ranges is not None
    moved = replace(rows.ranges, offset=pa.array([0, 3244, 9689, 0]))
    kinds = [rows, replace(rows, ranges=moved), replace(rows, ranges=None)]
    assert len({TabularSource(config, kind).fingerprint for kind in kinds}) == 3


def test_files_that_hold_many_rows_are_not_taken_for_recordings(rows: Rows) -> None:
    """A column of durations is noted only if the rows of a list repeat their files."""
    config = DatasetConfig("disk")
    assert TabularSource(config, rows).notes == ()
    assert "duration look" in TabularSource(config, replace(rows, ranges=None)).notes[0]


@pytest.mark.parametrize("n_samples", [10, 1600, 20_000])
def test_a_range_is_probed_like_the_same_bytes_as_a_file(tmp_path: Path, n_samples: int) -> None:
    """Its length and its fingerprint, also if it is smaller than the bytes of both ends."""
    clip = write(tmp_path / "clip.wav", speechlike(n_samples))
    content = clip.read_bytes()
    (tmp_path / "archive").write_bytes(b"before" + content + b"after")
    place = {"byte_offset": 6, "byte_length": len(content)}
    inside = Segment("a", str(tmp_path / "archive"), container="tar", **place)
    assert probe(inside, 16_000) == probe(Segment("a", str(clip)), 16_000)
