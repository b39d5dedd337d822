"""Lists of many reasons: grouped and capped, and in full on request."""

from __future__ import annotations

import io
from dataclasses import dataclass

from rich.console import Console

from pipeline.cli.reasons import MAX_ALIKE, MAX_REASONS, Reason, grouped, show_alike, show_reasons


def lines(show, *arguments, **settings) -> list[str]:
    """What a function prints."""
    console = Console(file=io.StringIO(), width=1000, soft_wrap=True)
    show(console, *arguments, **settings)
    return console.file.getvalue().splitlines()


def test_reasons_that_differ_in_numbers_names_and_paths_are_one() -> None:
    """Their counts are summed, and their ids listed; a reason of its own stays as it is."""
    reasons = [
        Reason("the header says 16,000 samples, 15,999 are there", 1, ("a",)),
        Reason("the header says 48,000 samples, 1 are there", 2, ("b", "c")),
        Reason("no decoder for 'a.xyz'", 1),
        Reason("no decoder for 'b.xyz'", 1),
        Reason("/data/a.wav: no such file", 1),
        Reason("/data/b/c.wav: no such file", 3),
        Reason("the sample rate is 0 Hz", 3, ("d", "e", "f")),
        Reason("the sample rate is 0 Hz", 4, ("g", "h", "i", "j")),
    ]
    assert grouped(reasons) == [
        Reason("the sample rate is 0 Hz", 7, tuple("defghij")),
        Reason("…: no such file", 4),
        Reason("the header says … samples, … are there", 3, tuple("abc")),
        Reason("no decoder for …", 2),
    ]


def distinct(n: int) -> list[Reason]:
    """Reasons that are not alike, with 100 utterances, 99, and so on."""
    return [Reason(f"reason {chr(97 + i)}", 100 - i) for i in range(n)]


def test_many_reasons_are_capped() -> None:
    """The rest is counted; the command that lists all is named."""
    reasons = distinct(MAX_REASONS + 4)
    found = lines(show_reasons, reasons, False, "strata status s --all", "quarantined ")
    assert found[:MAX_REASONS] == [
        f"  quarantined {item.count}: {item.text}" for item in reasons[:MAX_REASONS]
    ]
    assert found[MAX_REASONS:] == [
        "  quarantined 354: for 4 other reasons",
        "  `strata status s --all` lists all 14 reasons",
    ]
    every = lines(show_reasons, reasons, True, "", "quarantined ")
    assert every == [f"  quarantined {item.count}: {item.text}" for item in reasons]


def test_the_first_utterances_of_a_reason_are_named() -> None:
    """All of them are listed on request, each with its own reason."""
    reasons = [
        Reason("row 1 is empty", 1, ("a",)),
        Reason("row 2 is empty", 6, tuple("bcdefg")),
        Reason("no sound", 1, ("h",)),
    ]
    assert lines(show_reasons, reasons, False, "strata inspect s --all") == [
        "  7: row … is empty (a, b, c, d, e, ...)",
        "  1: no sound (h)",
        "  `strata inspect s --all` lists all 8 utterances",
    ]
    every = lines(show_reasons, reasons, True, "")
    assert every[0] == "  a: row 1 is empty"
    assert every[1:7] == [f"  {name}: row 2 is empty" for name in "bcdefg"]
    assert every[7:] == ["  h: no sound"]


def test_few_reasons_are_printed_as_they_are() -> None:
    """Without a hint at a command, unless a group hides its members."""
    assert lines(show_reasons, [Reason("the file is empty", 3, tuple("abc"))], False, "x") == [
        "  3: the file is empty (a, b, c)"
    ]
    assert lines(show_reasons, [], False, "x") == []
    alike = [Reason("row 1 is empty", 1), Reason("row 2 is empty", 1)]
    assert lines(show_reasons, alike, False, "x")[-1] == "  `x` lists all 2 reasons"


@dataclass
class Problems:
    """Problems of units, of several kinds."""

    n_units: int
    n_kinds: int = 1

    def listed(self) -> list[tuple[str, str]]:
        """Each unit's."""
        return [
            (f"unit {unit}", f"problem {chr(97 + unit % self.n_kinds)} of 'x{unit}'")
            for unit in range(self.n_units)
        ]


def test_many_problems_are_capped() -> None:
    """The first ones of a kind are printed in full, and the rest is counted."""
    found = lines(show_alike, Problems(3000).listed(), False, "strata verify s --all")
    assert found == [
        *(f"unit {unit}: problem a of 'x{unit}'" for unit in range(MAX_ALIKE)),
        f"  and {3000 - MAX_ALIKE:,} more like these; `strata verify s --all` lists all",
    ]
    assert len(lines(show_alike, Problems(3000).listed(), True, "")) == 3000
    assert lines(show_alike, Problems(2).listed(), False, "x") == [
        "unit 0: problem a of 'x0'",
        "unit 1: problem a of 'x1'",
    ]


def test_many_kinds_of_problems_are_capped() -> None:
    """The first kinds are printed, and the problems of the others counted."""
    found = lines(show_alike, Problems(26, 26).listed(), False, "x")
    assert len(found) == MAX_REASONS + 1
    assert found[-1] == f"  and {26 - MAX_REASONS} other problems; `x` lists all"
