"""A short form of campaigns/bit_flips.py: no flipped bit of any file of a store goes unnoticed."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest

from pipeline.store.maintain.verify import Verification

SCRIPT = Path(__file__).parents[2] / "campaigns" / "bit_flips.py"
_spec = importlib.util.spec_from_file_location("bit_flips", SCRIPT)
assert _spec is not None
assert _spec.loader is not None
bit_flips = importlib.util.module_from_spec(_spec)
sys.modules["bit_flips"] = bit_flips  # dataclasses look their module up
_spec.loader.exec_module(bit_flips)


@pytest.fixture(scope="module")
def readers(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    """Readers of a store in memory, the same in a folder, and others: files of all kinds."""
    stores = bit_flips.make_stores(tmp_path_factory.mktemp("flips"))
    kinds = {bit_flips.kind_of(key) for store in stores for key in store.list()}
    assert kinds == set(bit_flips.KINDS)
    return [bit_flips.Readers(store) for store in stores]


@pytest.mark.parametrize("kind", bit_flips.KINDS)
def test_no_damage_goes_unnoticed(readers: list[Any], kind: str) -> None:
    """Nothing that a reader returns changes, or an error or a report names the file."""
    tally = bit_flips.campaign(readers, 20, 11, [kind])
    assert tally.faults == []
    assert sum(tally.counts.values()) == 20
    assert {name for name, _, _ in tally.counts} == {kind}


def test_what_nothing_reports_is_a_fault(
    readers: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The campaign itself sees what readers return: without `verify` damage goes unnoticed."""
    sound = Verification((), 1, 1, 1, 0, 1)
    monkeypatch.setattr(bit_flips, "verify_store", lambda store: sound)
    tally = bit_flips.campaign(readers, 12, 0, ["array zarr.json"])
    assert len(tally.faults) >= 8
    assert all(fault.startswith("UNNOTICED") for fault in tally.faults)
    assert "UNNOTICED" in tally.table()


def test_a_seed_repeats_a_campaign(readers: list[Any]) -> None:
    """Try by try, so that a fault can be looked at."""
    first, second = (bit_flips.campaign(readers, 5, 5, ["shard"]) for _ in range(2))
    assert first.counts == second.counts
