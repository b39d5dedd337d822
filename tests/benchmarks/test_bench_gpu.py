"""The benchmark of the GPU path, run on a CPU with a tiny model: every row, limit and error."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

import pytest
import torch

from tests.helpers.corpus import write_folder

ROOT = Path(__file__).parents[2]


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch):
    """Make the modules of benchmarks/ importable, as for the script."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")


def test_every_part_is_measured(
    gpu: None, ray_session: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    """A short run has all limits, rows and errors; the plain loop is the baseline."""
    write_folder(tmp_path / "clips", [1.5, 2.0, 2.5], metadata=False)
    (tmp_path / "out").mkdir()
    bench_gpu = importlib.import_module("bench_gpu")
    arguments = ["--source", "clips", "--device", "cpu", "--model", "tiny", "--precision", "fp32"]
    arguments += ["--audio-s", "12", "--rounds", "1", "--product-size", "256", "--threads", "1"]
    arguments += ["--out", str(tmp_path / "out"), "--json", "found.json"]
    monkeypatch.setattr(sys, "argv", ["bench_gpu.py", *arguments])
    monkeypatch.chdir(tmp_path)
    n_threads = torch.get_num_threads()
    try:
        bench_gpu.main()
    finally:
        torch.set_num_threads(n_threads)
    printed = capsys.readouterr().out
    found = json.loads((tmp_path / "found.json").read_text())
    rows = found["realtime_factor"]
    assert {
        "plain loop, fp32",
        "encoder alone, fp32",
        "one worker, disk",
        "one worker, means only",
        "Ray, one actor",
        "transformers, fp32, sdpa",
    } <= rows.keys()
    assert all(speed > 0 for speed in rows.values())
    assert found["of_plain"]["plain loop, fp32"] == 1.0
    assert {"products, fp32", "write, disk", "decode"} <= found["limits"].keys()
    assert found["of_limit"]["encoder alone, fp32"][0] == "products, fp32"
    assert found["errors"]["fp32"] < 1e-5
    assert "6 clips (3 files, repeated), 12 s of audio" in found["facts"]["clips"]
    for name in rows:
        assert name in printed
    assert list((tmp_path / "out").iterdir()) == []


def test_a_method_without_time_is_not_run(gpu: None) -> None:
    """A run that would end after the deadline does not begin; the table says so."""
    from gpu.report import Report, document
    from gpu.rounds import Deadline, Method, alternate

    calls: list[str] = []
    methods = [Method(name, lambda name=name: calls.append(name)) for name in ("a", "b")]
    alternate(methods, 2, Deadline(60.0), lambda: calls.append("limits"))
    assert calls == ["limits", "a", "b", "limits", "a", "b"]
    methods[1].seconds.append(100.0)  # as if its last run had been long
    alternate(methods, 1, Deadline(60.0))
    assert calls[6:] == ["a"]
    methods = [Method(name, lambda name=name: calls.append(name)) for name in ("plain", "new")]
    methods[0].seconds.append(100.0)  # a method that has not run yet may take as long
    alternate(methods, 1, Deadline(60.0))
    assert not {"plain", "new"} & set(calls)
    late = [Method("late", lambda: calls.append("late"))]
    alternate(late, 1, Deadline(-1.0), lambda: calls.append("late"))
    assert "late" not in calls
    assert document(Report(methods=late), 1.0)["realtime_factor"] == {}


def test_a_row_is_compared_with_its_lowest_limit(gpu: None) -> None:
    """The share is that of the lowest limit that was measured; other rows can be limits."""
    from gpu.report import Limit, Report, tightest

    report = Report(limits=[Limit("disk", 100.0, ""), Limit("decode", 400.0, "")])
    report.limits_of["worker"] = ["disk", "decode", "encoder", "never measured"]
    found = {"worker": 90.0, "encoder": 200.0}
    assert tightest(report, "worker", found) == ("disk", pytest.approx(0.9))
    assert tightest(report, "worker", {"worker": 40.0, "encoder": 50.0}) == ("encoder", 0.8)
    assert tightest(report, "encoder", found) is None


def test_clips_are_chosen_or_repeated(gpu: None, tmp_path: Path) -> None:
    """Every k-th file of a large folder, repetitions of a small one; no very long or short clip."""
    from gpu.clips import gather

    folder = write_folder(tmp_path / "clips", [1.0, 2.0, 3.0, 0.5, 41.0], metadata=False)
    some = gather(folder, 3.0, tmp_path / "some")
    assert (len(some.files), some.audio_s, some.n_distinct) == (2, 4.0, 2)
    many = gather(folder, 18.0, tmp_path / "many")
    assert (len(many.files), many.audio_s, many.n_distinct) == (9, 18.0, 3)
    assert len({file.resolve() for file in many.files}) == 3
    with pytest.raises(SystemExit, match="no clip of 1 to 40 s"):
        gather(tmp_path / "nothing", 10.0, tmp_path / "none")
