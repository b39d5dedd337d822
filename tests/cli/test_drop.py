"""`strata drop`: what it prints, and that it asks."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import pipeline
from tests.helpers.commands import strata
from tests.helpers.feature_stores import make_store


@pytest.fixture
def store(tmp_path: Path) -> Path:
    make_store(tmp_path / "store", [40, 100, 3, 250, 17, 60], lost=(4,), dim=64)
    return tmp_path / "store"


def test_it_asks_before_it_drops(store: Path) -> None:
    """Without confirm=true: counts, audio, bytes, the values of the condition, and the remedy."""
    where = "where=speaker in ('speaker-1', 'speaker-0') and n_frames > 0"
    asked = strata("drop", str(store), where)
    assert asked.returncode == 0, asked.stderr
    assert "would be dropped: 3 utterances in 2 units, 7.8 s of audio, " in asked.stdout
    assert "  speaker: speaker-0 2, speaker-1 1\n" in asked.stdout
    assert "  ids: utt-0000, utt-0001, utt-0003" in asked.stdout.replace("\n", " ")
    assert "nothing was changed; the same command with confirm=true drops them" in asked.stdout
    assert len(pipeline.open_store(store)) == 5
    done = strata("drop", str(store), where, "confirm=true", "--json")
    answer = json.loads(done.stdout)
    assert (answer["confirmed"], answer["utterances"], answer["hidden"]) == (True, 3, 0)
    assert pipeline.open_store(store).ids == ["utt-0002", "utt-0005"]


def test_layers_and_what_is_left(store: Path) -> None:
    """`inspect` and `status` state what was dropped."""
    before = json.loads(strata("inspect", str(store), "--json").stdout)["storage"]
    done = strata("drop", str(store), "layers=[2]", "confirm=true")
    assert done.returncode == 0, done.stderr
    assert "dropped: layers [2], " in done.stdout
    again = strata("drop", str(store), "layers=[2]", "confirm=true")
    assert "nothing is left to drop" in again.stdout
    ids = store.parent / "ids.txt"
    ids.write_text("utt-0001\nutt-0004\n")
    done = strata("drop", str(store), f"ids={ids}", "confirm=true")
    assert "dropped: 2 utterances in 2 units, 1 of them without features" in done.stdout
    facts = json.loads(strata("inspect", str(store), "--json").stdout)
    assert (facts["layers"], facts["dropped_layers"]) == ([1, 3], [2])
    assert facts["storage"]["bytes"] < before["bytes"] * 2 / 3
    assert "1 quarantined" not in strata("status", str(store)).stdout
    assert "2 dropped," in strata("status", str(store)).stdout
    missing = strata("inspect", str(store), "utt-0001")
    assert missing.returncode == 1
    assert "was dropped from the store" in missing.stderr


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["layers=all"], "layers=all would leave nothing"),
        (["confirm=yes", "layers=[1]"], "expected true or false"),
        (["layer=[1]"], "did you mean layers?"),
        ([], "say what to drop"),
        (["ids=/none/ids.txt"], "cannot be read"),
    ],
)
def test_wrong_settings_are_usage_errors(store: Path, settings: list[str], message: str) -> None:
    """One line with the remedy, and nothing is changed."""
    wrong = strata("drop", str(store), *settings)
    assert wrong.returncode == 2
    assert message in wrong.stderr.replace("\n", " ")
    assert len(pipeline.open_store(store)) == 5
