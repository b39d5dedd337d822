"""Collapse: the weighted sum of the layers of a store, as a store."""

from __future__ import annotations

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

import pipeline
from pipeline.errors import (
    ConfigError,
    DamagedError,
    IdentityError,
    NoSpaceError,
    StoreBusyError,
    StoreError,
)
from pipeline.store.backend import local
from pipeline.store.coordination.lease import Lease
from pipeline.store.format.layout import Layout
from pipeline.store.maintain.status import read_status
from pipeline.store.maintain.verify import verify_store
from pipeline.store.write.slot import SlotWriter
from pipeline.transforms.collapse import COLLAPSED_LAYER
from pipeline.transforms.layer_weights import read_weights
from tests.helpers.feature_stores import (
    commit_units,
    default_columns,
    make_store,
    noise,
    rewrite,
)

LENGTHS = [40, 100, 3, 250, 17, 700, 60, 90, 256, 1]
WEIGHTS = [0.2, 0.5, -0.3]


@pytest.fixture
def parent(tmp_path):
    make_store(tmp_path / "parent", LENGTHS, features=noise, pieces={5: 4}, lost=(6,))
    return tmp_path / "parent"


def shards_of(root):
    """Return the shard and the pooled chunk of every unit, whatever its slot."""
    found = {}
    for path in sorted((root / "index").glob("unit-*.parquet")):
        slot = pq.read_table(path)["slot"][0].as_py()
        chunk = root / f"features.zarr/pooled/c/{slot}/0/0/0"
        shard = root / f"features.zarr/frames/c/0/{slot}/0"
        found[path.name] = (shard.read_bytes(), chunk.read_bytes())
    return found


def test_it_holds_the_weighted_sum_and_verifies(parent, tmp_path):
    """Every utterance is the parent's weighted sum in float16; metadata and quarantine are kept.

    The one layer has a number that no block has.
    """
    done = pipeline.collapse(parent, tmp_path / "out", WEIGHTS)
    source, store = pipeline.open_store(parent), pipeline.open_store(tmp_path / "out")
    assert store.layers == (COLLAPSED_LAYER,)
    assert store.ids == source.ids
    for name in store.ids:
        assert torch.equal(store.read(name)[0], source.weighted_sum(name, WEIGHTS).half())
    assert store.metadata.equals(source.metadata)
    assert store.quarantined.equals(source.quarantined)
    assert store.class_names == source.class_names
    checked = verify_store(tmp_path / "out")
    assert checked.ok, checked.damages
    assert checked.utterances_ok == len(source)
    assert done.units_committed == done.units_total
    assert done.units_waiting == 0
    status = read_status(tmp_path / "out")
    assert status.utterances_ok == len(source)
    assert status.audio_seconds == read_status(parent).audio_seconds
    assert (
        store.pooled()[:, 0] - source.pooled().mul(torch.tensor(WEIGHTS)[:, None]).sum(1)
    ).abs().max() < 1e-2


def test_it_records_its_parent(parent, tmp_path):
    """In identity (parent and weights) and provenance. The final norm is dropped."""
    pipeline.collapse(parent, tmp_path / "out", "average")
    attributes = pipeline.open_store(tmp_path / "out").attributes
    recorded = attributes["identity"]["collapse"]
    assert recorded["layers"] == [1, 2, 3]
    assert np.allclose(recorded["weights"], 1 / 3)
    assert len(recorded["parent_sha256"]) == 64
    assert attributes["identity"]["encoder"] == {"layers": [1, 2, 3]}
    assert attributes["provenance"]["parent"] == {"created": "by hand"}
    assert "final_norm" not in attributes


@pytest.mark.parametrize("step", ["shards", "commit"])
def test_a_resumed_run_ends_with_the_same_bytes(parent, tmp_path, monkeypatch, step):
    """Killed in the third unit, before or after its shards are written: only the rest is redone."""
    pipeline.collapse(parent, tmp_path / "whole", WEIGHTS)
    out = tmp_path / "out"
    calls = []

    def dies(writer, index):
        calls.append(index)
        if len(calls) == 3:
            if step == "commit":
                writer.publish()
            raise KeyboardInterrupt
        return real(writer, index)

    real = SlotWriter.commit
    monkeypatch.setattr(SlotWriter, "commit", dies)
    with pytest.raises(KeyboardInterrupt):
        pipeline.collapse(parent, out, WEIGHTS)
    assert len(shards_of(out)) == 2
    monkeypatch.setattr(SlotWriter, "commit", real)
    done = pipeline.collapse(parent, out, WEIGHTS)
    assert done.units_committed == done.units_total
    assert shards_of(out) == shards_of(tmp_path / "whole")
    assert verify_store(out).ok
    before = {path: path.stat().st_mtime_ns for path in out.rglob("0")}
    pipeline.collapse(parent, out, WEIGHTS)  # complete: nothing is written
    assert {path: path.stat().st_mtime_ns for path in out.rglob("0")} == before


def test_a_rewritten_store_is_left_as_it_is(parent, tmp_path):
    """One that another tool has compressed stays readable; no unit is added to it."""
    out = tmp_path / "out"
    pipeline.collapse(parent, out, WEIGHTS)
    expected = pipeline.open_store(out)[:]
    rewrite(out)
    pipeline.collapse(parent, out, WEIGHTS)
    assert verify_store(out).ok
    found = pipeline.open_store(out, verify=True)[:]
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    (out / "index/unit-1.parquet").unlink()
    with pytest.raises(StoreError, match="in another form"):
        pipeline.collapse(parent, out, WEIGHTS)


def test_a_growing_parent_is_followed(tmp_path):
    """Only committed units of the parent are summed; the next run sums the rest."""
    lengths = [200, 200, 200]
    plan = make_store(tmp_path / "parent", lengths, features=noise, units=[0, 2])
    first = pipeline.collapse(tmp_path / "parent", tmp_path / "out", WEIGHTS)
    assert (first.units_committed, first.units_waiting) == (2, 1)
    layout = Layout((1, 2, 3), 8, plan.frames_per_unit, plan.utterances_per_slot)
    commit_units(tmp_path / "parent", plan, layout, default_columns(3), features=noise, units=[1])
    second = pipeline.collapse(tmp_path / "parent", tmp_path / "out", WEIGHTS)
    assert (second.units_committed, second.units_waiting) == (3, 0)
    assert len(pipeline.open_store(tmp_path / "out")) == 3


def test_other_weights_are_another_store(parent, tmp_path):
    """Other weights are refused, and the message has the difference."""
    pipeline.collapse(parent, tmp_path / "out", WEIGHTS)
    with pytest.raises(IdentityError, match="collapse"):
        pipeline.collapse(parent, tmp_path / "out", "average")
    with pytest.raises(IdentityError):
        pipeline.collapse(tmp_path / "out", parent, [1.0])
    with pytest.raises(ConfigError, match="itself"):
        pipeline.collapse(parent, parent, WEIGHTS)


def test_damage_is_not_copied(parent, tmp_path):
    """A flipped bit in the parent ends the run with the file's name, even with weight 0."""
    shard = parent / "features.zarr/frames/c/0/1/0"
    raw = bytearray(shard.read_bytes())
    raw[5] ^= 1
    shard.write_bytes(raw)
    with pytest.raises(DamagedError, match="frames/c/0/1/0"):
        pipeline.collapse(parent, tmp_path / "out", [0, 0.5, 0.5])


def test_a_sum_beyond_float16_is_quarantined(tmp_path):
    """With the reason; the other utterances have features."""
    make_store(
        tmp_path / "parent",
        [20, 30],
        features=lambda row, layer, n, dim: np.full((n, dim), 60_000 * (row == 1), np.float16),
    )
    pipeline.collapse(tmp_path / "parent", tmp_path / "out", [1.0, 1.0, 1.0])
    store = pipeline.open_store(tmp_path / "out")
    assert store.ids == ["utt-0000"]
    with pytest.raises(KeyError, match=r"1\.8e\+05"):
        store.read("utt-0001")
    assert verify_store(tmp_path / "out").ok


def test_one_driver_at_a_time_and_room_on_the_disk(parent, tmp_path, monkeypatch):
    """A second driver is refused, and so is a run that does not fit."""
    with Lease(tmp_path / "out", "other"), pytest.raises(StoreBusyError):
        pipeline.collapse(parent, tmp_path / "out", WEIGHTS)
    usage = type("Usage", (), {"free": 10, "total": 100})
    monkeypatch.setattr(local.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(NoSpaceError, match="GB"):
        pipeline.collapse(parent, tmp_path / "out", WEIGHTS)


def test_weights_are_read_from_numbers_text_and_files(tmp_path):
    """And from the state of a trained weighted sum, with a softmax."""
    (tmp_path / "w.json").write_text(json.dumps(WEIGHTS))
    np.save(tmp_path / "w.npy", np.array(WEIGHTS))
    torch.save(torch.tensor(WEIGHTS), tmp_path / "w.pt")
    model = torch.nn.Sequential(pipeline.WeightedSum(3), torch.nn.Linear(2, 2))
    with torch.no_grad():
        model[0].scalars.copy_(torch.tensor([0.0, 1.0, 2.0]))
    torch.save(model.state_dict(), tmp_path / "model.pt")
    wanted = tuple(torch.tensor(WEIGHTS).tolist())
    for given in (
        WEIGHTS,
        str(WEIGHTS),
        *(str(tmp_path / f"w.{e}") for e in ("json", "npy", "pt")),
    ):
        assert read_weights(given, 3) == wanted
    learned = torch.tensor([0.0, 1.0, 2.0]).softmax(0)
    assert np.allclose(read_weights(tmp_path / "model.pt", 3), learned)
    assert np.allclose(read_weights([0, 1, 2], 3, softmax=True), learned)
    assert np.allclose(read_weights("average", 4), 0.25)


@pytest.mark.parametrize(
    "wrong", [[1.0, 2.0], [1.0, 2.0, float("nan")], "avrage", "[1, 2", "[[1, 2, 3]]"]
)
def test_weights_that_do_not_fit_are_refused(wrong):
    """Too few, not finite, not a file, not a list."""
    with pytest.raises(ConfigError, match="weights"):
        read_weights(wrong, 3)


def test_a_missing_file_of_weights_is_named():
    """And what else could stand there."""
    with pytest.raises(ConfigError, match=r"weights=mix\.pt: there is no such file; expected aver"):
        read_weights("mix.pt", 3)
