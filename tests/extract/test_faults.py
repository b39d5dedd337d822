"""Faults of files, workers, nodes, disks and drivers: no fault costs more than it must."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import soundfile

import pipeline
from pipeline.config import load_config
from pipeline.errors import NoSpaceError, StoreBusyError, StoreError
from pipeline.events import Observer
from pipeline.extract import run
from pipeline.extract.encoder_setup import resolve_encoder_setup
from pipeline.extract.executors import encoding_thread
from pipeline.extract.stop import Stop
from pipeline.extract.worker import Job, UnitReport, UnitTask, Worker
from pipeline.store.backend.opening import open_backend
from pipeline.store.coordination.ledger import Ledger, read_claims
from pipeline.store.coordination.worker_failures import (
    DIED,
    HUNG,
    WorkerFailure,
    isolate,
    read_failures,
    record_failure,
)
from pipeline.store.documents import layout_of, read_attributes, read_plan
from pipeline.store.format.layout import failure_key, ledger_key
from pipeline.store.maintain.repair import repair_store
from pipeline.store.maintain.status import Status, read_status
from pipeline.store.maintain.verify import verify_store
from tests.helpers import faulty_decoders
from tests.helpers.corpus import mixed_lengths, voice, write_folder
from tests.helpers.extraction import INLINE, configured, contents, extract, overrides
from tests.helpers.faulty_decoders import Faulty, Waiting
from tests.helpers.forked import forked_strata

N_CLIPS = 24
CULPRIT = "clip-009.wav"
RAY = ("engine=ray", "engine.workers=1", "engine.threads=1")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("audio") / "clips", mixed_lengths(N_CLIPS))


@pytest.fixture(scope="module")
def undisturbed(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The store of an undisturbed run."""
    store = tmp_path_factory.mktemp("undisturbed") / "s"
    extract(folder, store, *INLINE)
    return store


@pytest.fixture
def local_ray(ray_session: None) -> Iterator[None]:
    """Ray, and the faulty decoders in its workers, which cannot import them."""
    import ray

    ray.cloudpickle.register_pickle_by_value(faulty_decoders)
    yield
    ray.cloudpickle.unregister_pickle_by_value(faulty_decoders)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 8 MB; skips the test where mounting is not permitted."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=8m", "none", str(disk)]
    if not shutil.which("mount") or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a small file system is not permitted here")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


def faulty_extract(folder: Path, store: Path, decoder: Faulty, *more: str) -> Status:
    return run.extract(load_config(overrides(folder, store, *more)), decode=decoder)


def quarantined(store: Path) -> dict[str, str]:
    rows = pipeline.open_store(store).quarantined.to_pylist()
    return {row["id"]: row["reason"] for row in rows}


class AfterFirst(Observer):
    """Calls a function when the first unit is committed; the second one is decoded after that.

    Attributes:
        decode: Decoder of the run.
    """

    def __init__(self, act: Callable[[], object], undisturbed: Path, scratch: Path) -> None:
        self.act, self.acted = act, scratch / "acted"
        self.decode = Waiting(first_clip(undisturbed, 1), self.acted)

    def unit_committed(self, report: UnitReport) -> None:
        if not self.acted.exists():
            self.act()
            self.acted.touch()


def unit_of(store: Path, name: str) -> int:
    rows = pipeline.open_store(store)
    if name in rows.ids:
        return rows.record(name)["unit"]
    from pipeline.store.index import read_index

    table = read_index(store).to_pylist()
    return next(row["unit"] for row in table if row["id"] == name)


def test_a_file_that_takes_all_memory_costs_only_itself(
    folder: Path, undisturbed: Path, tmp_path: Path
) -> None:
    """Two failures, one of an earlier run, isolate its unit; two more make the file the culprit.

    The store is that of a run in which the file was unreadable from the start. A signal has the
    same result as this exception of the decoder: the next test sends one, on Ray.
    """
    unit = unit_of(undisturbed, CULPRIT)
    disturbed, reference = tmp_path / "disturbed", tmp_path / "reference"
    run.plan(load_config(overrides(folder, disturbed)))
    ledger = Ledger.open(disturbed, len(list(undisturbed.glob("index/*"))))
    slot = ledger.claim(unit, "earlier", "ray", "then").slot
    record_failure(
        disturbed, WorkerFailure(slot, unit, DIED, "SIGSEGV", None, None, "earlier", "then")
    )
    status = faulty_extract(folder, disturbed, Faulty(CULPRIT, "memory"), *INLINE)
    assert (status.utterances_ok, status.utterances_quarantined) == (N_CLIPS - 1, 1)
    reason = quarantined(disturbed)[CULPRIT]
    assert "failed twice (MemoryError: cannot allocate 64 GiB" in reason
    faulty_extract(folder, reference, Faulty(CULPRIT, reason), *INLINE)
    assert contents(disturbed) == contents(reference)
    assert verify_store(disturbed).ok
    failures = read_failures(disturbed)
    assert list(failures) == [unit]
    assert [failure.id for failure in failures[unit]] == [None, None, CULPRIT, CULPRIT]
    assert max(claim.attempt for claim in read_claims(disturbed) if claim.unit == unit) == 5


def first_clip(store: Path, unit: int) -> str:
    rows = pipeline.open_store(store)
    return next(name for name in rows.ids if rows.record(name)["unit"] == unit)


def test_a_file_that_kills_while_another_unit_is_encoded_costs_only_itself(
    folder: Path, undisturbed: Path, tmp_path: Path, local_ray: None
) -> None:
    """Both units of the worker are charged, once; from then on each runs separately.

    A failure with two units in the worker does not count towards run.max_attempts, and the other
    unit is not charged a second time.
    """
    culprit = first_clip(undisturbed, 1)  # decoded while unit 0 is encoded
    disturbed, reference = tmp_path / "disturbed", tmp_path / "reference"
    status = faulty_extract(
        folder, disturbed, Faulty(culprit, "SIGSEGV"), *RAY, "run.max_attempts=2"
    )
    assert (status.utterances_ok, status.utterances_quarantined) == (N_CLIPS - 1, 1)
    reason = "killed its worker twice (SIGSEGV)"
    assert quarantined(disturbed) == {culprit: reason}
    faulty_extract(folder, reference, Faulty(culprit, reason), *INLINE)
    assert contents(disturbed) == contents(reference)
    failures = {
        unit: [failure.id for failure in found] for unit, found in read_failures(disturbed).items()
    }
    assert failures == {0: [None], 1: [None, None, culprit, culprit]}
    assert verify_store(disturbed).ok


def test_a_file_that_hangs_while_another_unit_is_encoded_costs_only_its_own_unit_time(
    folder: Path, undisturbed: Path, tmp_path: Path, local_ray: None
) -> None:
    """After run.unit_timeout_s the worker is replaced, and the unit is retried in another slot.

    The unit before it commits; the unit after it is retried without a recorded failure.
    """
    decoder = Faulty(first_clip(undisturbed, 1), "hang", once=tmp_path / "hung")
    status = faulty_extract(folder, tmp_path / "s", decoder, *RAY, "run.unit_timeout_s=4")
    assert (status.utterances_ok, status.utterances_quarantined) == (N_CLIPS, 0)
    assert contents(tmp_path / "s") == contents(undisturbed)
    [(unit, [failure])] = read_failures(tmp_path / "s").items()
    assert (unit, failure.cause, failure.detail) == (1, HUNG, "4 s")
    recorded = tmp_path / "s" / failure_key(failure.slot)
    assert recorded.stat().st_mtime - (tmp_path / "hung").stat().st_mtime < 60
    attempts = Counter(claim.unit for claim in read_claims(tmp_path / "s"))
    assert [attempts[unit] for unit in range(4)] == [1, 2, 2, 1]


def test_only_an_utterance_that_failed_twice_is_a_culprit() -> None:
    """One failure is not enough, nor two of different utterances, nor two without an utterance."""

    def failure(position: int | None, cause: str = DIED) -> WorkerFailure:
        return WorkerFailure(0, 0, cause, "SIGBUS", position, None, "r", "t")

    assert isolate([]) is None
    assert isolate([failure(None)]) is None
    found = isolate([failure(None), failure(None)])
    assert found is not None
    assert (found.start, dict(found.culprits)) == (0, {})
    found = isolate([failure(None), failure(None), failure(3), failure(5)])
    assert found is not None
    assert (found.start, dict(found.culprits)) == (5, {})
    found = isolate([failure(None), failure(None), failure(3), failure(5), failure(5, HUNG)])
    assert found is not None
    assert dict(found.culprits) == {5: "held its worker twice for more than SIGBUS"}


def test_an_interrupt_drops_the_current_unit(
    folder: Path, undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Inline the first Ctrl-C stops the run at once, even while a file hangs; it can be resumed."""

    def interrupt() -> None:
        stop.request("SIGINT")

    stop = Stop()
    monkeypatch.setattr(encoding_thread, "STOP_S", 0.2)
    watching = AfterFirst(interrupt, undisturbed, tmp_path)
    config = load_config(overrides(folder, tmp_path / "s", *INLINE))
    with pytest.raises(KeyboardInterrupt):
        run.extract(config, watching, stop, watching.decode)
    watching.acted.touch()  # the thread of the dropped unit goes on, and must not commit it
    assert read_status(tmp_path / "s").units_committed == 1
    extract(folder, tmp_path / "s", *INLINE)
    assert contents(tmp_path / "s") == contents(undisturbed)


def test_a_second_signal_stops_at_once() -> None:
    """The first signal is only recorded while units are in flight."""
    stop = Stop()
    stop.is_graceful = True
    stop.request("SIGTERM")
    with pytest.raises(KeyboardInterrupt):
        stop.request("SIGINT")
    assert stop.reason == "SIGTERM"


@pytest.mark.ray
@pytest.mark.slow
def test_sigterm_lets_units_in_flight_finish(
    folder: Path, undisturbed: Path, tmp_path: Path
) -> None:
    """The command prints its progress and how to continue, leaves no worker, and loses nothing."""
    store = tmp_path / "s"
    command = ["extract", *overrides(folder, store, *RAY)]
    process = forked_strata(*command)
    end = time.monotonic() + 90
    while not list(store.glob("index/unit-*.parquet")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    _, stderr = process.communicate()
    assert process.returncode == 1, stderr
    done, total = read_status(store).units_committed, read_status(store).units_total
    assert f"stopped by SIGTERM; {done} of {total} units are committed and safe" in stderr
    assert "run the same command again" in stderr
    assert not (store / "lease.json").exists()
    claims, failures = read_claims(store), read_failures(store)
    assert len(claims) == done  # nothing was dropped
    assert not failures
    extract(folder, store, *INLINE)
    assert contents(store) == contents(undisturbed)


def test_a_full_disk_ends_the_run_and_loses_nothing(
    folder: Path, undisturbed: Path, tmp_path: Path, small_disk: Path
) -> None:
    """In the middle of a shard: one clear error, no partial data; the run resumes with space."""
    store, ballast = small_disk / "s", small_disk / "ballast"

    def fill() -> None:
        with ballast.open("wb") as file:
            free = shutil.disk_usage(small_disk).free - 150_000  # a few shards, not a unit
            file.write(b"\0" * free)

    config = load_config(overrides(folder, store, *INLINE))
    watching = AfterFirst(fill, undisturbed, tmp_path)
    with pytest.raises(NoSpaceError, match="make room and run the same command again"):
        run.extract(config, watching, decode=watching.decode)
    found = verify_store(store)
    assert (found.ok, found.units_committed) == (True, 1)
    ballast.unlink()
    extract(folder, store, *INLINE)
    assert contents(store) == contents(undisturbed)
    assert not verify_store(store).orphans


def test_a_store_that_became_read_only_ends_the_run(
    folder: Path, undisturbed: Path, tmp_path: Path, small_disk: Path
) -> None:
    """One clear error that names the file; the run resumes once the store is writable."""
    store = small_disk / "s"

    def remount(how: str) -> None:
        subprocess.run(["mount", "-o", f"remount,{how}", str(small_disk)], check=True)

    config = load_config(overrides(folder, store, *INLINE))
    watching = AfterFirst(lambda: remount("ro"), undisturbed, tmp_path)
    with pytest.raises(StoreError, match="Read-only file system"):
        run.extract(config, watching, decode=watching.decode)
    remount("rw")
    (store / "lease.json").unlink()  # its process lives on: this one
    assert verify_store(store).ok
    extract(folder, store, *INLINE)
    assert contents(store) == contents(undisturbed)


def test_a_vanished_store_is_not_created_again(
    folder: Path, undisturbed: Path, tmp_path: Path
) -> None:
    """No second store is written below the mount point of an unmounted one."""
    store, elsewhere = tmp_path / "s", tmp_path / "elsewhere"
    config = load_config(overrides(folder, store, *INLINE))
    watching = AfterFirst(lambda: store.rename(elsewhere), undisturbed, tmp_path)
    with pytest.raises(StoreError, match="has vanished"):
        run.extract(config, watching, decode=watching.decode)
    assert not store.exists()
    elsewhere.rename(store)
    (store / "lease.json").unlink()  # its process lives on: this one
    extract(folder, store, *INLINE)
    assert contents(store) == contents(undisturbed)


def worker_at(folder: Path, store: Path) -> Worker:
    """A worker as an executor creates it."""
    config = load_config(overrides(folder, store, *INLINE))
    setup = resolve_encoder_setup(config)
    return Worker(
        Job(
            backend=open_backend(store),
            layout=layout_of(read_attributes(store)),
            dataset=config.dataset,
            load_encoder=setup.loader("cpu"),
            max_batch_frames=setup.batch_frames("cpu"),
            threads=1,
        )
    )


def test_a_worker_does_not_create_a_store_that_vanished(
    folder: Path, undisturbed: Path, tmp_path: Path
) -> None:
    """It checks before it writes, whatever its driver does."""
    store = shutil.copytree(undisturbed, tmp_path / "s")
    plan, worker = read_plan(store), worker_at(folder, store)
    assert plan is not None
    store.rename(tmp_path / "elsewhere")
    with pytest.raises(StoreError, match="has vanished"):
        worker.extract(UnitTask(2, 9, 2, plan.unit_rows(2)))
    assert not store.exists()


def test_a_zombie_worker_corrupts_nothing(folder: Path, undisturbed: Path, tmp_path: Path) -> None:
    """The unit is committed by another attempt: the zombie removes its own shards."""
    store = shutil.copytree(undisturbed, tmp_path / "s")
    plan = read_plan(store)
    assert plan is not None
    slot = Ledger.open(store, plan.n_units).claim(2, "dead", "ray", "then").slot
    report = worker_at(folder, store).extract(UnitTask(2, slot, 1, plan.unit_rows(2)))
    assert not report.won
    assert contents(store) == contents(undisturbed)
    found = verify_store(store)
    assert (found.ok, found.orphans) == (True, ())


def test_a_second_driver_is_refused(folder: Path, undisturbed: Path, tmp_path: Path) -> None:
    """The error names host, process and age of the first driver, which continues."""
    config = load_config(overrides(folder, tmp_path / "s", *INLINE))
    messages = []

    def start_second_driver() -> None:
        with pytest.raises(StoreBusyError) as caught:
            run.extract(config)
        messages.append(str(caught.value))

    watching = AfterFirst(start_second_driver, undisturbed, tmp_path)
    status = run.extract(config, watching, decode=watching.decode)
    assert status.utterances_ok == N_CLIPS
    host = os.uname().nodename
    assert f"in use by process {os.getpid()} on {host}" in messages[0]
    assert "last heartbeat" in messages[0]


def test_a_killed_driver_is_no_failure_of_a_unit(
    folder: Path, undisturbed: Path, tmp_path: Path
) -> None:
    """Claims without a recorded failure, as a killed driver leaves them, isolate no unit."""
    run.plan(load_config(overrides(folder, tmp_path / "s")))
    for _ in range(5):
        Ledger.open(tmp_path / "s", 8).claim(0, "killed", "ray", "then")
    extract(folder, tmp_path / "s", *INLINE)
    assert contents(tmp_path / "s") == contents(undisturbed)
    assert not read_failures(tmp_path / "s")
    claim = json.loads((tmp_path / "s" / ledger_key(12)).read_text())
    assert (claim["unit"], claim["attempt"]) == (0, 6)


class TestRetryQuarantined:
    """`retry_quarantined=true` retries quarantined utterances and un-commits nothing."""

    @pytest.fixture
    def broken(self, folder: Path, tmp_path: Path) -> Path:
        """A copy of the corpus with one file that is not audio."""
        copy = shutil.copytree(folder, tmp_path / "clips")
        (copy / CULPRIT).write_bytes(b"RIFF this is no wav")
        return copy

    def test_a_fixed_file_is_extracted(self, broken: Path, tmp_path: Path) -> None:
        """On request its features are added; committed units do not change."""
        store = tmp_path / "s"
        extract(broken, store, *INLINE)
        before = contents(store)
        soundfile.write(broken / CULPRIT, voice(1.5, 5), 16_000)
        assert extract(broken, store, *INLINE).utterances_quarantined == 1
        assert contents(store) == before
        status = extract(broken, store, *INLINE, "retry_quarantined=true")
        assert (status.utterances_ok, status.utterances_quarantined) == (N_CLIPS, 0)
        after = contents(store)
        assert {name: after[name] for name in before} == before
        opened = pipeline.open_store(store)
        assert opened.read(CULPRIT).shape[1] == 74
        assert not len(opened.quarantined)
        assert sorted(opened.ids) == sorted(f"clip-{i:03d}.wav" for i in range(N_CLIPS))
        found = verify_store(store)
        assert (found.ok, found.utterances_ok, found.utterances_quarantined) == (True, N_CLIPS, 0)
        units = read_status(store).units_total
        assert extract(broken, store, *INLINE, "retry_quarantined=true").units_total == units

    def test_a_second_quarantine_has_the_newest_reason(self, broken: Path, tmp_path: Path) -> None:
        """It is counted once, however often it was tried."""
        store = tmp_path / "s"
        extract(broken, store, *INLINE)
        (broken / CULPRIT).write_bytes(b"")
        status = extract(broken, store, *INLINE, "retry_quarantined=true")
        assert (status.utterances_ok, status.utterances_quarantined) == (N_CLIPS - 1, 1)
        assert "empty" in quarantined(store)[CULPRIT]
        assert verify_store(store).utterances_quarantined == 1

    @pytest.fixture
    def with_culprit(self, folder: Path, tmp_path: Path) -> Path:
        """A store with an utterance that was quarantined because its unit failed twice."""
        store = tmp_path / "s"
        faulty_extract(folder, store, Faulty(CULPRIT, "memory"), *INLINE)
        return store

    def test_a_culprit_is_retried(self, folder: Path, with_culprit: Path) -> None:
        """It is planned in a new unit, which the failures of its old unit do not isolate."""
        failures = read_failures(with_culprit)
        assert failures
        status = extract(folder, with_culprit, *INLINE, "retry_quarantined=true")
        assert (status.utterances_ok, status.utterances_quarantined) == (N_CLIPS, 0)
        assert read_failures(with_culprit) == failures

    def test_a_revoked_unit_is_extracted_as_before(self, folder: Path, with_culprit: Path) -> None:
        """The failures of a unit outlive a retry, so its second commit has no second culprit."""
        extract(folder, with_culprit, *INLINE, "retry_quarantined=true")
        before = contents(with_culprit)
        [unit] = read_failures(with_culprit)
        (with_culprit / f"index/unit-{unit}.parquet").write_bytes(b"damaged")
        assert repair_store(with_culprit).units == [unit]
        status = extract(folder, with_culprit, *INLINE)
        assert (status.utterances_ok, status.utterances_quarantined) == (N_CLIPS, 0)
        assert contents(with_culprit) == before

    def test_planning_writes_only_the_plan(self, folder: Path, with_culprit: Path) -> None:
        """`plan` with `retry_quarantined` leaves every other file of the store as it is."""

        def files() -> dict[str, bytes]:
            paths = (path for path in with_culprit.rglob("*") if path.is_file())
            return {str(path.relative_to(with_culprit)): path.read_bytes() for path in paths}

        before = files()
        retry = configured(folder, with_culprit, *INLINE, "retry_quarantined=true")
        assert run.plan(retry).units == read_status(with_culprit).units_total
        changed = {name for name, data in files().items() if before.get(name) != data}
        assert changed - {"lease.lock"} == {"plan.parquet"}
        assert files().keys() >= before.keys()
