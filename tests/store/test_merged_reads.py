"""Merged reads: sorted by place on disk, and all requested before the first one is waited for."""

from __future__ import annotations

import os

import numpy as np
import pytest
import torch

import pipeline
from pipeline.store.backend import local
from pipeline.store.backend.local_reader import LocalReader
from pipeline.store.native import mapped
from pipeline.store.read import merged
from tests.helpers.feature_stores import make_store, noise

LENGTHS = [200] * 40
"""One utterance per unit, so that no two of them are adjacent."""


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    path = tmp_path_factory.mktemp("gathering") / "store"
    make_store(path, LENGTHS, features=noise)
    return path


@pytest.fixture
def without_maps(monkeypatch):
    """Files are read by system calls, as on other systems."""
    monkeypatch.setattr(mapped, "MappedFile", None)


@pytest.fixture
def requests(monkeypatch, without_maps):
    """Requests to the system, in order: (kind, file, offset).

    "tried" is a read that does not wait, "fetch" is advice, "read" is a read that waits. No file
    is in memory here.
    """
    entries = []
    read = os.preadv

    def advised(descriptor, offset, length, advice):
        assert advice == os.POSIX_FADV_WILLNEED
        entries.append(("fetch", os.fstat(descriptor).st_ino, offset))

    def asked(descriptor, parts, offset, flags=0):
        entries.append(("tried" if flags else "read", os.fstat(descriptor).st_ino, offset))
        if flags:
            raise BlockingIOError
        return read(descriptor, parts, offset)

    monkeypatch.setattr(local.os, "posix_fadvise", advised)
    monkeypatch.setattr(local.os, "preadv", asked)
    return entries


def test_all_layers_are_asked_for_before_any_is_waited_for(root, requests):
    """So a disk works on all of them; a single read is made directly."""
    store = pipeline.open_store(root)
    assert np.array_equal(store.read(3)[1].numpy(), noise(3, 2, 200, 8))
    assert [what for what, _, _ in requests] == ["tried", "fetch"] * 3 + ["read"] * 3
    requests.clear()
    store.read(3, [2], 10, 60)
    assert [what for what, _, _ in requests] == ["read"]


def test_a_disk_is_asked_for_some_reads_at_a_time(root, requests):
    """Each read is made once, in the order of the requests."""
    found = pipeline.open_store(root).read_many(range(40))
    assert all(np.array_equal(t[2].numpy(), noise(i, 3, 200, 8)) for i, t in enumerate(found))
    places = {what: [place for w, *place in requests if w == what] for what in ("fetch", "read")}
    assert places["fetch"] == places["read"]
    assert len(places["read"]) == 120
    ahead = np.cumsum([{"fetch": 1, "tried": 0, "read": -1}[what] for what, _, _ in requests])
    assert ahead.min() >= 0
    assert ahead.max() == merged._MAX_PENDING


@pytest.mark.skipif(mapped.MappedFile is None, reason="not compiled")
def test_maps_are_asked_for_all_layers_before_any_is_waited_for(root, monkeypatch):
    """Those that are not in memory are fetched by other threads meanwhile."""
    forget(root)
    entries = []

    def log(name):
        method = getattr(LocalReader, name)

        def logged(reader, *arguments):
            entries.append(name)
            return method(reader, *arguments)

        monkeypatch.setattr(LocalReader, name, logged)

    for name in ("read_cached", "prefetch", "read_into"):
        log(name)
    store = pipeline.open_store(root)
    dataset = pipeline.FeatureDataset(store)
    assert np.array_equal(dataset[3].features[1].numpy(), noise(3, 2, 200, 8))
    assert entries == ["read_cached", "prefetch"] * 3 + ["read_into"] * 3
    entries.clear()
    assert np.array_equal(dataset[3].features[1].numpy(), noise(3, 2, 200, 8))
    assert entries == ["read_cached"] * 3


def test_what_is_in_memory_is_copied_at_once(root, monkeypatch, without_maps):
    """Only missing reads are fetched and waited for, each as a whole."""
    store = pipeline.open_store(root)
    wanted = store.read_many(range(8), [1])
    real, waited = os.preadv, []

    def some(descriptor, parts, offset, flags=0):
        slot = store._shards.reader(0, 5).descriptor
        if flags and descriptor == slot:
            return real(descriptor, [parts[0][:7]], offset)
        waited.extend([descriptor] * (not flags))
        return real(descriptor, parts, offset, flags)

    monkeypatch.setattr(local.os, "preadv", some)
    found = store.read_many(range(8), [1])
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))
    assert waited == [store._shards.reader(0, 5).descriptor]


def test_a_weighted_sum_asks_for_all_layers_that_count(root, requests):
    """Layers of weight zero are neither fetched nor read."""
    store = pipeline.open_store(root)
    store.weighted_sum(5, [0.5, 0.0, 2.0])
    assert [what for what, _, _ in requests] == ["fetch"] * 2 + ["read"] * 2


def forget(root):
    """Make the system drop the store's files from memory."""
    for path in root.rglob("*"):
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            os.fdatasync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)


def test_what_is_not_in_memory_is_read_from_the_disk(root):
    """The same values, whether the system had them in memory or not."""
    store = pipeline.open_store(root)
    warm = store[:]
    forget(root)
    assert all(torch.equal(a, b) for a, b in zip(store[:], warm, strict=True))
    forget(root)
    assert torch.equal(store.read(7), warm[7])
    assert np.array_equal(warm[7][1].numpy(), noise(7, 2, 200, 8))


def test_systems_that_take_no_advice_read_the_same(root, requests, monkeypatch):
    """Some systems have no posix_fadvise."""
    wanted = pipeline.open_store(root)[:]
    monkeypatch.delattr(local.os, "posix_fadvise")
    store = pipeline.open_store(root)
    assert all(torch.equal(a, b) for a, b in zip(store[:], wanted, strict=True))
    assert torch.equal(store.read(4), wanted[4])
