"""What the verbs print for people."""

from __future__ import annotations

import io

from rich.console import Console

from pipeline.cli.tables import (
    MAX_LINES,
    MAX_REASONS,
    grouped_reasons,
    show_status,
    show_verification,
)
from pipeline.store.maintain.status import Status
from pipeline.store.maintain.verify import Damage, Verification

SOUND = Status(5, 5, 900, 100, 800, 0, 3600.0, 9.0, 3600.0, 9.0, 400.0, None, False, None, {}, {})


def printed(reasons: dict[str, int], **settings: bool) -> list[str]:
    """Lines about quarantined utterances."""
    console = Console(file=io.StringIO(), width=1000)
    show_status(console, Status(**(vars(SOUND) | {"reasons": reasons})), **settings)
    return [line for line in console.file.getvalue().splitlines() if line.startswith("  ")]


def test_reasons_that_differ_in_numbers_and_names_are_one() -> None:
    """A reason that nothing is like keeps its numbers."""
    reasons = {
        "the header says 16,000 samples, 15,999 are there": 1,
        "the header says 48,000 samples, 1 are there": 2,
        "no decoder for 'a.xyz'": 1,
        "no decoder for 'b.xyz'": 1,
        "the sample rate is 0 Hz": 7,
    }
    assert grouped_reasons(reasons) == [
        ("the sample rate is 0 Hz", 7),
        ("the header says … samples, … are there", 3),
        ("no decoder for …", 2),
    ]


def test_many_reasons_are_capped() -> None:
    """The rest is counted, and --all prints each."""
    words = [f"reason {chr(97 + i)}" for i in range(MAX_REASONS + 4)]
    reasons = {word: 100 - i for i, word in enumerate(words)}
    lines = printed(reasons)
    assert lines[:MAX_REASONS] == [
        f"  quarantined {100 - i}: {word}" for i, word in enumerate(words[:MAX_REASONS])
    ]
    assert lines[MAX_REASONS:] == [
        "  quarantined 354: for 4 other reasons",
        "  `strata status STORE --all` lists all 14 reasons",
    ]
    every = printed(reasons, all_reasons=True)
    assert every == [f"  quarantined {count}: {word}" for word, count in reasons.items()]


def test_few_reasons_are_printed_as_they_are() -> None:
    """Without a hint at --all."""
    assert printed({"the file is empty": 3}) == ["  quarantined 3: the file is empty"]
    lines = printed({"row 1 is empty": 1, "row 2 is empty": 1})
    assert lines[0] == "  quarantined 2: row … is empty"
    assert "--all" in lines[1]


def test_many_damaged_units_are_capped() -> None:
    """The rest is counted, and the JSON object has all."""
    damages = tuple(Damage(unit, "layer 5 differs") for unit in range(MAX_LINES + 7))
    console = Console(file=io.StringIO(), width=1000)
    show_verification(console, Verification(damages, 60, 60, 9, 0, 10), None)
    lines = console.file.getvalue().splitlines()
    assert lines[0] == "unit 0: layer 5 differs"
    assert lines[MAX_LINES] == "... and 7 more; `--json` lists all"
    assert len(lines) == MAX_LINES + 2
