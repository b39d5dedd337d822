"""Headers that are read on a cluster give the plan of those that the driver reads."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.config import EngineConfig
from pipeline.encoders.wav2vec2.geometry import GEOMETRY
from pipeline.extract.planning import ray_probing
from pipeline.extract.planning.scan import probe_in_threads, scan
from pipeline.sources.opening import open_source
from tests.helpers.corpus import mixed_lengths, write_folder
from tests.helpers.extraction import configured

RAY = EngineConfig(kind="ray", address="127.0.0.1:1")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = write_folder(tmp_path / "clips", mixed_lengths(11))
    (folder / "clip-004.wav").write_bytes(b"no sound")
    return folder


@pytest.mark.ray
def test_the_facts_are_those_of_the_driver(
    folder: Path, monkeypatch: pytest.MonkeyPatch, ray_session: None
) -> None:
    """In the order of the rows, also if tasks have few rows and more of them than may wait."""
    monkeypatch.setattr(ray_probing, "_ROWS_PER_TASK", 2)
    monkeypatch.setattr(ray_probing, "_TASKS_PER_CPU", 1)
    source = open_source(configured(folder, folder / "s").dataset)
    expected = scan(source, GEOMETRY)
    seen: list[int] = []
    found = scan(source, GEOMETRY, seen.append, lambda *a: ray_probing.probe_on_cluster(RAY, *a))
    assert found.equals(expected)
    assert found["n_samples"].to_pylist()[4] == 0
    assert seen == [0, 2, 4, 6, 8, 10, 11]


def test_a_cluster_reads_the_headers_of_large_datasets(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not of small ones, not of audio in memory, and not where Ray is this run's own."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    source = open_source(configured(folder, folder / "s").dataset)
    assert ray_probing.choose_probing(RAY, source) is probe_in_threads
    monkeypatch.setattr(ray_probing, "FEWEST_ROWS", 11)
    assert ray_probing.choose_probing(RAY, source) is not probe_in_threads
    for other in (EngineConfig(kind="inline", address="127.0.0.1:1"), EngineConfig(kind="ray")):
        assert ray_probing.choose_probing(other, source) is probe_in_threads
    monkeypatch.setattr(type(source), "is_shared", False)
    assert ray_probing.choose_probing(RAY, source) is probe_in_threads
