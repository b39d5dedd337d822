"""What extracts beside a trainer: other jobs, ranks, and their ends; in this process."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter

import pytest

import pipeline
from pipeline.config.composing import compose_config
from pipeline.errors import IdentityError, RunError, SourceError, StoreBusyError
from pipeline.events import Observer
from pipeline.extract.stop import Stop
from pipeline.online import beside, shares
from pipeline.online.beside import LED, Request, extract_beside
from pipeline.online.completeness import check_settings, is_complete
from pipeline.online.opening import _with_engine
from pipeline.store.backend.opening import open_backend
from pipeline.store.coordination.lease import Lease, live_holder
from pipeline.store.coordination.ledger import read_claims
from pipeline.store.format.layout import SHARES, share_lease_key
from pipeline.store.maintain.verify import verify_store
from tests.helpers.corpus import mixed_lengths, write_folder
from tests.helpers.extraction import INLINE, configured, contents, extract


class Notes(Observer):
    """Keeps the notes."""

    def __init__(self):
        self.lines = []
        self.n_ready = 0

    def note(self, line):
        self.lines.append(line)

    def ready(self):
        self.n_ready += 1

    def planned(self, plan, done, audio_s):
        self.ready()


class Job(threading.Thread):
    """An extraction beside a trainer, in a thread."""

    def __init__(self, config, **options):
        super().__init__(daemon=True)
        self.request = Request(config, **options)
        self.notes, self.stop_request, self.error = Notes(), Stop(), None
        self.start()

    def run(self):
        try:
            extract_beside(self.request, self.notes, self.stop_request, self.notes.ready)
        except Exception as error:  # noqa: BLE001  raised by `finish`
            self.error = error

    def finish(self):
        self.join(60)
        assert not self.is_alive()
        if self.error is not None:
            raise self.error


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("beside") / "clips", mixed_lengths(30))


@pytest.fixture(scope="module")
def reference(clips, tmp_path_factory):
    store = tmp_path_factory.mktemp("reference") / "store"
    extract(clips, store, *INLINE)
    return contents(store)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Look often; make random weights in one thread at a time, as torch has one random state."""
    monkeypatch.setattr(beside, "LOOK_S", 0.05)
    monkeypatch.setattr("pipeline.extract.driver.POLL_S", 0.05)
    load, lock = beside.run._load_encoder, threading.Lock()

    def load_alone(*arguments):
        with lock:
            return load(*arguments)

    monkeypatch.setattr(beside.run, "_load_encoder", load_alone)


def until(condition):
    end_s = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end_s
        time.sleep(0.01)


def test_it_makes_the_store_that_extract_makes(clips, tmp_path, reference):
    """Byte for byte; a complete store is left alone, unless it is to be checked again."""
    config = configured(clips, tmp_path / "store", *INLINE)
    job = Job(config)
    job.finish()
    assert contents(tmp_path / "store") == reference
    log = (tmp_path / "store" / "log.jsonl").read_bytes()
    again = Job(config)
    again.finish()
    assert not again.notes.lines
    write_folder(clips.parent / "more", mixed_lengths(3), first=90)
    assert (tmp_path / "store" / "log.jsonl").read_bytes() == log
    checked = Job(config, recheck=True)
    checked.finish()
    assert checked.notes.n_ready == 1


def test_one_rank_checks_a_complete_store_for_all(clips, tmp_path):
    """The others see that in the run log, also if they come later, and do not wait for a lead."""
    store = tmp_path / "store"
    config = configured(clips, store, *INLINE)
    extract(clips, store, *INLINE)
    other = Job(config, rank=1, world_size=2, recheck=True)
    time.sleep(0.3)
    assert other.is_alive()  # nobody has checked it lately
    Job(config, rank=0, world_size=2, recheck=True).finish()
    other.finish()
    Job(config, rank=1, world_size=2, recheck=True).finish()
    assert (store / "log.jsonl").read_text().count(LED) == 1


def test_a_store_in_use_is_waited_for_and_taken_over(clips, tmp_path, reference):
    """With one line that says so; nothing is extracted while another job holds the store."""
    store = tmp_path / "store"
    with Lease(store, "other"):
        job = Job(configured(clips, store, *INLINE))
        until(lambda: job.notes.lines)
        time.sleep(0.3)
        assert not (store / "plan.parquet").exists()
    job.finish()
    [line] = [line for line in job.notes.lines if "in use" in line]
    assert "(run other): its units are read as they are committed; if it ends before" in line
    assert contents(store) == reference


def test_a_store_that_another_job_completes_is_done(clips, tmp_path, monkeypatch):
    """No encoder is loaded for it."""
    store = tmp_path / "store"
    extract(clips, tmp_path / "other", *INLINE)
    with Lease(store, "other"):
        job = Job(configured(clips, store, *INLINE))
        until(lambda: job.notes.lines)
        assert job.notes.n_ready == 0
        (tmp_path / "other" / "lease.lock").unlink()
        for path in (tmp_path / "other").iterdir():
            path.rename(store / path.name)
        until(lambda: job.notes.n_ready)
    job.finish()
    assert len(job.notes.lines) == 1


def test_a_store_that_cannot_be_held_is_an_error(clips, tmp_path, monkeypatch):
    """It is not tried for ever."""

    def refuse(*_, **__):
        raise StoreBusyError("locked")

    monkeypatch.setattr(beside.run, "extract", refuse)
    job = Job(configured(clips, tmp_path / "store", *INLINE))
    with pytest.raises(StoreBusyError, match="locked"):
        job.finish()


def test_errors_are_those_of_extract(clips, tmp_path):
    """A dataset that is gone, and one that is another."""
    with pytest.raises(SourceError, match="nowhere"):
        Job(configured(tmp_path / "nowhere", tmp_path / "a", *INLINE)).finish()
    extract(clips, tmp_path / "store", *INLINE)
    other = write_folder(tmp_path / "other", mixed_lengths(30, seed=2), first=50)
    with pytest.raises(SourceError, match="are gone from"):
        Job(configured(other, tmp_path / "store", *INLINE), recheck=True).finish()


def test_ranks_extract_their_shares(clips, tmp_path, reference):
    """Every unit once, by the rank of its number; the store is that of one driver."""
    store = tmp_path / "store"
    config = configured(clips, store, *INLINE)
    jobs = [Job(config, rank=rank, world_size=3) for rank in (2, 0, 1)]
    for job in jobs:
        job.finish()
    claims = read_claims(store)
    assert Counter(claim.unit for claim in claims) == Counter(range(len(claims)))
    runs = {}
    for claim in claims:
        runs.setdefault(claim.unit % 3, set()).add(claim.run_id)
    assert [len(found) for found in runs.values()] == [1, 1, 1]
    assert len(set.union(*runs.values())) == 3
    assert contents(store) == reference
    assert verify_store(store).ok
    assert not list(store.glob("lease*.json*")) + list(store.glob(SHARES))


def test_the_leader_takes_over_shares_that_nobody_extracts(clips, tmp_path, reference, monkeypatch):
    """Of a rank that never comes, at once of one that has ended; one that comes late leaves it."""
    store = tmp_path / "store"
    config = configured(clips, store, *INLINE)
    monkeypatch.setattr(shares, "JOIN_S", 1000)
    with Lease(store, "slow", share_lease_key(1)):
        leader = Job(config, rank=0, world_size=2)
        until(lambda: is_half(store))
        time.sleep(0.2)
        assert leader.is_alive()
        assert json.loads((store / SHARES).read_text())["taken"] == []
    leader.finish()
    assert contents(store) == reference
    monkeypatch.setattr(shares, "JOIN_S", 0)
    alone = Job(configured(clips, tmp_path / "b", *INLINE), rank=0, world_size=2)
    alone.finish()
    assert contents(tmp_path / "b") == reference


def is_half(store):
    """Whether the units of rank 0 of 2 are committed, and no others."""
    found = {int(path.stem.partition("-")[2]) for path in store.glob("index/unit-*.parquet")}
    return len(found) > 1 and found == set(range(0, max(found) + 1, 2)) and len(found) >= 3


def test_a_rank_does_not_touch_a_share_that_was_taken_over(clips, tmp_path):
    """It follows the leader instead."""
    store = tmp_path / "store"
    extract(clips, store, *INLINE, "dataset.limit=5")
    backend = open_backend(store)
    with Lease(store, "leader"):
        leader = shares.LeaderShare(backend, 2)
        leader.begin("leader")
        found = shares.announced_shares(backend)
        assert found == shares.Announcement("leader", 2, [])
        member = shares.MemberShare(backend, 1, found)
        member.begin("member")
        leader._begun_s -= 1000
        assert leader.choose([1, 2, 3]) == [2]
        assert leader.choose([1, 3]) == [1, 3]
        with pytest.raises(StoreBusyError, match="taken over the share of rank 1"):
            member.begin("member")
        leader.end()
    with pytest.raises(StoreBusyError, match=r"driver of rank 0 .* has ended"):
        member.check()


def test_a_rank_ends_with_its_leader_and_leads_after_a_while(
    clips, tmp_path, reference, monkeypatch
):
    """If the leader is gone, another rank extracts everything that is left."""
    store = tmp_path / "store"
    config = configured(clips, store, *INLINE)
    monkeypatch.setattr(beside, "LEAD_S", 0.3)
    monkeypatch.setattr(shares, "JOIN_S", 0.2)
    Job(config, rank=1, world_size=2).finish()
    assert contents(store) == reference


def test_settings_are_compared_with_a_complete_store(clips, tmp_path):
    """As far as no weights are needed: model, layers, precision, and the form."""
    store = tmp_path / "store"
    extract(clips, store, *INLINE, "dataset.limit=3")
    backend = open_backend(store)
    assert is_complete(backend)
    assert live_holder(backend) is None
    check_settings(configured(clips, store, *INLINE), backend)
    for override, message in {
        "model=hubert_base": "model",
        "extract.layers=[1,2]": "layers",
        "extract.precision=bf16": "precision",
        "extract.dtype=int8": "extract.dtype is int8, the store has float16",
        "extract.max_window_s=20": "max_window_s",
    }.items():
        with pytest.raises(IdentityError, match=message):
            check_settings(configured(clips, store, *INLINE, override), backend)
    collapsed = tmp_path / "collapsed"
    pipeline.collapse(store, collapsed, weights="average")
    with pytest.raises(IdentityError, match="made by `strata collapse`"):
        check_settings(configured(clips, collapsed, *INLINE), open_backend(collapsed))


def test_units_that_fail_are_an_error(clips, tmp_path, monkeypatch):
    """The one of `strata extract`, with the units."""
    monkeypatch.setattr(
        "pipeline.store.write.slot.SlotWriter.publish", lambda self: 1 / 0, raising=True
    )
    config = configured(clips, tmp_path / "store", *INLINE, "run.max_attempts=1")
    with pytest.raises(RunError, match="units failed in every attempt"):
        Job(config).finish()


@pytest.mark.parametrize(
    ("overrides", "settings", "kind", "threads"),
    [
        ((), {}, "inline", None),
        ((), {"engine": {"threads": 2}}, "inline", 2),
        (("engine.threads=3",), {}, "inline", 3),
        (("engine=ray",), {"engine": {"threads": 2}}, "ray", 2),
        ((), {"engine": "ray"}, "ray", None),
        ((), {"engine": {"kind": "ray"}}, "ray", None),
    ],
)
def test_the_engine_is_inline_unless_another_is_chosen(overrides, settings, kind, threads):
    """Also if other settings of the engine are given, which do not start Ray."""
    engine = compose_config(overrides, _with_engine(overrides, settings)).engine
    assert (engine.kind, engine.threads) == (kind, threads)
