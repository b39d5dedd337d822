"""Observers of a run that tests look into afterwards."""

from __future__ import annotations

from pipeline.events import Observer


class Notes(Observer):
    """Keeps the notes of a run.

    Attributes:
        lines: The notes, in order.
    """

    def __init__(self) -> None:
        self.lines: list[str] = []

    def note(self, line: str) -> None:
        self.lines.append(line)
