"""Progress where there is no terminal: a line at the start, one every minute, one at the end."""

from __future__ import annotations

import io
import time
from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest
from rich.console import Console

from pipeline import events
from pipeline.cli import progress as progress_module
from pipeline.cli.progress import RunProgress, SweepProgress, VerifyProgress
from pipeline.events import Observer, announced


@dataclass(frozen=True)
class Report:
    """A committed unit."""

    audio_s: float = 3600.0
    unit: int = 0
    n_ok: int = 1
    n_quarantined: int = 0
    wall_s: float = 1.0
    seconds: dict[str, float] = field(default_factory=dict)


@pytest.fixture
def out() -> Console:
    return Console(file=io.StringIO(), width=200)


def lines(console: Console) -> list[str]:
    return console.file.getvalue().splitlines()


def wait_for(console: Console, words: str) -> str:
    """The first line with these words."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        for line in lines(console):
            if words in line:
                return line
        time.sleep(0.01)
    raise AssertionError(f"no line with {words!r} in {lines(console)}")


PLAN = SimpleNamespace(n_units=4)


def test_a_run_prints_its_start_its_first_speed_and_its_end(out: Console) -> None:
    """What is left, how much, and how long at the speed of the last run."""
    with RunProgress(out, expected_speed=60.0) as progress:
        progress.planned(PLAN, 1, 4 * 3600.0)
        progress.unit_committed(Report())
        progress.unit_committed(Report())
        progress.run_ended([3])
    start, first, end = lines(out)
    assert start == (
        "3 of 4 units are left to do, 3.00 h of audio, "
        "about 3 min 00 s at the speed of the last run"
    )
    assert first.startswith("the first unit is committed: 1.00 h of audio, ")
    assert first.endswith(" left")
    assert end.startswith("ended after ")
    assert end.endswith("2 new units, 3 of 4 committed; 1 failed")


def test_a_finished_store_says_so(out: Console) -> None:
    """Nothing else is printed."""
    with RunProgress(out) as progress:
        progress.planned(PLAN, 4, 4 * 3600.0)
    assert lines(out) == ["nothing is left to do: all 4 units are committed"]


def test_a_run_prints_a_line_every_minute(out: Console, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also while it reads headers, and if no unit is committed for long."""
    monkeypatch.setattr(progress_module, "LINE_EVERY_S", 0.05)
    with RunProgress(out) as progress:
        progress.headers_scanned(0, 3000)
        assert lines(out)[0] == "3,000 headers to read"
        progress.headers_scanned(1200, 3000)
        assert ", about " in wait_for(out, "1,200 of 3,000 headers read after ")
        progress.headers_scanned(3000, 3000)
        assert "3,000 headers read in " in lines(out)[-1]
        progress.note("loading the encoder ...")
        assert wait_for(out, "still") == "still loading the encoder ..."
        assert not any("3,000 of 3,000" in line for line in lines(out))
        progress.planned(PLAN, 0, 4 * 3600.0)
        assert wait_for(out, "0 of 4 units: ").startswith("0 of 4 units: none of this run's yet")
        progress.unit_committed(Report())
        assert "× real time" in wait_for(out, "1 of 4 units: ")
    n_lines = len(lines(out))
    time.sleep(0.2)
    assert len(lines(out)) <= n_lines + 1


def test_a_sweep_without_training_says_that_heads_are_evaluated(out: Console) -> None:
    """As in speaker verification and ABX."""
    with SweepProgress(out, is_trained=False) as progress:
        progress.head_trained(0, 2)
        progress.head_trained(2, 2)
    assert lines(out)[0] == "2 heads to evaluate"
    assert lines(out)[1].startswith("2 heads evaluated in ")


def test_a_sweep_prints_its_start_every_minute_and_its_end(
    out: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    """How many heads, how many are cached, and about how long."""
    monkeypatch.setattr(progress_module, "LINE_EVERY_S", 0.05)
    with SweepProgress(out) as progress:
        progress.head_trained(10, 2350)
        assert lines(out) == ["2,340 heads to train; 10 are cached"]
        progress.head_trained(595, 2350)  # too few of those trained together
        assert wait_for(out, "595 of 2,350 heads trained after ").endswith(" s")
        progress.head_trained(1180, 2350)
        assert ", about " in wait_for(out, "1,180 of 2,350 heads trained after ")
        progress.head_trained(2350, 2350)
        assert wait_for(out, "2,340 heads trained in ")


def test_a_verification_prints_its_start_every_minute_and_its_end(
    out: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    """How many units, and about how long."""
    monkeypatch.setattr(progress_module, "LINE_EVERY_S", 0.05)
    with VerifyProgress(out) as progress:
        progress.unit_checked(0, 1)
        progress.unit_checked(1, 1)
        assert lines(out) == ["1 unit to check", "1 unit checked in 0.0 s"]
        progress.unit_checked(0, 1200)  # another round
        progress.unit_checked(300, 1200)
        assert ", about " in wait_for(out, "300 of 1,200 units checked after ")
        progress.unit_checked(1200, 1200)
        assert wait_for(out, "1,200 units checked in ")


def test_the_time_left_is_stated_early(out: Console, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once, before the first minute has passed."""
    with VerifyProgress(out) as progress:
        for done in range(4):
            progress.unit_checked(done, 10)
            if done == 1:
                monkeypatch.setattr(progress_module, "EARLY_S", -1.0)
    assert len(lines(out)) == 2
    assert lines(out)[1].startswith("2 of 10 units checked after 0.0 s, about ")


def test_a_terminal_gets_bars_instead(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lines would break the bars."""
    monkeypatch.setattr(progress_module, "LINE_EVERY_S", 0.01)
    console = Console(file=io.StringIO(), width=200, force_terminal=True)
    with SweepProgress(console) as progress:
        progress.head_trained(0, 9)
        time.sleep(0.1)
    assert "heads to train" not in console.file.getvalue()
    assert "0/9" in console.file.getvalue()


@pytest.mark.parametrize(("after_s", "expected"), [(0.05, ["loading ..."]), (30.0, [])])
def test_only_a_slow_step_is_announced(
    monkeypatch: pytest.MonkeyPatch, after_s: float, expected: list[str]
) -> None:
    """A quick one says nothing, also not later."""
    monkeypatch.setattr(events, "ANNOUNCE_AFTER_S", after_s)
    notes: list[str] = []
    observer = Observer()
    observer.note = notes.append  # type: ignore[method-assign]
    with announced(observer, "loading"):
        time.sleep(0.3)
    assert notes == expected
