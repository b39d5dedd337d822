"""Progress of a store, from its commits and its run log."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from pipeline.cli.tables import show_status
from pipeline.errors import StoreNotFoundError
from pipeline.store.coordination import run_log
from pipeline.store.coordination.lease import Lease
from pipeline.store.coordination.run_log import RunLog, read_log
from pipeline.store.format.layout import LOG
from pipeline.store.maintain.status import read_status
from tests.helpers.fake_store import FakeStore, begin_store

REPORT = {"audio_s": 12.0, "n_fp32": 2, "seconds": {"encode": 3.0, "write": 0.5}}


def log(root: Path, *events: tuple[str, str, float]) -> None:
    """Append (run, event, second) lines to a run log."""
    with (root / LOG).open("a") as file:
        for run_id, event, second in events:
            time = f"2025-01-01T00:00:{second:06.3f}+00:00"
            facts = {"report": REPORT} if event == "unit_committed" else {}
            line = {"time": time, "run_id": run_id, "event": event, **facts}
            file.write(json.dumps(line) + "\n")


def test_counts_come_from_the_commits(store: FakeStore) -> None:
    """Whatever is in the log."""
    found = read_status(store.root)
    assert (found.units_total, found.units_committed) == (5, 5)
    assert (found.utterances_total, found.utterances_ok, found.utterances_quarantined) == (
        11,
        10,
        1,
    )
    samples = sum(320 * store.features(row).shape[1] + 80 for row in range(11) if row != 3)
    assert found.audio_seconds == pytest.approx(samples / 16_000, abs=1e-3)
    assert found.reasons == {"the file is empty": 1}
    assert not found.live
    assert (found.run_id, found.realtime_factor, found.eta_seconds) == (None, None, None)


def test_times_come_from_the_log(store: FakeStore) -> None:
    """The rate of the last run that committed a unit; sums over all runs."""
    log(store.root, ("a", "run_started", 0), ("a", "unit_committed", 6), ("a", "run_ended", 8))
    log(store.root, ("b", "run_started", 10), ("b", "unit_committed", 12), ("c", "run_started", 20))
    found = read_status(store.root)
    assert found.wall_seconds == 10
    assert found.realtime_factor == pytest.approx(12 / 2)
    assert (found.last_run_audio_seconds, found.last_run_wall_seconds) == (12, 2)
    assert (found.log_lines_skipped, found.clock_steps) == (0, 0)
    assert found.utterances_fp32 == 4
    assert found.seconds == {"encode": 6.0, "write": 1.0}
    assert found.run_id == "c"


def test_a_live_run_has_an_eta(tmp_path: Path) -> None:
    """Remaining audio at the last rate, while a driver holds the lease."""
    store = begin_store(tmp_path, [300, 300])
    store.commit(0)
    log(tmp_path, ("a", "run_started", 0), ("a", "unit_committed", 2))
    assert read_status(tmp_path).eta_seconds is None
    with Lease(tmp_path, "a"):
        found = read_status(tmp_path)
    assert found.live
    assert found.eta_seconds == pytest.approx((320 * 300 + 80) / 16_000 / 6)


def test_a_log_with_one_readable_line(store: FakeStore) -> None:
    """No time passes between its first and last line, so there is no rate."""
    log(store.root, ("a", "unit_committed", 2))
    found = read_status(store.root)
    assert found.realtime_factor is None
    assert found.wall_seconds == 0


def event(without: str = "", **changes: object) -> str:
    """One line of a log: a committed unit, with changes, without one of its fields."""
    whole = {"run_id": "a", "event": "unit_committed", "report": REPORT, "elapsed_s": 4.0}
    whole |= {"time": "2025-01-01T00:00:04+00:00"} | changes
    return json.dumps({key: value for key, value in whole.items() if key != without})


DAMAGED = [
    event(time="2025-01-01T0x:00:04+00:00"),
    event(time="2025-01-01T00:00:04"),
    event(time=None),
    event(time={"a": 1}),
    event(run_id=["a"]),
    event(run_id=None),
    event(report=None),
    event(report=[1]),
    event(report=REPORT | {"audio_s": "12"}),
    event(report=REPORT | {"audio_s": float("nan")}),
    event(report=REPORT | {"audio_s": -1}),
    event(report=REPORT | {"n_bytes": 10**400}),
    event(report=REPORT | {"n_fp32": None}),
    event(report=REPORT | {"seconds": 3}),
    event(report=REPORT | {"seconds": {"encode": "3"}}),
    event(report=REPORT | {"threads": {"write": 0}}),
    event(report=REPORT | {"worker": {}}),
    event(elapsed_s=float("inf")),
    event(elapsed_s="4"),
    event("report"),
    event("run_id"),
    event()[:-9],
    "[" * 100_000,
    "\0" * 100,
    "1" * 10_000,
]


@pytest.mark.parametrize("line", DAMAGED, ids=range(len(DAMAGED)))
def test_a_damaged_line_is_skipped_and_counted(store: FakeStore, line: str) -> None:
    """Whatever is in it, `status` works and the other lines count."""
    lines = [event(event="run_started", elapsed_s=0), line, event()]
    (store.root / LOG).write_text("\n".join(lines) + "\n")
    found = read_status(store.root)
    assert (found.log_lines_skipped, found.wall_seconds) == (1, 4)
    assert found.realtime_factor == pytest.approx(12 / 4)
    assert (found.utterances_fp32, found.seconds) == (2, REPORT["seconds"])


def test_a_log_that_cannot_be_read_is_left_out(store: FakeStore) -> None:
    """A folder in its place stops neither `status` nor a run."""
    (store.root / LOG).mkdir()
    RunLog(store.root, "a").write("run_started", units=1)
    assert read_status(store.root).units_committed == 5


TIMES = {
    "back": (["2025-01-01T00:00:10", "2025-01-01T00:00:14", "2024-01-01T00:00:00"], 4),
    "far ahead": (["1970-01-01T00:00:10", "2025-01-01T00:00:14", "2025-01-01T00:00:18"], 4),
    "and back": (["2025-01-01T00:00:10", "2925-01-01T00:00:14", "2025-01-01T00:00:18"], 0),
}


@pytest.mark.parametrize("case", TIMES)
@pytest.mark.parametrize("has_elapsed", [True, False])
def test_a_clock_that_is_set_during_a_run(store: FakeStore, case: str, has_elapsed: bool) -> None:
    """Durations come from the monotonic clock; in an older log a step counts as no time."""
    times, seconds = TIMES[case]
    lines = [
        event("" if has_elapsed else "elapsed_s", time=f"{time}+00:00", elapsed_s=4.0 * i)
        for i, time in enumerate(times)
    ]
    (store.root / LOG).write_text("\n".join(lines) + "\n")
    found = read_status(store.root)
    assert found.wall_seconds == (8 if has_elapsed else seconds)
    assert found.clock_steps == (2 if case == "and back" else 1)
    assert found.log_lines_skipped == 0


def test_status_says_in_one_line_what_the_log_lacks(store: FakeStore) -> None:
    """The line names the file and the counts; it is absent for a sound log."""
    printed = []
    for line in (event(), event()[:-1]):
        (store.root / LOG).write_text(f"{event()}\n{line}\n")
        console = Console(file=io.StringIO(), width=1000)
        show_status(console, read_status(store.root))
        printed.append(console.file.getvalue())
    assert "log.jsonl" not in printed[0]
    [line] = [line for line in printed[1].splitlines() if "log.jsonl" in line]
    assert "1 damaged lines are skipped" in line


def test_a_missing_store_is_reported(tmp_path: Path) -> None:
    """A path without a store has no status."""
    with pytest.raises(StoreNotFoundError):
        read_status(tmp_path)


def test_only_the_torn_line_is_lost(tmp_path: Path) -> None:
    """The first event after a crash starts on a new line."""
    RunLog(tmp_path, "a").write("run_started", units=1)
    with (tmp_path / LOG).open("a") as file:
        file.write('{"time": "2025-01-01T00:00')
    RunLog(tmp_path, "b").write("run_started", units=2)
    RunLog(tmp_path, "b").write("run_ended")
    (tmp_path / LOG).open("ab").write(b"\xff\xfe\n[1]\n{}\n")
    assert [(e["run_id"], e["event"]) for e in read_log(tmp_path)] == [
        ("a", "run_started"),
        ("b", "run_started"),
        ("b", "run_ended"),
    ]


def test_an_unwritable_log_does_not_stop_a_run(tmp_path: Path) -> None:
    """On a full disk the error of the unit is reported, not that of the log."""
    (tmp_path / LOG).symlink_to("/dev/full")
    if not Path("/dev/full").exists():
        pytest.skip("there is no /dev/full")
    with pytest.raises(OSError, match="No space"), Path("/dev/full").open("wb", buffering=0) as f:
        f.write(b"x")
    RunLog(tmp_path, "a").write("unit_failed", error="no space left")
    (tmp_path / LOG).unlink()
    assert list(read_log(tmp_path)) == []


def test_a_long_log_is_read_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lines that cross the border of two parts are whole; a line that was cut short is skipped."""
    monkeypatch.setattr(run_log, "_PART_BYTES", 7)
    log = run_log.RunLog(tmp_path, "run")
    for number in range(20):
        log.write("counted", number=number)
    with (tmp_path / LOG).open("ab") as file:
        file.write(b'{"time": "cut sho')
    assert [event["number"] for event in run_log.read_log(tmp_path)] == list(range(20))
    with (tmp_path / LOG).open("ab") as file:
        file.write(b"\0" * 500 + b"\n")
    monkeypatch.setattr(run_log, "_LONGEST_LINE_BYTES", 300)
    skipped: list[None] = []
    assert len(list(run_log.read_log(tmp_path, lambda: skipped.append(None)))) == 20
    assert len(skipped) == 1
    assert list(run_log.read_log(tmp_path / "nowhere")) == []
