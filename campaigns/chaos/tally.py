"""Counts of a campaign: kinds of fault, and what became of them."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

COLUMNS = ("tries", "reported", "lost", "wrong")


@dataclass
class Tally:
    """What happened to each kind of fault.

    Attributes:
        tries: Faults that were injected.
        reported: Faults that a driver, a reader or `verify` reported.
        lost: Utterances or units that are gone without a report, or that no run can complete.
        wrong: Features or labels that differ without a report.
        problems: What was lost or wrong, and which faults came before.
        unclean: Drivers that ended other than with one clear line.
        ends: How drivers ended.
        lines: Last lines of drivers that failed, without numbers and paths.
    """

    tries: Counter[str] = field(default_factory=Counter)
    reported: Counter[str] = field(default_factory=Counter)
    lost: Counter[str] = field(default_factory=Counter)
    wrong: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)
    unclean: list[str] = field(default_factory=list)
    ends: Counter[str] = field(default_factory=Counter)
    lines: Counter[str] = field(default_factory=Counter)
    left_out: dict[str, str] = field(default_factory=dict)

    def add(self, other: Tally) -> None:
        """Add the counts of another campaign."""
        for name in (*COLUMNS, "ends", "lines"):
            getattr(self, name).update(getattr(other, name))
        self.problems += other.problems
        self.unclean += other.unclean
        self.left_out |= other.left_out

    def table(self) -> str:
        """Return kinds × tries × reported × lost × wrong."""
        kinds = sorted(self.tries | self.lost | self.wrong)
        rows = [(kind, *(getattr(self, name)[kind] for name in COLUMNS)) for kind in kinds]
        rows.append(("all", *(getattr(self, name).total() for name in COLUMNS)))
        width = max(len(row[0]) for row in rows)
        head = f"{f'{len(kinds)} kinds':{width}s}" + "".join(f"{name:>10s}" for name in COLUMNS)
        lines = [f"{row[0]:{width}s}" + "".join(f"{n:10d}" for n in row[1:]) for row in rows]
        return "\n".join([head, *lines])

    def save(self, path: Path) -> None:
        """Write the counts as JSON."""
        path.write_text(json.dumps(self.__dict__))

    @classmethod
    def load(cls, path: Path) -> Tally:
        """Read counts that `save` has written."""
        raw: dict[str, Any] = json.loads(path.read_text())
        counts = (*COLUMNS, "ends", "lines")
        return cls(**{k: Counter(v) if k in counts else v for k, v in raw.items()})
