"""A short form of campaigns/file_systems, and tests of what it notices."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from campaigns.file_systems.kinds import KINDS, Place
from campaigns.file_systems.steps import race
from tests.helpers.forked import Forked


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
def test_a_short_campaign_finds_nothing_wrong() -> None:
    """On ext4, which every machine with loop devices can make; what cannot be made is skipped."""
    program = "from campaigns.file_systems.__main__ import main; raise SystemExit(main())"
    process = Forked(program, "--only=^ext4$", "--kills=1", "--clips=20")
    out, err = process.communicate(300)
    assert process.returncode == 0, out[-2000:] + err[-2000:]
    assert "| ext4 | kills | " in out or "| ext4 | skipped | " in out


def test_the_campaign_sees_a_race_with_two_winners(tmp_path: Path) -> None:
    """Two folders are like two machines that never see each other's files."""
    for name in ("a", "b", "one"):
        (tmp_path / name).mkdir()
    assert race(Place([tmp_path / "one"])) == "one winner in each round"
    apart = race(Place([tmp_path / "a", tmp_path / "b"]), settle_s=0)
    assert apart.startswith("WRONG: round 0 was won by")


def test_kinds_have_names_of_their_own() -> None:
    """`--only` can choose each."""
    names = [kind.name for kind in KINDS]
    assert len(set(names)) == len(names) > 30
