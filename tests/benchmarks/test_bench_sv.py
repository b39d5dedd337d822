"""The benchmark of speaker verification: its peers give the values of the task."""

from __future__ import annotations

import json

import pytest
import torch

from benchmarks import bench_sv

QUICK = ["--speakers", "6", "--utterances", "60", "--dim", "8", "--trials", "200", "--draws", "3"]


@pytest.fixture(autouse=True)
def threads():
    """Restore the number of threads, which the benchmark sets."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_every_part_is_measured(capsys):
    """Scores, both metrics and their bootstraps have two times, and equal values."""
    result = bench_sv.main([*QUICK, "--rounds", "1"])
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == result
    parts = {name: part for name, part in result.items() if isinstance(part, dict)}
    assert list(parts) == ["scores", "eer", "min_dcf", "eer, bootstrap", "min_dcf, bootstrap"]
    for part in parts.values():
        assert part["ms"] > 0
        assert part["peer_ms"] > 0
        assert part["difference"] <= 1e-5


def test_other_values_end_the_benchmark(monkeypatch):
    """A fast tool with other values would be no comparison."""
    monkeypatch.setattr(bench_sv, "P_TARGET", 0.5)
    with pytest.raises(SystemExit, match="min_dcf: values differ by"):
        bench_sv.main([*QUICK, "--rounds", "1"])
