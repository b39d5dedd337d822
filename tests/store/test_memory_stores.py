"""Stores that never touch a file system: extraction, leases, records of failures, collapse."""

from __future__ import annotations

from pathlib import Path

import pytest

import pipeline
from pipeline.config import load_config
from pipeline.errors import StoreBusyError, StoreError
from pipeline.extract import run
from pipeline.store.backend.memory import MemoryBackend
from pipeline.store.backend.opening import open_backend
from pipeline.store.coordination.lease import Lease, live_holder
from pipeline.store.coordination.run_log import read_log
from pipeline.store.coordination.worker_failures import UtteranceMarker, take_marker
from pipeline.store.format.layout import INDEX_CACHE, LEASE_LOCK, LOG, PLAN
from pipeline.store.index_cache import read_cache
from pipeline.store.maintain.inspection import describe_store
from pipeline.store.maintain.status import read_status
from pipeline.store.maintain.verify import verify_store
from tests.helpers.backends import contents, in_memory
from tests.helpers.corpus import mixed_lengths, write_folder
from tests.helpers.extraction import overrides


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("audio") / "clips", mixed_lengths(6))


def test_extraction_to_memory_writes_the_same_store(folder: Path, tmp_path: Path) -> None:
    """Features, index and plan have the same bytes as in a folder; nothing is written to disk.

    The index cache has the same rows; it also names the files that they are from.
    """
    settings = overrides(folder, tmp_path / "s", "engine=inline", "engine.threads=1")
    config = load_config(settings)
    backend = MemoryBackend()
    status = run.extract(config, backend=backend)
    assert not (tmp_path / "s").exists()
    assert (status.utterances_ok, status.units_committed) == (6, status.units_total)
    assert verify_store(backend).ok
    run.extract(config)
    written, local = contents(backend), contents(in_memory(tmp_path / "s"))
    dated = [key for key in written if key.endswith((".json", LOG, INDEX_CACHE))]
    assert local.keys() - written.keys() == {LEASE_LOCK}
    assert written.keys() <= local.keys()
    assert [key for key in written if written[key] != local[key] and key not in dated] == []
    assert PLAN not in dated
    caches = [read_cache(stored) for stored in (backend, open_backend(tmp_path / "s"))]
    assert caches[0].table.equals(caches[1].table)
    assert run.extract(config, backend=backend).units_committed == status.units_total  # resumed
    committed = sum(event["event"] == "unit_committed" for event in read_log(backend))
    assert committed == status.units_total


def test_a_store_in_memory_has_no_folder(store) -> None:
    """`root` raises an error; everything else works."""
    opened = pipeline.open_store(in_memory(store.root))
    with pytest.raises(StoreError, match=r"memory://.* is not in a folder"):
        _ = opened.root
    assert describe_store(opened) == describe_store(pipeline.open_store(store.root))


def test_collapse_from_memory_to_memory(store) -> None:
    """With the features of the weighted sum."""
    parent, out = in_memory(store.root), MemoryBackend()
    done = pipeline.collapse(parent, out, [0.25, -1.0, 0.5])
    assert (done.units_committed, done.units_waiting) == (5, 0)
    opened, source = pipeline.open_store(out), pipeline.open_store(parent)
    expected = source.weighted_sum(4, [0.25, -1.0, 0.5]).half()
    assert (opened.read(4)[0] == expected).all()
    assert verify_store(out).ok
    assert read_status(out).utterances_ok == 10


def test_one_driver_at_a_time() -> None:
    """A second lease is refused while the first is held."""
    backend = MemoryBackend()
    with Lease(backend, "first") as lease:
        lease.check()
        holder = live_holder(backend)
        assert holder is not None
        assert holder.run_id == "first"
        with pytest.raises(StoreBusyError, match="run first"), Lease(backend, "second"):
            pass
    with Lease(backend, "second"):
        pass
    assert live_holder(backend) is None


def test_the_marker_of_an_isolated_attempt_outlives_an_error() -> None:
    """Its utterance is found afterwards; the marker of an attempt that ends well is removed."""
    backend = MemoryBackend()

    def fail() -> None:
        with UtteranceMarker(backend, 3) as marker:
            marker.set(7, "clip-7")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert take_marker(backend, 3) == (7, "clip-7", "")
    assert take_marker(backend, 3) == (None, None, "")
    with UtteranceMarker(backend, 4) as marker:
        marker.set(8, "clip-8")
    assert contents(backend) == {}
