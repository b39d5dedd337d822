"""Statistics of all frames that a store keeps: when they are used, and when they are not."""

from __future__ import annotations

import warnings

import numpy as np
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

import pipeline
from pipeline.cli.app import app
from pipeline.errors import StoreError
from pipeline.feed.frames.measuring import keep_statistics, store_statistics
from pipeline.store.documents import layout_of, read_attributes
from pipeline.store.format.codecs import INT8
from pipeline.store.format.layout import FRAME_STATISTICS
from pipeline.store.maintain.repair import repair_store
from pipeline.store.maintain.verify import verify_store
from tests.helpers.feature_stores import commit_units, default_columns, make_store, noise


def frames_of(store):
    """Return all frames, float64 [n, n_layers, dim]."""
    return np.concatenate([x.double().numpy() for x in store[:]], axis=1).swapaxes(0, 1)


def check(found, store):
    """Compare statistics with NumPy's."""
    x = frames_of(store)
    assert found.n_frames == len(x)
    assert np.allclose(found.mean, x.mean(0), atol=1e-6)
    assert np.allclose(found.std, x.std(0), rtol=1e-5)
    assert np.allclose(found.norm, np.linalg.norm(x, axis=2).mean(0), rtol=1e-6)


def quietly(store):
    """Return the statistics of a store; a warning that they are computed is an error."""
    with warnings.catch_warnings(action="error"):
        return store_statistics(store)


def test_the_command_keeps_them(tmp_path):
    """`strata layers` writes them on request only; then nothing is computed again."""
    make_store(tmp_path / "s", [30, 40, 50], features=noise)
    store = pipeline.open_store(tmp_path / "s")
    arguments = ["layers", str(tmp_path / "s"), f"out={tmp_path / 'out'}"]
    assert CliRunner().invoke(app, arguments).exit_code == 0
    assert not (tmp_path / "s" / FRAME_STATISTICS).exists()
    done = CliRunner().invoke(app, [*arguments, "frame_statistics=true"])
    assert done.exit_code == 0
    assert "reading all 120 frames of 3 layers" in done.stderr
    check(quietly(store), store)
    check(quietly(store.select("n_frames > 30")), store)
    again = CliRunner().invoke(app, [*arguments, "frame_statistics=true"])
    assert "keeps the statistics of its 120 frames already" in again.stderr
    wrong = CliRunner().invoke(app, [*arguments, "frame_statistics=yes"])
    assert "frame_statistics is 'yes'; expected true or false" in wrong.stderr
    report = verify_store(tmp_path / "s")
    assert report.ok
    assert not report.orphans


def test_a_store_that_has_grown_has_stale_ones(tmp_path):
    """They are computed again, with a warning, and can be kept again."""
    plan = make_store(tmp_path / "s", [200] * 4, features=noise, units=[0])
    keep_statistics(pipeline.open_store(tmp_path / "s"))
    check(quietly(pipeline.open_store(tmp_path / "s")), pipeline.open_store(tmp_path / "s"))
    layout = layout_of(read_attributes(tmp_path / "s"))
    rest = range(1, plan.n_units)
    commit_units(tmp_path / "s", plan, layout, default_columns(4), features=noise, units=rest)
    grown = pipeline.open_store(tmp_path / "s")
    with pytest.warns(UserWarning, match="keeps no statistics of its present frames"):
        check(store_statistics(grown), grown)
    keep_statistics(grown)
    check(quietly(grown), grown)


def test_those_of_several_stores_are_joined(tmp_path):
    """Each store keeps its own."""
    make_store(tmp_path / "a", [30, 40], features=noise)
    make_store(tmp_path / "b", [200], features=lambda *of: 3 * noise(*of), ids=["x"])
    both = pipeline.open_store([tmp_path / "a", tmp_path / "b"])
    keep_statistics(both)
    check(quietly(both), both)


def test_damaged_ones_are_computed_again(tmp_path):
    """Readers say so, `verify` reports them, a repair removes them."""
    make_store(tmp_path / "s", [30, 40, 50], features=noise)
    store = pipeline.open_store(tmp_path / "s")
    keep_statistics(store)
    path = tmp_path / "s" / FRAME_STATISTICS
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)
    with pytest.warns(
        UserWarning, match=r"damaged statistics .*frame_statistics.parquet has a wrong"
    ):
        check(store_statistics(store), store)
    (orphan,) = verify_store(tmp_path / "s").orphans
    assert (orphan.path, orphan.is_garbage) == (FRAME_STATISTICS, True)
    assert "readers compute them again" in orphan.what
    notes = []
    keep_statistics(store, notes.append)
    assert "the statistics are computed again" in notes[0]
    check(quietly(store), store)
    path.write_bytes(raw)
    assert [item.path for item in repair_store(tmp_path / "s").removed] == [FRAME_STATISTICS]
    assert not path.exists()


def test_they_are_those_of_the_form_that_is_read(tmp_path):
    """Of int8 features as they are decoded; a store without frames has none."""
    make_store(tmp_path / "s", [30, 40, 50], features=noise, codec=INT8)
    store = pipeline.open_store(tmp_path / "s")
    check(pipeline.frame_statistics(store), store)
    make_store(tmp_path / "pooled", [30], keep=("pooled",))
    with pytest.raises(StoreError, match="keeps no frames"):
        keep_statistics(pipeline.open_store(tmp_path / "pooled"))


def test_the_file_is_readable_by_others(tmp_path):
    """Parquet, a row for each layer."""
    make_store(tmp_path / "s", [30], features=noise)
    store = pipeline.open_store(tmp_path / "s")
    keep_statistics(store)
    table = pq.read_table(tmp_path / "s" / FRAME_STATISTICS)
    assert table.column_names == ["layer", "norm", "mean", "std"]
    assert table["layer"].to_pylist() == [1, 2, 3]
    assert np.allclose(table["mean"].to_pylist(), frames_of(store).mean(0), atol=1e-6)
