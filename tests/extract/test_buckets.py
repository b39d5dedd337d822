"""Extraction into a bucket: the features of a local run, whatever happens on the way."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

import pipeline
from pipeline.errors import StoreBusyError, StoreError, UnansweredError
from pipeline.events import Observer
from pipeline.extract import run
from pipeline.extract.encoder_setup import resolve_encoder_setup
from pipeline.extract.messages import Job, UnitTask
from pipeline.extract.worker import UnitReport, Worker
from pipeline.objects import client as client_module
from pipeline.objects import requests as requests_module
from pipeline.objects.requests import Limits
from pipeline.store import index as index_files
from pipeline.store.backend.opening import open_backend
from pipeline.store.coordination.ledger import Ledger, read_claims
from pipeline.store.coordination.run_history import read_history
from pipeline.store.documents import layout_of, read_attributes, read_plan
from pipeline.store.format.layout import ledger_key
from pipeline.store.maintain.repair import repair_store
from pipeline.store.maintain.verify import verify_store
from tests.helpers.corpus import mixed_lengths, write_folder
from tests.helpers.extraction import INLINE, configured, contents, extract, overrides
from tests.helpers.forked import forked_strata
from tests.servers.base import Bucket
from tests.servers.localbucket import SECRET, LocalBucket
from tests.servers.proxy import Fault, Proxy, Request

N_CLIPS = 16
LAYERS = "extract.layers=[2,9]"
FEW = (*INLINE, LAYERS)
"""One worker in this process, and few layers: each costs requests."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Clips for a store of some units, one of them no audio."""
    folder = write_folder(tmp_path_factory.mktemp("audio") / "clips", mixed_lengths(N_CLIPS))
    (folder / "clip-003.wav").write_bytes(b"RIFF this is no wav")
    return folder


@pytest.fixture(scope="module")
def finished(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    """What a run on the local disk stores."""
    store = tmp_path_factory.mktemp("finished") / "s"
    extract(folder, store, *FEW)
    return contents(store)


def check_whole(uri: str, finished: dict[str, object]) -> None:
    """Check that a store has the bytes of a local run, and nothing else."""
    assert contents(uri) == finished
    found = verify_store(uri)
    assert (found.ok, found.orphans) == (True, ())


def test_a_store_in_a_bucket_is_that_of_a_local_run(
    folder: Path, finished: dict[str, object], s3: str, localbucket: LocalBucket
) -> None:
    """With the same bytes and quarantined clips; no secret is in it, and no upload is left open."""
    status = extract(folder, s3, *FEW)
    assert (status.utterances_ok, status.utterances_quarantined) == (N_CLIPS - 1, 1)
    check_whole(s3, finished)
    store = pipeline.open_store(s3)
    assert "clip-003.wav" in store.quarantined["id"].to_pylist()
    assert store.read("clip-001.wav").shape[0] == len(store.layers)
    for path in localbucket.files(s3.rpartition("/")[2]).values():
        assert SECRET.encode() not in path.read_bytes()
    assert localbucket.unfinished == []
    again = extract(folder, s3, *FEW)
    assert again.utterances_ok == N_CLIPS - 1
    assert contents(s3) == finished
    assert len(read_history(s3).runs) >= 1


@pytest.mark.slow
def test_sigkill_of_the_driver_loses_nothing(
    folder: Path, finished: dict[str, object], s3: str, tmp_path: Path
) -> None:
    """It is killed after its first commit; the next run ends with the bytes of a local one."""
    process = forked_strata("extract", *overrides(folder, s3, *FEW))
    backend, deadline = open_backend(s3), time.monotonic() + 60
    while not backend.children("index"):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    extract(folder, s3, *FEW)
    check_whole(s3, finished)
    assert len(read_history(s3).runs) == 2


@pytest.mark.slow
@pytest.mark.ray
def test_ray_writes_the_same_store(
    folder: Path,
    finished: dict[str, object],
    s3: str,
    ray_session: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its workers get the server's address with the job, and no credentials with it."""
    monkeypatch.setenv("AWS_SKIP_SIGNATURE", "true")  # the workers have no keys
    extract(folder, s3, "engine=ray", "engine.workers=2", "engine.threads=1", LAYERS)
    check_whole(s3, finished)


class AfterFirst(Observer):
    """Calls a function when the first unit is committed."""

    def __init__(self, act: Callable[[], object]) -> None:
        self.act: Callable[[], object] | None = act

    def unit_committed(self, report: UnitReport) -> None:
        act, self.act = self.act, None
        if act is not None:
            act()


def test_a_second_driver_is_refused(folder: Path, finished: dict[str, object], s3: str) -> None:
    """The error names host, process and age of the first driver, which continues."""
    messages = []

    def start_second_driver() -> None:
        with pytest.raises(StoreBusyError) as caught:
            run.extract(configured(folder, s3, *FEW))
        messages.append(str(caught.value))

    run.extract(configured(folder, s3, *FEW), AfterFirst(start_second_driver))
    assert f"in use by process {os.getpid()} on {os.uname().nodename}" in messages[0]
    check_whole(s3, finished)


def test_a_zombie_worker_corrupts_nothing(
    folder: Path, finished: dict[str, object], s3: str
) -> None:
    """Its unit is committed by another attempt: it reads that one's slot, and removes its own."""
    extract(folder, s3, *FEW)
    plan, config = read_plan(s3), configured(folder, s3, *FEW)
    assert plan is not None
    slot = Ledger.open(s3, plan.n_units).claim(1, "dead", "ray", "then").slot
    setup = resolve_encoder_setup(config)
    job = Job(
        backend=open_backend(s3),
        layout=layout_of(read_attributes(s3)),
        dataset=config.dataset,
        load_encoder=setup.loader("cpu"),
        max_batch_frames=setup.batch_frames("cpu"),
        threads=1,
    )
    report = Worker(job).extract(UnitTask(1, slot, 1, plan.unit_rows(1)))
    assert not report.won
    check_whole(s3, finished)


def test_a_damaged_unit_is_repaired(
    folder: Path, finished: dict[str, object], s3: str, localbucket: LocalBucket
) -> None:
    """Its commit is revoked, and the next run extracts it again."""
    extract(folder, s3, *FEW)
    shards = localbucket.files(s3.rpartition("/")[2] + "/features.zarr/frames/c/1/0")
    (shard,) = shards.values()
    content = bytearray(shard.read_bytes())
    content[100] ^= 1
    shard.write_bytes(content)
    assert not verify_store(s3).ok
    assert repair_store(s3).found.damages
    extract(folder, s3, *FEW)
    check_whole(s3, finished)


def test_a_server_that_ignores_conditions_is_refused(
    folder: Path, rclone: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the first unit, and nothing is left there."""
    uri = f"{rclone.use(monkeypatch)}/refused-run"
    with pytest.raises(StoreError, match="does not support conditional creation"):
        extract(folder, uri, *FEW)
    assert list(open_backend(uri).list()) == []


# Faults between client and server


def test_a_commit_in_doubt_keeps_its_data(
    folder: Path, finished: dict[str, object], proxy: Proxy, s3: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Every answer to the commits is lost, and their objects cannot be read: they are there.

    A run that took the silence for a failure would delete what the commits refer to.
    """
    monkeypatch.setattr(client_module, "Limits", partial(Limits, retry_s=0.5))
    monkeypatch.setattr(requests_module, "_FIRST_WAIT_S", 0.05)
    config = configured(folder, s3, *FEW)
    run.plan(config)

    def lose(request: Request) -> Fault | None:
        return Fault.LOST if "/index/unit-1.parquet" in request.path else None

    proxy.choose = lose
    with pytest.raises(UnansweredError, match=r"unit 1 .* may be committed"):
        run.extract(config)
    proxy.choose = lambda request: None
    assert 1 in index_files.committed_units(s3)
    found = verify_store(s3)
    assert not found.damages
    extract(folder, s3, *FEW)
    check_whole(s3, finished)


def test_a_shard_that_was_cut_on_its_way_is_not_committed(
    folder: Path, finished: dict[str, object], proxy: Proxy, s3: str
) -> None:
    """By a server or a proxy that answers as if it had stored all of it."""
    passed = proxy.pass_on
    left = [1]

    def cut(method: str, target: str, headers: list[tuple[str, str]], body: bytes) -> object:
        if method == "PUT" and "/features.zarr/frames/c/" in target and left:
            left.pop()
            body = body[: len(body) // 2]
            headers = [(k, v) for k, v in headers if k.lower() != "content-length"]
            headers.append(("Content-Length", str(len(body))))
        return passed(method, target, headers, body)

    proxy.pass_on = cut  # type: ignore[assignment, method-assign]
    with pytest.raises(
        StoreError, match=r"unit \d .* not committed: .*/frames/c/.* has [\d,]+ bytes"
    ):
        extract(folder, s3, *FEW)
    assert not left
    extract(folder, s3, *FEW)
    check_whole(s3, finished)


@pytest.mark.slow
def test_faults_of_the_server_lose_nothing(
    folder: Path, finished: dict[str, object], proxy: Proxy, s3: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """One request of five fails, in each way there is; the store is that of a local run.

    No attempt deletes another one's data: each unit that a claim says was tried once is whole.
    """
    monkeypatch.setattr(requests_module, "_FIRST_WAIT_S", 0.02)
    proxy.moment_s = 0.05
    draw = random.Random(5)
    proxy.choose = lambda request: draw.choice(list(Fault)) if draw.random() < 0.2 else None
    extract(folder, s3, *FEW)
    assert set(proxy.injected) == set(Fault)
    assert sum(proxy.injected.values()) > 30
    proxy.choose = lambda request: None
    check_whole(s3, finished)
    assert len(read_claims(s3)) == len(index_files.committed_units(s3))
    assert open_backend(s3).exists(ledger_key(0))
