"""What the verbs print for people."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
from rich.console import Console

from pipeline.cli.tables import (
    MAX_ITEMS,
    duration,
    hours,
    show_estimate,
    show_facts,
    show_status,
    show_store,
    show_verification,
    size,
)
from pipeline.extract.planning.estimate import Estimate
from pipeline.extract.planning.scan import Unreadable
from pipeline.store.maintain.status import Status
from pipeline.store.maintain.verify import Damage, Verification

SOUND = Status(5, 5, 900, 100, 800, 0, 3600.0, 9.0, 3600.0, 9.0, 400.0, None, False, None, {}, {})
N_BAD = 3000
BAD = {f"bad-{i:04d}": f"the header says {i} samples" for i in range(N_BAD)}
"""Utterances, each with a reason of its own that is like those of the others."""


def printed(show, *arguments, **settings) -> list[str]:
    """Lines that a function prints."""
    console = Console(file=io.StringIO(), width=1000, soft_wrap=True)
    show(console, *arguments, **settings)
    return console.file.getvalue().splitlines()


def status(reasons: dict[str, int]) -> Status:
    """The status of a store with these reasons of quarantine."""
    return Status(**(vars(SOUND) | {"reasons": reasons}))


def estimate() -> Estimate:
    """The size of a corpus in which many files are bad."""
    reasons = tuple(Unreadable(reason, 1, (name,)) for name, reason in BAD.items())
    return Estimate(N_BAD, N_BAD, 0.0, 1, 0, 0, 10**12, 256, reasons)


VERIFICATION = Verification(
    tuple(Damage(unit, reason) for unit, reason in enumerate(BAD.values())),
    *(N_BAD, N_BAD, 9, 7, 10),
)
STORE = {
    "layers": list(range(12)),
    "layer_names": ["input", *(f"block_{i}" for i in range(1, 12))],
    "feature_dim": 768,
    "storage": {"dtype": "float16", "keep": ["frames", "pooled"]},
    "identity": {"encoder": {"model": "hubert_base"}},
    "class_names": {"speaker": [f"s{i}" for i in range(1251)]},
    "columns": {f"c{i}": "string" for i in range(30)},
    "quarantined": [{"id": name, "reason": reason} for name, reason in BAD.items()],
}


@pytest.mark.parametrize(
    ("show", "arguments", "at_most", "command"),
    [
        (show_estimate, [estimate()], 5, "`strata plan ... --all` lists all 3,000 utterances"),
        (
            show_status,
            [status(dict.fromkeys(BAD.values(), 1))],
            6,
            "`strata status STORE --all` lists all 3,000 reasons",
        ),
        (show_store, [STORE], 50, "`strata inspect STORE --all` lists all 3,000 utterances"),
        (
            show_verification,
            [VERIFICATION, None],
            6,
            "and 2,997 more like these; `strata verify STORE --all` lists all",
        ),
    ],
    ids=["plan", "status", "inspect", "verify"],
)
def test_three_thousand_bad_files_are_a_few_lines(show, arguments, at_most, command) -> None:
    """With the command that prints all, and which does."""
    arguments = [*arguments, False] if show is show_store else arguments
    few = printed(show, *arguments)
    assert len(few) <= at_most
    assert any(command in line for line in few)
    assert max(map(len, few)) < 500
    arguments = arguments[:1] if show is show_store else arguments
    every = printed(show, *arguments, show_all=True)
    assert len(every) >= N_BAD
    texts = "\n".join(every)
    assert all(reason in texts for reason in list(BAD.values())[::500])


def test_quarantined_utterances_come_with_what_to_do() -> None:
    """How to list them, and how to retry them; without any, neither is printed."""
    last = printed(show_status, status({"the file is empty (0 bytes)": 1}))[-1]
    assert last.endswith(
        "`strata inspect STORE --all` names each quarantined utterance; after fixing files, "
        "run `extract` with retry_quarantined=true"
    )
    assert not any("retry" in line for line in printed(show_status, SOUND))


def test_a_verification_counts_the_quarantined() -> None:
    """If there are any; a sound store of none says nothing of them."""
    [line] = printed(show_verification, Verification((), 5, 5, 90, 7, 10**9), None)
    assert line == "5 of 5 units checked, 90 utterances and 7 quarantined, 1.00 GB: sound"
    [line] = printed(show_verification, Verification((), 5, 5, 90, 0, 10**9), None)
    assert line == "5 of 5 units checked, 90 utterances, 1.00 GB: sound"
    assert printed(show_verification, VERIFICATION, None)[-1].endswith("3,000 units DAMAGED")


def test_long_lists_of_a_store_are_cut() -> None:
    """Those of one value a line, too; --all prints them."""
    facts = {"names": list(range(1251)), "layers": [{"layer": i} for i in range(24)]}
    found = printed(show_facts, facts, False)
    assert found[0].startswith("names: [0, 1, ")
    assert found[0].endswith(f", {MAX_ITEMS - 1}, ... and {1251 - MAX_ITEMS:,} more]")
    assert found[2:] == [
        *(f"  layer {i}" for i in range(MAX_ITEMS)),
        "  ... and 4 more; --all lists them",
    ]
    assert len(printed(show_facts, facts, True)) == 2 + 24


@pytest.mark.parametrize(
    ("seconds", "audio", "time"),
    [
        (0.04, "0.0 s", "0.0 s"),
        (59.4, "59.4 s", "59.4 s"),
        (75, "1.25 min", "1 min 15 s"),
        (4500, "1.25 h", "1 h 15 min"),
        (4_500_000, "1,250.00 h", "1250 h 00 min"),
    ],
)
def test_lengths_of_audio_and_of_time(seconds: float, audio: str, time: str) -> None:
    """Each in a unit that fits."""
    assert (hours(seconds), duration(seconds)) == (audio, time)


@pytest.mark.parametrize(
    ("n_bytes", "words"),
    [(0, "0.0 kB"), (322_760, "322.8 kB"), (40_000_000, "40.0 MB"), (33124 * 10**8, "3,312.40 GB")],
)
def test_sizes(n_bytes: int, words: str) -> None:
    """Each in a unit that fits."""
    assert size(n_bytes) == words


def test_the_plan_of_a_small_corpus_is_not_rounded_to_nothing() -> None:
    """A minute of audio and its megabytes are not 0.00."""
    small = Estimate(144, 0, 59.4 / 3600, 1, 2865, 3_300_000, 57_700_000_000, 3072, ())
    [line] = printed(show_estimate, small)
    assert line.startswith("144 utterances, 59.4 s of audio → 1 unit of 3,072 frames")
    assert line.endswith(", 2,865 frames, 3.3 MB on disk (57.70 GB free)")


def test_the_plan_says_what_padding_to_whole_windows_costs() -> None:
    """300 short clips cost 2.5 h with windows of 30 s; clips that fill them cost nothing more."""
    short = Estimate(
        300, 0, 0.04, 1, 7200, 10**6, 10**9, 8192, window_s=30.0, windows=300, encoded_hours=2.5
    )
    line = printed(show_estimate, short)[1]
    assert line == (
        "each utterance is padded to whole windows of 30 s: 300 windows, 2.5 h of encoding "
        "for 0.04 h of audio"
    )
    full = replace(short, hours=2.4)
    assert len(printed(show_estimate, full)) == 1


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({}, "hubert_base, layers 0 to 11, dim 768, float16"),
        (
            {
                "layers": [-1, 1, 2, 4, 5, 6, 7],
                "layer_names": ["conv", *(f"block_{i}" for i in (1, 2, 4, 5, 6)), "final_norm"],
                "storage": {"dtype": "int8", "keep": ["pooled"]},
            },
            "hubert_base, layers conv, 1, 2, 4 to 6, final_norm, dim 768, int8, pooled, without "
            "frames",
        ),
        ({"layers": [-1], "layer_names": ["collapsed"]}, ", layers collapsed, dim 768, float16"),
        ({"layers": [1, 3], "layer_names": ["front", "norm"]}, ", layers front, norm, dim"),
    ],
)
def test_the_first_line_of_a_store_says_what_its_features_are(changes: dict, line: str) -> None:
    """Encoder, layers by name, size of a vector, and dtype."""
    assert line in printed(show_store, STORE | changes, False)[0]
