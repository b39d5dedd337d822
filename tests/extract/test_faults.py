"""What clusters do to a run: each fault costs what it must and nothing more."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import soundfile

import pipeline
from pipeline.config import load_config
from pipeline.errors import NoSpaceError, SourceError, StoreBusyError, StoreError
from pipeline.events import Observer
from pipeline.extract import run
from pipeline.extract.encoder_setup import check_settings
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
from pipeline.store.format.layout import ledger_key
from pipeline.store.maintain.status import Status, read_status
from pipeline.store.maintain.verify import verify_store
from pipeline.store.write.documents import layout_of, read_attributes, read_plan
from tests.extract.test_run import contents, extract, overrides
from tests.helpers import faulty_decoders
from tests.helpers.corpus import mixed_lengths, voice, write_folder
from tests.helpers.faulty_decoders import Faulty

N_CLIPS = 24
POISON = "clip-009.wav"
INLINE = ("engine=inline", "engine.threads=1")
RAY = ("engine=ray", "engine.workers=1", "engine.threads=1")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("audio") / "clips", mixed_lengths(N_CLIPS))


@pytest.fixture(scope="module")
def quiet(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store that nothing has happened to."""
    store = tmp_path_factory.mktemp("quiet") / "s"
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
    """A file system of 8 MB, where this process may mount one."""
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
    """Does something as soon as the first unit is committed."""

    def __init__(self, act) -> None:
        self.act = act
        self.done = False

    def unit_committed(self, report: UnitReport) -> None:
        if not self.done:
            self.done = True
            self.act()


def unit_of(store: Path, name: str) -> int:
    rows = pipeline.open_store(store)
    if name in rows.ids:
        return rows.record(name)["unit"]
    from pipeline.store.index import read_index

    table = read_index(store).to_pylist()
    return next(row["unit"] for row in table if row["id"] == name)


def test_a_file_that_kills_its_worker_costs_only_itself(
    folder: Path, quiet: Path, tmp_path: Path, local_ray: None
) -> None:
    """Two failures, one of an earlier run, isolate its unit; two more make the file the culprit.

    The store is that of a run in which the file was unreadable from the start.
    """
    unit = unit_of(quiet, POISON)
    rough, reference = tmp_path / "rough", tmp_path / "reference"
    run.plan(load_config(overrides(folder, rough)))
    ledger = Ledger.open(rough, len(list(quiet.glob("index/*"))))
    slot = ledger.claim(unit, "earlier", "ray", "then").slot
    record_failure(rough, WorkerFailure(slot, unit, DIED, "SIGSEGV", None, None, "earlier", "then"))
    status = faulty_extract(folder, rough, Faulty(POISON, "SIGSEGV"), *RAY)
    assert (status.utterances_ok, status.utterances_quarantined) == (N_CLIPS - 1, 1)
    reason = "killed its worker twice (SIGSEGV)"
    assert quarantined(rough) == {POISON: reason}
    faulty_extract(folder, reference, Faulty(POISON, reason), *INLINE)
    assert contents(rough) == contents(reference)
    assert verify_store(rough).ok
    deaths = read_failures(rough)
    assert list(deaths) == [unit]
    assert [death.id for death in deaths[unit]] == [None, None, POISON, POISON]
    assert max(claim.attempt for claim in read_claims(rough) if claim.unit == unit) == 5


def test_a_file_that_takes_all_memory_costs_only_itself(folder: Path, tmp_path: Path) -> None:
    """The same where the decoder ends in an error instead of a signal; inline has that much."""
    status = faulty_extract(folder, tmp_path / "s", Faulty(POISON, "memory"), *INLINE)
    assert (status.utterances_ok, status.utterances_quarantined) == (N_CLIPS - 1, 1)
    assert (
        "failed twice (MemoryError: cannot allocate 64 GiB" in quarantined(tmp_path / "s")[POISON]
    )


def test_a_decode_that_hangs_is_ended(
    folder: Path, quiet: Path, tmp_path: Path, local_ray: None
) -> None:
    """After run.unit_timeout_s the worker is replaced, and the unit done in another slot."""
    decoder = Faulty(POISON, "hang", once=tmp_path / "hung")
    began = time.monotonic()
    status = faulty_extract(folder, tmp_path / "s", decoder, *RAY, "run.unit_timeout_s=4")
    assert time.monotonic() - began < 60
    assert (status.utterances_ok, status.utterances_quarantined) == (N_CLIPS, 0)
    assert contents(tmp_path / "s") == contents(quiet)
    [[death]] = read_failures(tmp_path / "s").values()
    assert (death.cause, death.detail) == (HUNG, "4 s")


def first_clip(store: Path, unit: int) -> str:
    rows = pipeline.open_store(store)
    return next(name for name in rows.ids if rows.record(name)["unit"] == unit)


def test_a_file_that_kills_while_another_unit_is_encoded_costs_only_itself(
    folder: Path, quiet: Path, tmp_path: Path, local_ray: None
) -> None:
    """Both units of the worker are charged, once; from then on each is done alone.

    A death in company does not count towards run.max_attempts, nor can the innocent unit collect a
    second one.
    """
    poison = first_clip(quiet, 1)  # decoded while unit 0 is encoded
    rough, reference = tmp_path / "rough", tmp_path / "reference"
    status = faulty_extract(folder, rough, Faulty(poison, "SIGSEGV"), *RAY, "run.max_attempts=2")
    assert (status.utterances_ok, status.utterances_quarantined) == (N_CLIPS - 1, 1)
    reason = "killed its worker twice (SIGSEGV)"
    assert quarantined(rough) == {poison: reason}
    faulty_extract(folder, reference, Faulty(poison, reason), *INLINE)
    assert contents(rough) == contents(reference)
    deaths = {unit: [death.id for death in found] for unit, found in read_failures(rough).items()}
    assert deaths == {0: [None], 1: [None, None, poison, poison]}
    assert verify_store(rough).ok


def test_a_file_that_hangs_while_another_unit_is_encoded_costs_only_its_own_unit_time(
    folder: Path, quiet: Path, tmp_path: Path, local_ray: None
) -> None:
    """The unit before it commits; the one behind it is done again, and not blamed."""
    decoder = Faulty(first_clip(quiet, 1), "hang", once=tmp_path / "hung")
    faulty_extract(folder, tmp_path / "s", decoder, *RAY, "run.unit_timeout_s=4")
    assert contents(tmp_path / "s") == contents(quiet)
    [(unit, [death])] = read_failures(tmp_path / "s").items()
    assert (unit, death.cause) == (1, HUNG)
    attempts = Counter(claim.unit for claim in read_claims(tmp_path / "s"))
    assert [attempts[unit] for unit in range(4)] == [1, 2, 2, 1]


def test_only_what_was_in_hand_twice_is_guilty() -> None:
    """One death convicts nobody, nor do two of different utterances, nor two unexplained ones."""

    def death(position: int | None, cause: str = DIED) -> WorkerFailure:
        return WorkerFailure(0, 0, cause, "SIGBUS", position, None, "r", "t")

    assert isolate([]) is None
    assert isolate([death(None)]) is None
    found = isolate([death(None), death(None)])
    assert found is not None
    assert (found.start, dict(found.culprits)) == (0, {})
    found = isolate([death(None), death(None), death(3), death(5)])
    assert found is not None
    assert (found.start, dict(found.culprits)) == (5, {})
    found = isolate([death(None), death(None), death(3), death(5), death(5, HUNG)])
    assert found is not None
    assert dict(found.culprits) == {5: "held its worker twice for more than SIGBUS"}


def test_an_interrupt_drops_the_unit_in_hand(folder: Path, quiet: Path, tmp_path: Path) -> None:
    """Inline there is nothing to wait for: the first Ctrl-C ends the run, and it can go on."""

    def interrupt() -> None:
        stop.request("SIGINT")

    stop = Stop()
    config = load_config(overrides(folder, tmp_path / "s", *INLINE))
    with pytest.raises(KeyboardInterrupt):
        run.extract(config, AfterFirst(interrupt), stop)
    assert read_status(tmp_path / "s").units_committed == 1
    extract(folder, tmp_path / "s", *INLINE)
    assert contents(tmp_path / "s") == contents(quiet)


def test_a_second_signal_ends_at_once() -> None:
    """The first one is only noted while units are in flight."""
    stop = Stop()
    stop.is_graceful = True
    stop.request("SIGTERM")
    with pytest.raises(KeyboardInterrupt):
        stop.request("SIGINT")
    assert stop.reason == "SIGTERM"


def test_sigterm_lets_units_in_flight_end(folder: Path, quiet: Path, tmp_path: Path) -> None:
    """The command says how far it came and how to go on, leaves no worker, and loses nothing."""
    store = tmp_path / "s"
    command = [sys.executable, "-m", "pipeline", "extract", *overrides(folder, store, *RAY)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    end = time.monotonic() + 90
    while not list(store.glob("index/unit-*.parquet")):
        assert process.poll() is None, "ended before it could be stopped"
        assert time.monotonic() < end
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 1, said
    done, total = read_status(store).units_committed, read_status(store).units_total
    assert f"stopped by SIGTERM; {done} of {total} units are committed and safe" in said
    assert "run the same command again" in said
    assert not (store / "lease.json").exists()
    claims, deaths = read_claims(store), read_failures(store)
    assert len(claims) == done  # nothing was dropped
    assert not deaths
    extract(folder, store, *INLINE)
    assert contents(store) == contents(quiet)


def test_a_full_disk_ends_the_run_and_loses_nothing(
    folder: Path, quiet: Path, tmp_path: Path, small_disk: Path
) -> None:
    """In the middle of a shard: one clear line, nothing half-written visible; room helps."""
    store, ballast = small_disk / "s", small_disk / "ballast"

    def fill() -> None:
        with ballast.open("wb") as file:
            free = shutil.disk_usage(small_disk).free - 150_000  # a few shards, not a unit
            file.write(b"\0" * free)

    config = load_config(overrides(folder, store, *INLINE))
    with pytest.raises(NoSpaceError, match="make room and run the same command again"):
        run.extract(config, AfterFirst(fill))
    found = verify_store(store)
    assert (found.ok, found.units_committed) == (True, 1)
    ballast.unlink()
    extract(folder, store, *INLINE)
    assert contents(store) == contents(quiet)
    assert not verify_store(store).strays


def test_a_store_that_became_read_only_ends_the_run(
    folder: Path, quiet: Path, small_disk: Path
) -> None:
    """One clear line that names the file; mounted writable again it goes on."""
    store = small_disk / "s"

    def remount(how: str) -> None:
        subprocess.run(["mount", "-o", f"remount,{how}", str(small_disk)], check=True)

    config = load_config(overrides(folder, store, *INLINE))
    with pytest.raises(StoreError, match="Read-only file system"):
        run.extract(config, AfterFirst(lambda: remount("ro")))
    remount("rw")
    (store / "lease.json").unlink()  # its process lives on: this one
    assert verify_store(store).ok
    extract(folder, store, *INLINE)
    assert contents(store) == contents(quiet)


def test_a_store_that_vanished_is_not_begun_anew(folder: Path, quiet: Path, tmp_path: Path) -> None:
    """An unmounted store must not grow a second one below its mount point."""
    store, elsewhere = tmp_path / "s", tmp_path / "elsewhere"
    config = load_config(overrides(folder, store, *INLINE))
    with pytest.raises(StoreError, match="has vanished"):
        run.extract(config, AfterFirst(lambda: store.rename(elsewhere)))
    assert not store.exists()
    elsewhere.rename(store)
    (store / "lease.json").unlink()  # its process lives on: this one
    extract(folder, store, *INLINE)
    assert contents(store) == contents(quiet)


def worker_at(folder: Path, store: Path) -> Worker:
    """A worker as an engine makes it."""
    config = load_config(overrides(folder, store, *INLINE))
    setup = check_settings(config)
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


def test_a_worker_writes_no_second_store_where_one_has_vanished(
    folder: Path, quiet: Path, tmp_path: Path
) -> None:
    """Be its driver dead or far away: it looks before it writes."""
    store = shutil.copytree(quiet, tmp_path / "s")
    plan, worker = read_plan(store), worker_at(folder, store)
    assert plan is not None
    store.rename(tmp_path / "elsewhere")
    with pytest.raises(StoreError, match="has vanished"):
        worker.extract(UnitTask(2, 9, 2, plan.unit_rows(2)))
    assert not store.exists()


def test_an_orphan_that_goes_on_writing_harms_nobody(
    folder: Path, quiet: Path, tmp_path: Path
) -> None:
    """Its replacement has committed: the orphan loses, and takes its own shards away again."""
    store = shutil.copytree(quiet, tmp_path / "s")
    plan = read_plan(store)
    assert plan is not None
    slot = Ledger.open(store, plan.n_units).claim(2, "dead", "ray", "then").slot
    report = worker_at(folder, store).extract(UnitTask(2, slot, 1, plan.unit_rows(2)))
    assert not report.won
    assert contents(store) == contents(quiet)
    found = verify_store(store)
    assert (found.ok, found.strays) == (True, ())


def test_a_second_driver_is_refused(folder: Path, tmp_path: Path) -> None:
    """With host, process and age of the first one, which goes on undisturbed."""
    config = load_config(overrides(folder, tmp_path / "s", *INLINE))
    refused = []

    def intrude() -> None:
        with pytest.raises(StoreBusyError) as caught:
            run.extract(config)
        refused.append(str(caught.value))

    status = run.extract(config, AfterFirst(intrude))
    assert status.utterances_ok == N_CLIPS
    host = os.uname().nodename
    assert f"in use by process {os.getpid()} on {host}" in refused[0]
    assert "last sign of life" in refused[0]


def test_the_death_of_the_driver_is_held_against_no_unit(
    folder: Path, quiet: Path, tmp_path: Path
) -> None:
    """Claims without a death, as a killed driver leaves them, make nobody suspect."""
    run.plan(load_config(overrides(folder, tmp_path / "s")))
    for _ in range(5):
        Ledger.open(tmp_path / "s", 8).claim(0, "killed", "ray", "then")
    extract(folder, tmp_path / "s", *INLINE)
    assert contents(tmp_path / "s") == contents(quiet)
    assert not read_failures(tmp_path / "s")
    claim = json.loads((tmp_path / "s" / ledger_key(12)).read_text())
    assert (claim["unit"], claim["attempt"]) == (0, 6)


class TestRetryQuarantined:
    """`retry_quarantined=true` tries again what was quarantined, and takes nothing back."""

    @pytest.fixture
    def broken(self, folder: Path, tmp_path: Path) -> Path:
        """A copy of the corpus with a file that is no audio."""
        copy = shutil.copytree(folder, tmp_path / "clips")
        (copy / POISON).write_bytes(b"RIFF this is no wav")
        return copy

    def test_a_mended_file_is_extracted(self, broken: Path, tmp_path: Path) -> None:
        """Its features appear, as those of any other; what was there stays as it was."""
        store = tmp_path / "s"
        extract(broken, store, *INLINE)
        before = contents(store)
        soundfile.write(broken / POISON, voice(1.5, 5), 16_000)
        with pytest.raises(SourceError, match="have changed"):
            extract(broken, store, *INLINE)
        status = extract(broken, store, *INLINE, "retry_quarantined=true")
        assert (status.utterances_ok, status.utterances_quarantined) == (N_CLIPS, 0)
        after = contents(store)
        assert {name: after[name] for name in before} == before
        opened = pipeline.open_store(store)
        assert opened.read(POISON).shape[1] == 74
        assert not len(opened.quarantined)
        assert sorted(opened.ids) == sorted(f"clip-{i:03d}.wav" for i in range(N_CLIPS))
        found = verify_store(store)
        assert (found.ok, found.utterances_ok, found.utterances_quarantined) == (True, N_CLIPS, 0)
        units = read_status(store).units_total
        assert extract(broken, store, *INLINE, "retry_quarantined=true").units_total == units

    def test_one_that_fails_again_has_its_newest_reason(self, broken: Path, tmp_path: Path) -> None:
        """It counts once, however often it was tried."""
        store = tmp_path / "s"
        extract(broken, store, *INLINE)
        (broken / POISON).write_bytes(b"")
        status = extract(broken, store, *INLINE, "retry_quarantined=true")
        assert (status.utterances_ok, status.utterances_quarantined) == (N_CLIPS - 1, 1)
        assert "empty" in quarantined(store)[POISON]
        assert verify_store(store).utterances_quarantined == 1

    def test_a_convict_gets_another_chance(self, folder: Path, tmp_path: Path) -> None:
        """Deaths are forgotten, else the mended decoder would never see the file."""
        store = tmp_path / "s"
        faulty_extract(folder, store, Faulty(POISON, "memory"), *INLINE)
        assert read_failures(store)
        status = extract(folder, store, *INLINE, "retry_quarantined=true")
        assert (status.utterances_ok, status.utterances_quarantined) == (N_CLIPS, 0)
        assert not read_failures(store)
