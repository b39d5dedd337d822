"""The cost of padding each clip to a window of fixed length, in words."""

from __future__ import annotations

import pytest

from pipeline.extract.planning.fixed_windows import FixedWindows


@pytest.mark.parametrize(
    ("count", "hours", "line"),
    [
        (120, 1.0, None),  # windows full of audio
        (180, 1.0, None),  # 1.5 times as much
        (181, 1.0, "181 windows, 1.5 h of encoding for 1 h of audio"),
        (2400, 10.0, "2,400 windows, 20 h of encoding for 10 h of audio"),
    ],
)
def test_padding_is_mentioned_if_it_costs_half_as_much_as_the_audio(
    count: int, hours: float, line: str | None
) -> None:
    """Windows of 30 s; below that a user need not know."""
    found = FixedWindows(count, 30.0).describe(hours)
    if line is None:
        assert found is None
    else:
        assert found == f"each utterance is padded to whole windows of 30 s: {line}"
