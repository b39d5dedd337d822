"""The exact cover of a corpus by units."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import StoreError
from pipeline.store.documents import read_plan, write_plan
from pipeline.store.format.layout import Layout
from pipeline.store.format.plan import (
    DEFAULT_FRAMES_PER_UNIT,
    FRAMES_PER_POOLED_UTTERANCE,
    Plan,
    choose_frames_per_unit,
    make_batches,
    make_plan,
)
from pipeline.store.serialization import parquet_bytes
from tests.helpers.fake_store import plan_rows

corpora = st.lists(st.integers(0, 3_000), max_size=80)
capacities = st.integers(1, 2_000)


def greedy(lengths: list[int], capacity: int) -> list[list[int]]:
    """Return units as lists of row numbers: the reference implementation."""
    most = max(1, capacity // FRAMES_PER_POOLED_UTTERANCE)
    units: list[list[int]] = []
    used = 0
    for row, length in enumerate(lengths):
        size = 0 if length > capacity else length
        if not units or used + size > capacity or len(units[-1]) == most:
            units.append([])
            used = 0
        units[-1].append(row)
        used += size
    return units


def check_cover(plan: Plan, lengths: list[int]) -> None:
    """Assert that a plan covers the rows exactly once, in order, within its capacity."""
    assert plan.table["row"].to_pylist() == list(range(len(lengths)))
    assert plan.table["n_frames"].to_pylist() == lengths
    rows: list[int] = []
    for unit in range(plan.n_units):
        part = plan.unit_rows(unit)
        assert len(part) > 0
        assert part["position"].to_pylist() == list(range(len(part)))
        assert set(part["unit"].to_pylist()) == {unit}
        fitting = [n for n in part["n_frames"].to_pylist() if n <= plan.frames_per_unit]
        assert sum(fitting) <= plan.frames_per_unit
        assert len(part) <= plan.utterances_per_slot
        rows += part["row"].to_pylist()
    assert rows == list(range(len(lengths)))
    assert plan.frames_per_unit % 256 == 0


@given(corpora, capacities)
def test_a_plan_is_an_exact_cover_in_order(lengths: list[int], capacity: int) -> None:
    """Every utterance is in one unit; units are consecutive, not empty, and within capacity."""
    plan = make_plan(plan_rows(lengths), {}, capacity)
    assert capacity <= plan.frames_per_unit < capacity + 256
    check_cover(plan, lengths)
    expected = greedy(lengths, plan.frames_per_unit)
    assert [plan.unit_rows(u)["row"].to_pylist() for u in range(plan.n_units)] == expected
    fullest = max(map(len, expected), default=1)
    assert plan.utterances_per_slot == max(fullest, plan.frames_per_unit // 512)


def test_clips_after_whole_recordings_fill_their_units() -> None:
    """Two recordings of 19 minutes, then 1,000 clips of 5 s, take nine units, not 500."""
    plan = make_plan(plan_rows([57_000, 57_000]), {}, 59_904)
    grown = plan.extended(plan_rows([249] * 1_000, first=2))
    assert grown.n_units == 2 + 9
    layout = Layout(tuple(range(1, 13)), 768, grown.frames_per_unit, grown.utterances_per_slot)
    assert layout.pooled_bytes <= layout.slot_bytes / 256


@given(st.lists(st.integers(0, 60_000), max_size=40) | st.lists(st.integers(1, 600), max_size=400))
def test_the_chosen_capacity_is_the_smallest_sufficient_one(lengths: list[int]) -> None:
    """At most 20 minutes, enough for every utterance of up to that, and not smaller."""
    array = np.array(lengths, np.int64)
    chosen = choose_frames_per_unit(array)
    assert chosen <= DEFAULT_FRAMES_PER_UNIT
    if max(lengths, default=0) > DEFAULT_FRAMES_PER_UNIT:
        assert chosen == DEFAULT_FRAMES_PER_UNIT
        return
    wanted = max(1, len(greedy(lengths, DEFAULT_FRAMES_PER_UNIT)), min(8, sum(lengths) // 6_144))
    longest = max(lengths, default=1)
    assert longest <= chosen
    for capacity in range(256, DEFAULT_FRAMES_PER_UNIT + 1, 256):
        if capacity >= longest and len(greedy(lengths, capacity)) <= wanted:
            assert chosen == capacity
            return
    assert chosen == DEFAULT_FRAMES_PER_UNIT


@given(corpora, corpora, capacities)
def test_extending_keeps_existing_units(old: list[int], new: list[int], capacity: int) -> None:
    """New rows get new units at the end; old units keep number, rows and positions."""
    before = make_plan(plan_rows(old), {"a": 1}, capacity)
    after = before.extended(plan_rows(new, first=len(old)))
    check_cover(after, old + new)
    assert after.table.slice(0, len(old)).equals(before.table)
    assert after.n_units >= before.n_units
    assert (after.frames_per_unit, after.source) == (before.frames_per_unit, before.source)
    assert all(unit >= before.n_units for unit in after.table["unit"].to_pylist()[len(old) :])


@given(corpora, capacities)
def test_a_plan_survives_its_file(lengths: list[int], capacity: int) -> None:
    """plan.parquet has the plan, its capacities and the source fingerprint."""
    plan = make_plan(plan_rows(lengths), {"fingerprint": "ü", "n": 3}, capacity)
    again = Plan.from_arrow(plan.to_arrow())
    assert again == plan
    assert again.table.schema.equals(plan.table.schema)


@pytest.mark.parametrize(
    "folder", ["split=train", "a b", "_hidden", ".hidden", "50%", "x#y?z", "ü:"]
)
def test_a_plan_is_read_from_any_folder(tmp_path: Path, folder: str) -> None:
    """The store's path does not change the plan (some Parquet readers parse `key=value`)."""
    plan = make_plan(plan_rows([1, 2, 300]), {}, 256)
    write_plan(tmp_path / folder, plan)
    assert read_plan(tmp_path / folder) == plan


def test_no_plan_is_none(tmp_path: Path) -> None:
    """Of a store that was not planned yet."""
    assert read_plan(tmp_path) is None


@pytest.mark.parametrize("damage", ["cut", "empty", "flip", "foreign", "version", "columns"])
def test_a_changed_plan_is_refused(tmp_path: Path, damage: str) -> None:
    """A truncated, flipped, foreign or newer plan is one clear error."""
    plan = make_plan(plan_rows([10, 20, 30]), {}, 256)
    write_plan(tmp_path, plan)
    path = tmp_path / "plan.parquet"
    raw = bytearray(path.read_bytes())
    table = plan.to_arrow()
    if damage == "cut":
        path.write_bytes(raw[:-9])
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "flip":
        raw[len(raw) // 2] ^= 4
        path.write_bytes(raw)
    elif damage == "foreign":
        path.write_bytes(parquet_bytes(pa.table({"a": [1]})))
    elif damage == "version":
        text = table.schema.metadata[b"strata"].replace(
            b'"format_version": 1', b'"format_version": 2'
        )
        path.write_bytes(parquet_bytes(table.replace_schema_metadata({b"strata": text})))
    else:
        path.write_bytes(parquet_bytes(table.drop_columns(["n_bytes"])))
    with pytest.raises(StoreError, match=r"plan\.parquet"):
        read_plan(tmp_path)


@given(st.lists(st.integers(0, 900), min_size=1, max_size=60), st.integers(1, 3_000))
def test_batches_partition_a_unit_and_respect_the_budget(lengths: list[int], most: int) -> None:
    """Consecutive clips, within the budget or alone, and no two batches fit into one."""
    batches = make_batches(np.array(lengths), most)
    assert [i for batch in batches for i in batch] == list(range(len(lengths)))
    totals = [sum(lengths[i] for i in batch) for batch in batches]
    for batch, total in zip(batches, totals, strict=True):
        assert len(batch) == 1 or total <= most
    for total, following in zip(totals, batches[1:], strict=False):
        assert total + lengths[following[0]] > most


def test_a_deferred_utterance_is_counted_once() -> None:
    """An utterance of two units is one utterance, with its true duration."""
    plan = make_plan(plan_rows([50, 60]), {}, 256)
    again = plan_rows([50, 90]).slice(1)
    plan = plan.extended(again)
    assert plan.n_units == 2
    assert plan.n_utterances == 2
    assert plan.audio_seconds(16_000) == pytest.approx((320 * (50 + 90) + 160) / 16_000)
