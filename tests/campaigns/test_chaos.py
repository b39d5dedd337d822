"""A short form of campaigns/chaos; the long form is run by hand."""

from __future__ import annotations

import ast
import importlib.util
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

import pipeline
from pipeline.store.coordination.ledger import Ledger
from pipeline.store.coordination.run_log import RunLog, now
from pipeline.store.format.layout import index_key
from tests.helpers.corpus import mixed_lengths, write_folder
from tests.helpers.fake_store import FakeStore, make_store

SCRIPT = Path(__file__).parents[2] / "campaigns" / "chaos.py"
_spec = importlib.util.spec_from_file_location("chaos_checks", SCRIPT.with_name("chaos_checks.py"))
assert _spec is not None
assert _spec.loader is not None
checks = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(checks)


@pytest.mark.ray
@pytest.mark.slow
def test_a_short_campaign_loses_nothing(tmp_path: Path) -> None:
    """Real drivers, workers and nodes are killed; the store ends equal to an undisturbed one."""
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


def test_the_campaign_looks_for_messages_that_exist() -> None:
    """A message that is worded anew must be changed in the campaign, too."""
    texts = [
        node.value
        for path in Path(pipeline.__file__).parent.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    ]
    constants = {
        target.id: ast.literal_eval(node.value)
        for name in ("chaos.py", "chaos_checks.py")
        for node in ast.parse(SCRIPT.with_name(name).read_text()).body
        if isinstance(node, ast.Assign)
        for target in node.targets
    }
    expected = [*constants["CONTRADICTIONS"], constants["REFUSED"], *constants["ENDED"]]
    for words in [*expected, *constants["NO_OWNER"]]:
        assert any(words in text for text in texts), words


@pytest.fixture
def finished(tmp_path: Path) -> FakeStore:
    """A store of three units, and the log of one run."""
    store = make_store(tmp_path / "s", [300, 300, 300])
    RunLog(store.root, "first").write("run_started")
    return store


def claim(store: FakeStore, run_id: str) -> None:
    Ledger.open(store.root, 3).claim(1, run_id, "ray", now())


def without_old_claims(found: list[str]) -> list[str]:
    """Leave out the claims of `make_store`, which come before any run."""
    return [line for line in found if not line.startswith("run run ")]


def test_the_campaign_sees_two_drivers_in_log_and_ledger(finished: FakeStore) -> None:
    """A run that logs or claims after the next has started is found; runs in turn are not."""
    claim(finished, "first")
    time.sleep(0.002)
    RunLog(finished.root, "second").write("run_started")
    time.sleep(0.002)
    claim(finished, "second")
    assert without_old_claims(checks.overlaps(finished.root)) == []
    claim(finished, "first")
    assert without_old_claims(checks.overlaps(finished.root)) == [
        "run first claimed slot 5 during another run"
    ]
    RunLog(finished.root, "first").write("unit_committed")
    assert "run first continued after run second had started" in checks.overlaps(finished.root)[0]


@pytest.mark.parametrize("damage", ["half-written", "dead attempt", "flipped bit", "lost unit"])
def test_the_campaign_sees_what_a_driver_left(finished: FakeStore, damage: str) -> None:
    """Garbage, damage and gaps are counted before a repair removes them."""
    undisturbed = checks.contents(finished.root)
    assert checks.compare(finished.root, undisturbed) == []
    shard = finished.path(finished.layout.shard_key(0, 1))
    if damage == "half-written":
        shard.with_name(f"0.{'ab' * 16}.partial").write_bytes(b"half")
    elif damage == "dead attempt":
        slot = finished.claim(1)
        orphan = finished.path(finished.layout.shard_key(0, slot))
        orphan.parent.mkdir(parents=True)
        orphan.write_bytes(b"orphan")
    elif damage == "flipped bit":
        raw = bytearray(shard.read_bytes())
        raw[9] ^= 1
        shard.write_bytes(raw)
    else:
        finished.path(index_key(1)).unlink()
    assert checks.compare(finished.root, undisturbed) != []
