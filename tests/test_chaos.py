"""A short form of the campaign in scripts/chaos; the long one is run by hand."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from tests.corpus import mixed_lengths, write_folder

SCRIPT = Path(__file__).parent.parent / "scripts" / "chaos.py"


def test_a_short_campaign_loses_nothing(tmp_path: Path) -> None:
    """Real drivers, workers and nodes die; the store ends equal to an undisturbed one."""
    folder = write_folder(tmp_path / "clips", mixed_lengths(60))
    command = [str(SCRIPT), str(folder), "--faults=10", "--runs=1", "--seed=3", "--disk-mb=60"]
    done = subprocess.run(
        [sys.executable, *command, "--pause-s=0.4"],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "PYTHONPATH": str(SCRIPT.parent.parent)},
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert re.search(r"^1\d+ faults in 1 runs", done.stdout, re.MULTILINE)
    assert "losses: 0" in done.stdout
    assert "unclean ends: 0" in done.stdout
