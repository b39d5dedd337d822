"""Runs with one slow stage, and what they say limits them."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from pipeline import files
from pipeline.audio.decode import decode
from pipeline.audio.types import Decoded
from pipeline.cli.output import console
from pipeline.cli.tables import show_status
from pipeline.extract import run
from pipeline.sources.base import Segment
from pipeline.store.backend.local import LocalBackend
from pipeline.store.coordination.run_log import read_log
from tests.helpers.corpus import mixed_lengths, write_folder
from tests.helpers.extraction import INLINE, configured


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("audio") / "clips", mixed_lengths(12))


def slow_decode(segment: Segment, rate_hz: int) -> Decoded:
    time.sleep(0.1)
    return decode(segment, rate_hz)


class SlowPartial(files.PartialFile):
    """A file of which every write takes long."""

    def write(self, data: files.Buffer, offset: int) -> None:
        time.sleep(0.02)
        super().write(data, offset)


class SlowBackend(LocalBackend):
    """A folder on a slow disk."""

    def open_partial(self, key: str) -> files.PartialFile:
        return SlowPartial(self._root / key)


def test_a_slow_decoder_is_named(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By the status, its printed form, and the log."""
    status = run.extract(configured(folder, tmp_path / "s", *INLINE), decode=slow_decode)
    assert status.limited_by is not None
    assert status.limited_by.startswith("limited by decoding: ")
    assert status.limited_by.endswith(" × real time on 1 thread")
    show_status(console, status)
    assert "limited by decoding: " in capsys.readouterr().err
    [ended] = [event for event in read_log(tmp_path / "s") if event["event"] == "run_ended"]
    assert ended["limited_by"].startswith("limited by decoding: ")


def test_a_slow_disk_is_named(folder: Path, tmp_path: Path) -> None:
    """A backend whose writes take long."""
    backend = SlowBackend(tmp_path / "s")
    status = run.extract(configured(folder, tmp_path / "s", *INLINE), backend=backend)
    assert status.limited_by is not None
    assert status.limited_by.startswith("limited by the disk: ")
