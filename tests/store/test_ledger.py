"""Claims on slots: exclusive, and counted across drivers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import DamagedError, StoreError
from pipeline.store.coordination.ledger import Ledger, read_claims
from pipeline.store.format.layout import ledger_key
from tests.helpers.fake_store import MEET, FakeStore
from tests.helpers.forked import Forked, finish

NOW = "2025-01-01T00:00:00.000+00:00"


def test_first_attempts_take_their_own_slot_and_later_ones_a_spare(tmp_path: Path) -> None:
    """Slot k for the first attempt at unit k, then fresh slots behind all others."""
    ledger = Ledger.open(tmp_path, 3)
    claims = [ledger.claim(unit, "r", "w", NOW) for unit in (1, 1, 0, 2, 1)]
    assert [(c.unit, c.slot, c.attempt) for c in claims] == [
        (1, 1, 1),
        (1, 3, 2),
        (0, 0, 1),
        (2, 2, 1),
        (1, 4, 3),
    ]
    assert ledger.n_slots == 5
    assert read_claims(tmp_path) == sorted(claims, key=lambda c: c.slot)


@given(st.lists(st.integers(0, 4), max_size=25), st.integers(1, 3))
def test_no_slot_is_claimed_twice(tmp_path_factory: pytest.TempPathFactory, units, batch) -> None:
    """For any claims, by several drivers one after the other, while the plan grows."""
    root = tmp_path_factory.mktemp("store")
    slots = []
    for i, unit in enumerate(units):
        if i % batch == 0:
            ledger = Ledger.open(root, 3)
        ledger.grow(max(3, unit + 1))
        expected = units[: i + 1].count(unit)
        claim = ledger.claim(unit, "r", "w", NOW)
        assert claim.attempt == expected == ledger.attempts(unit)
        assert claim.slot < ledger.n_slots
        slots.append(claim.slot)
    assert len(set(slots)) == len(slots)


def test_attempts_survive_the_driver(tmp_path: Path) -> None:
    """A new driver continues the count from the ledger."""
    Ledger.open(tmp_path, 2).claim(1, "first", "w", NOW)
    again = Ledger.open(tmp_path, 2)
    assert (again.attempts(0), again.attempts(1)) == (0, 1)
    assert again.claim(1, "second", "w", NOW).slot == 2


RACE = (
    MEET
    + """
import sys
from pathlib import Path
from pipeline.errors import StoreError
from pipeline.store.coordination.ledger import Ledger
root, me, rounds = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
ledger = Ledger(root, (), rounds)
for i in range(rounds):
    meet(root, i, me, 2)
    try:
        ledger.claim(i, f"run-{me}", "w", "now")
        print(1)
    except StoreError as error:
        assert "claimed by another driver" in str(error)
        print(0)
"""
)


def test_of_two_racing_drivers_one_gets_the_slot(tmp_path: Path) -> None:
    """The other one gets an error; the claim names the winner."""
    rounds = 100
    racers = [Forked(RACE, tmp_path, me, rounds) for me in (0, 1)]
    won = [finish(racer).split() for racer in racers]
    claims = read_claims(tmp_path)
    for i in range(rounds):
        assert {won[0][i], won[1][i]} == {"0", "1"}
        assert claims[i].run_id == f"run-{won[1][i]}"


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "{}", '{"slot": 1}', "slot 4 under the name of slot 0"]
)
def test_an_unreadable_claim_is_refused_with_its_name(tmp_path: Path, content: str) -> None:
    """An unreadable claim may belong to an attempt, so the run stops."""
    Ledger.open(tmp_path, 5).claim(4, "r", "w", NOW)
    path = tmp_path / ledger_key(0)
    if content.startswith("slot"):
        content = (tmp_path / ledger_key(4)).read_text()
    path.write_text(content)
    with pytest.raises(DamagedError, match=r"slot-0\.json"):
        Ledger.open(tmp_path, 5)


def test_other_files_in_the_ledger_are_skipped(tmp_path: Path) -> None:
    """Half-written files of a crash and notes of users do not count."""
    Ledger.open(tmp_path, 1).claim(0, "r", "w", NOW)
    for name in ("slot-1.json.abc.partial", "slot-x.json", "notes.txt"):
        (tmp_path / "ledger" / name).write_text("?")
    assert [claim.slot for claim in read_claims(tmp_path)] == [0]


def test_a_claim_is_plain_json(tmp_path: Path) -> None:
    """With slot, unit, attempt, run, worker and time."""
    Ledger.open(tmp_path, 1).claim(0, "run-7", "actor-2", NOW)
    assert json.loads((tmp_path / ledger_key(0)).read_text()) == {
        "slot": 0,
        "unit": 0,
        "attempt": 1,
        "run_id": "run-7",
        "worker": "actor-2",
        "time": NOW,
    }


def test_a_slot_with_data_is_never_claimed_again(store: FakeStore) -> None:
    """Removing a damaged claim must not let an attempt overwrite a committed slot."""
    n_units = store.plan.n_units
    store.path(ledger_key(n_units - 1)).unlink()
    ledger = Ledger.open(store.root, n_units)
    assert ledger.claim(n_units - 1, "r", "w", NOW).slot == n_units


def test_an_unwritable_ledger_is_a_store_error(tmp_path: Path) -> None:
    """It stops the run with one line."""
    (tmp_path / "ledger").write_text("in the way")
    with pytest.raises(StoreError, match=r"slot-0\.json"):
        Ledger(tmp_path, (), 1).claim(0, "r", "w", NOW)
