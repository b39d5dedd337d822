"""Observers: the group passes every event on, and an error of an observer is not swallowed."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.events import Observer, ObserverGroup
from pipeline.store.coordination.log_observer import RunLogObserver
from pipeline.store.coordination.run_log import RunLog
from pipeline.transforms.writer import WrittenUnit

EVENTS = [name for name in vars(Observer) if not name.startswith("_")]


class Recorder(Observer):
    """Records the events that it receives."""

    def __init__(self, record: list[Any], name: str) -> None:
        for event in EVENTS:
            setattr(self, event, lambda *facts, event=event: record.append((name, event, facts)))


@pytest.mark.parametrize("event", EVENTS)
def test_a_group_passes_every_event_on_in_order(event: str) -> None:
    """Each observer receives it once, with the same facts, in the order of the group."""
    record: list[Any] = []
    group = ObserverGroup(Recorder(record, "first"), Recorder(record, "second"))
    facts = tuple(range(len(inspect.signature(getattr(Observer, event)).parameters) - 1))
    getattr(group, event)(*facts)
    assert record == [("first", event, facts), ("second", event, facts)]


@pytest.mark.parametrize("event", EVENTS)
def test_an_observer_ignores_what_it_does_not_override(event: str) -> None:
    """`Observer()` itself is the observer of a run without progress output."""
    facts = range(len(inspect.signature(getattr(Observer, event)).parameters) - 1)
    assert getattr(Observer(), event)(*facts) is None


def test_an_error_of_an_observer_is_raised() -> None:
    """It ends the run visibly; observers before it, such as the run log, have the event."""
    record: list[Any] = []

    class Broken(Observer):
        def note(self, line: str) -> None:
            raise OSError("the terminal is gone")

    with pytest.raises(OSError, match="terminal is gone"):
        ObserverGroup(Recorder(record, "log"), Broken()).note("hello")
    assert record == [("log", "note", ("hello",))]


def test_the_run_log_keeps_its_events_and_keys(tmp_path: Path) -> None:
    """Other programs read log.jsonl: the events, their keys and the order of the keys are fixed."""
    observer = RunLogObserver(RunLog(tmp_path, "r"))
    report = WrittenUnit(4, 5, True, 6, 7, 0, 8.0, 9.0, 10, {"sum": 1.0})
    observer.planned(None, 0, 0.0)  # type: ignore[arg-type]
    observer.run_started(3)
    observer.unit_committed(report)
    observer.unit_failed(1, 2, "died", RuntimeError("actor-1 died"))
    observer.run_ended([1], "SIGTERM")
    observer.run_ended([])
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [list(line)[:3] for line in lines] == [["time", "run_id", "event"]] * 5
    assert [list(line)[-1] for line in lines] == ["elapsed_s"] * 5
    events = [
        {k: v for k, v in line.items() if k not in ("time", "run_id", "elapsed_s")}
        for line in lines
    ]
    command = events[0].pop("command")
    assert isinstance(command, list)
    assert events == [
        {"event": "run_started", "units": 3},
        {
            "event": "unit_committed",
            "report": {
                "unit": 4,
                "slot": 5,
                "won": True,
                "n_ok": 6,
                "n_quarantined": 7,
                "n_fp32": 0,
                "audio_s": 8.0,
                "wall_s": 9.0,
                "n_bytes": 10,
                "seconds": {"sum": 1.0},
            },
        },
        {"event": "unit_failed", "unit": 1, "slot": 2, "cause": "died", "error": "actor-1 died"},
        {"event": "run_ended", "failed": [1], "stopped": "SIGTERM"},
        {"event": "run_ended", "failed": []},
    ]
