"""A short form of campaigns/file_systems, and tests of what it notices."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from campaigns.file_systems.kinds import KINDS, Place
from campaigns.file_systems.steps import race

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
def test_a_short_campaign_finds_nothing_wrong() -> None:
    """On ext4, which every machine with loop devices can make; what cannot be made is skipped."""
    words = ["-m", "campaigns.file_systems", "--only=^ext4$", "--kills=1", "--clips=20"]
    done = subprocess.run(
        [sys.executable, *words], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert "| ext4 | kills | " in done.stdout or "| ext4 | skipped | " in done.stdout


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
