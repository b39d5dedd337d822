"""Short forms of campaigns/fuzz.py and campaigns/first_use.py; the long forms are run by hand."""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

CAMPAIGNS = Path(__file__).parents[2] / "campaigns"


def run(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(CAMPAIGNS / script), *arguments],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "PYTHONPATH": str(CAMPAIGNS.parent)},
    )


@pytest.mark.slow
def test_mutated_files_and_tables_are_read_flagged_or_refused(tmp_path: Path) -> None:
    """No file ends or delays the process, and no sound is missing without a flag."""
    done = run(
        "fuzz.py",
        "--files=123",
        "--tables=45",
        "--seed=5",
        "--extract-every=0",
        f"--keep={tmp_path}",
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    assert "wrong: 0" in done.stdout
    totals = re.findall(r"^all +(\d+) +(\d+) +(\d+)", done.stdout, re.MULTILINE)
    assert [int(total[0]) for total in totals] == [123, 123, 45]
    assert all(int(count) > 10 for total in totals for count in total)  # of each result


def test_a_file_of_the_campaign_can_be_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seed and number give the same bytes, and another seed other ones."""
    monkeypatch.syspath_prepend(str(CAMPAIGNS))
    audio, tables = (importlib.import_module(name) for name in ("fuzz_audio", "fuzz_tables"))
    made = [audio.make_case(seed, 41) for seed in (5, 5, 6)]
    assert (made[0].encoded, made[0].mutation) == (made[1].encoded, made[1].mutation)
    assert made[0].encoded != made[2].encoded
    rows = [tables.make_table(seed, 7).content for seed in (5, 5, 6)]
    assert rows[0] == rows[1] != rows[2]


@pytest.mark.slow
def test_new_processes_plan_with_many_threads() -> None:
    """The threads of each are the first to use the decoders."""
    done = run("first_use.py", "--plans=6", "--files=33")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "6 plans, 0 failed" in done.stdout
