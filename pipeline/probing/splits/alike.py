"""Warnings about classes that are spelt alike, and may be one."""

from __future__ import annotations

from pipeline.config import TaskConfig
from pipeline.errors import first_few
from pipeline.probing.labels import Labels


def alike_warnings(task: TaskConfig, labels: Labels) -> list[str]:
    """Return a warning about classes that differ in case or spaces only, if there are any."""
    if task.kind != "utterance":
        return []
    for column, texts in zip(labels.columns, labels.texts, strict=True):
        spellings: dict[str, list[str]] = {}
        for text in sorted({text for text in texts if text is not None}):
            spellings.setdefault("".join(text.split()).casefold(), []).append(text)
        alike = next((found for found in spellings.values() if len(found) > 1), None)
        if alike is not None:
            return [
                f"{first_few([repr(text) for text in alike])} of column {column!r} are different "
                "classes, although they differ in case or spaces only; if they are one, correct "
                "the table and run `strata relabel`"
            ]
    return []
