"""One live driver per store."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import asdict
from pathlib import Path

import pytest

from pipeline.errors import StoreBusyError, StoreError
from pipeline.store.backend.base import Location
from pipeline.store.backend.local import LocalBackend
from pipeline.store.coordination import lease as lease_module
from pipeline.store.coordination import processes
from pipeline.store.coordination.lease import STALE_AFTER_S, Holder, Lease, live_holder
from pipeline.store.format.layout import LEASE
from tests.helpers.fake_store import MEET
from tests.helpers.forked import Forked, finish

HOLD = """
import sys
from pathlib import Path
from pipeline.store.coordination.lease import Lease
with Lease(Path(sys.argv[1]), "run-of-child"):
    print("held", flush=True)
    sys.stdin.read()
"""


WRONG_TYPES = json.dumps(
    {"run_id": 1, "host": 2, "pid": "x", "process_start": [], "process_space": None}
)


def write_lease(root: Path, age_s: float = 0.0, **changes: object) -> Holder:
    """Write a lease like one of this process, with changes and a heartbeat `age_s` ago."""
    holder = Holder("other", socket.gethostname(), os.getpid(), 0, "")
    holder = Holder(**{**asdict(holder), **changes})
    (root / LEASE).write_text(json.dumps(asdict(holder)))
    then = time.time() - age_s
    os.utime(root / LEASE, (then, then))
    return holder


def own_holder(root: Path) -> Holder:
    """Return the holder that this process writes into a lease."""
    with Lease(root, "probe"):
        return Holder(**json.loads((root / LEASE).read_text()))


def test_a_live_holder_is_refused_with_its_name(tmp_path: Path) -> None:
    """The message names process, host and run; the lease does not change."""
    holder = Forked(HOLD, tmp_path)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    before = (tmp_path / LEASE).read_bytes()
    pattern = rf"process {holder.pid} on {socket.gethostname()} \(run run-of-child"
    with pytest.raises(StoreBusyError, match=pattern), Lease(tmp_path, "mine"):
        pass
    assert (tmp_path / LEASE).read_bytes() == before
    finish(holder)
    assert not (tmp_path / LEASE).exists()
    with Lease(tmp_path, "mine"):
        pass


@pytest.mark.parametrize("reaped", [True, False])
def test_a_killed_holder_is_taken_over_at_once(tmp_path: Path, reaped: bool) -> None:
    """Whether its parent, this process, has reaped it or it is a zombie."""
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    holder = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert holder.stdout is not None
    holder.stdout.readline()
    assert live_holder(tmp_path) is not None
    holder.send_signal(signal.SIGKILL)
    if reaped:
        holder.wait(10)
    else:
        os.waitid(os.P_PID, holder.pid, os.WEXITED | os.WNOWAIT)
    assert (tmp_path / LEASE).exists()
    assert live_holder(tmp_path) is None
    began = time.monotonic()
    with Lease(tmp_path, "mine") as lease:
        lease.check()
    assert time.monotonic() - began < 5
    holder.communicate()


LEAVE_A_THREAD = """
import ctypes, platform, sys, threading
from pathlib import Path
from pipeline.store.coordination.lease import Lease
exit_thread = {"x86_64": 60, "aarch64": 93}[platform.machine()]
Lease(Path(sys.argv[1]), "run-of-child").__enter__()
threading.Thread(target=sys.stdin.read).start()
print("held", flush=True)
ctypes.CDLL(None).syscall(exit_thread, 0)
"""


def test_a_holder_whose_first_thread_has_ended_is_alive(tmp_path: Path) -> None:
    """A killed process shows as a zombie while another of its threads may still write."""
    holder = Forked(LEAVE_A_THREAD, tmp_path)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    stat = Path(f"/proc/{holder.pid}/stat")
    deadline = time.monotonic() + 20
    while stat.read_text().rpartition(")")[2].split()[0] != "Z":
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert live_holder(tmp_path) is not None
    holder.kill()
    holder.wait()
    assert live_holder(tmp_path) is None


def test_a_stopped_holder_on_this_host_is_alive(tmp_path: Path) -> None:
    """A suspended driver may continue: age does not matter if its process is visible."""
    holder = Forked(HOLD, tmp_path)
    assert holder.stdout is not None
    holder.stdout.readline()
    holder.send_signal(signal.SIGSTOP)
    os.utime(tmp_path / LEASE, (0, 0))
    try:
        with pytest.raises(StoreBusyError), Lease(tmp_path, "mine"):
            pass
    finally:
        holder.send_signal(signal.SIGCONT)
    finish(holder)


@pytest.mark.parametrize("change", ["host", "process_space"])
def test_a_holder_elsewhere_is_stale_only_after_a_minute(tmp_path: Path, change: str) -> None:
    """On another host, or in another pid namespace, only the heartbeat counts."""
    write_lease(tmp_path, age_s=STALE_AFTER_S - 5, **{change: "elsewhere"})
    with pytest.raises(StoreBusyError, match=r"last heartbeat 5[56] s ago"):
        Lease(tmp_path, "mine").__enter__()
    write_lease(tmp_path, age_s=STALE_AFTER_S + 5, **{change: "elsewhere"})
    with Lease(tmp_path, "mine"):
        pass


def test_a_lease_whose_heartbeats_may_be_hidden_is_not_taken_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a mount of cloud storage its age says nothing; a process of this host is still judged."""
    monkeypatch.setattr(LocalBackend, "check", lambda self: "WARNING: this mount hides changes")
    write_lease(tmp_path, age_s=10_000, host="elsewhere")
    pattern = (
        rf"process \d+ on elsewhere, whose .*; if no driver runs there, delete {tmp_path}/lease"
    )
    with pytest.raises(StoreBusyError, match=pattern):
        Lease(tmp_path, "mine").__enter__()
    own = own_holder(tmp_path / "other")
    write_lease(tmp_path, **{**asdict(own), "process_start": own.process_start - 1})
    with Lease(tmp_path, "mine"):
        pass


def test_an_unreadable_lease_is_read_again_before_the_run_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error of the storage may pass; one that stays is no take-over, and is told as it is."""
    monkeypatch.setattr(lease_module, "WATCH_S", 0.01)
    real = LocalBackend.read
    errors = iter([True, True, False])

    def read(self: LocalBackend, key: str) -> bytes:
        if key == LEASE and next(errors, failing):
            raise OSError(errno.EIO, "Input/output error")
        return real(self, key)

    failing = False
    with Lease(tmp_path, "mine") as lease:
        monkeypatch.setattr(LocalBackend, "read", read)
        lease.check()
        failing = True
        with pytest.raises(StoreError, match=r"lease\.json cannot be read: Input/output error"):
            lease.check()
        failing = False


def test_a_heartbeat_in_the_future_is_watched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A clock was set back: a holder elsewhere that is dead does not lock the store for years."""
    monkeypatch.setattr(lease_module, "STALE_AFTER_S", 1.0)
    monkeypatch.setattr(lease_module, "WATCH_S", 0.05)
    write_lease(tmp_path, age_s=-1e8, host="elsewhere")
    began = time.monotonic()
    with Lease(tmp_path, "mine"):
        assert time.monotonic() - began > 1.0
        assert json.loads((tmp_path / LEASE).read_text())["run_id"] == "mine"


def test_a_holder_with_a_heartbeat_in_the_future_that_beats_is_alive(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next heartbeat shows it, and the age in the message is not negative."""
    monkeypatch.setattr(lease_module, "WATCH_S", 0.05)
    write_lease(tmp_path, age_s=-1e8, host="elsewhere")
    beat = threading.Timer(0.3, lambda: os.utime(tmp_path / LEASE, (4e9, 4e9)))
    beat.start()
    with pytest.raises(StoreBusyError, match="last heartbeat 0 s ago"):
        Lease(tmp_path, "mine").__enter__()
    beat.join()


def test_a_hidden_holder_is_judged_by_its_heartbeat(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another user's process under hidepid: it exists, but its start is unknown."""
    own = own_holder(tmp_path)
    monkeypatch.setattr(lease_module, "process_start", lambda pid: 0)
    write_lease(tmp_path, age_s=STALE_AFTER_S - 5, **asdict(own))
    assert live_holder(tmp_path) == own
    write_lease(tmp_path, age_s=STALE_AFTER_S + 5, **asdict(own))
    assert live_holder(tmp_path) is None


def test_a_process_without_a_trace_in_proc_is_found_by_a_signal(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A process that /proc does not show may run; one that takes no signal is gone."""
    gone = Forked("")
    finish(gone)
    monkeypatch.setattr(processes, "Path", lambda path: Path("/nowhere") / path.lstrip("/"))
    assert processes.process_start(os.getpid()) == 0
    assert processes.process_start(1) == 0
    assert processes.process_start(gone.pid) == processes.GONE


def test_a_reused_pid_is_not_the_holder(tmp_path: Path) -> None:
    """A process with that pid that started at another time is not the holder."""
    own = own_holder(tmp_path)
    write_lease(tmp_path, **{**asdict(own), "process_start": own.process_start - 1})
    assert live_holder(tmp_path) is None
    write_lease(tmp_path, age_s=10_000, **asdict(own))
    assert live_holder(tmp_path) == own


@pytest.mark.parametrize("content", ["", "{", "[]", '{"pid": 1}', "null", "[" * 9999, WRONG_TYPES])
def test_a_lease_without_a_holder_is_expired(tmp_path: Path, content: str) -> None:
    """A live driver's lease is complete, because leases are created atomically."""
    (tmp_path / LEASE).write_text(content)
    with Lease(tmp_path, "mine"):
        pass


RACE = (
    MEET
    + """
import json, sys
from pathlib import Path
from pipeline.errors import StoreBusyError
from pipeline.store.coordination.lease import Lease
root, me, rounds, n = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
for i in range(rounds):
    store = root / f"store-{i}"
    lease = Lease(store, f"run-{me}")
    meet(root, i, me, n)
    try:
        lease.__enter__()
        got = 1
    except StoreBusyError:
        got = 0
    meet(root, f"{i}-after", me, n)
    if got:
        lease.check()
        assert json.loads((store / "lease.json").read_text())["run_id"] == f"run-{me}"
        lease.__exit__(None, None, None)
    print(got)
"""
)


@pytest.mark.slow
def test_of_racing_drivers_exactly_one_gets_the_lease(tmp_path: Path) -> None:
    """Three processes, many rounds, an expired lease or none: one gets it and keeps it."""
    rounds, n = 80, 3
    for i in range(rounds):
        (tmp_path / f"store-{i}").mkdir()
        if i % 2:
            write_lease(tmp_path / f"store-{i}", age_s=1000, host="elsewhere")
    racers = [Forked(RACE, tmp_path, me, rounds, n) for me in range(n)]
    got = [finish(racer).split() for racer in racers]
    for i in range(rounds):
        assert sorted(got[me][i] for me in range(n)) == ["0", "0", "1"]


STORM = """
import fcntl, os, random, signal, sys, time
from pathlib import Path
from pipeline.errors import StoreBusyError
from pipeline.store.coordination.lease import Lease
root, seed, seconds, n = Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]), int(sys.argv[4])
rng = random.Random(seed)

def driver(number):
    rng = random.Random(number)
    while True:
        lease = Lease(root / "store", f"run-{number}-{rng.random()}")
        try:
            lease.__enter__()
        except StoreBusyError:
            time.sleep(rng.uniform(0, 0.005))
            continue
        inside = os.open(root / "inside", os.O_RDWR | os.O_CREAT)
        try:
            fcntl.flock(inside, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the kernel drops it with us
        except BlockingIOError:
            (root / "two").touch()
        time.sleep(rng.uniform(0, rng.choice([0.005, 0.08])))
        lease.check()
        os.close(inside)
        lease.__exit__(None, None, None)
        with open(root / "turns", "ab", buffering=0) as turns:
            turns.write(b".")

def start(number):
    pid = os.fork()
    if pid:
        return pid
    try:
        driver(number)
    except BaseException as error:
        (root / "error").write_text(repr(error))
    finally:
        os._exit(1)

drivers = [start(number) for number in range(n)]
number, killed, end = n, 0, time.monotonic() + seconds
while time.monotonic() < end:
    i = rng.randrange(n)
    if rng.random() < 0.5:
        os.kill(drivers[i], signal.SIGKILL)
        os.waitpid(drivers[i], 0)
        drivers[i], number, killed = start(number), number + 1, killed + 1
    else:
        os.kill(drivers[i], signal.SIGSTOP)
        time.sleep(rng.uniform(0, 0.05))
        os.kill(drivers[i], signal.SIGCONT)
    time.sleep(rng.uniform(0, 0.02))
for pid in drivers:
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
print(killed)
"""


@pytest.mark.slow
def test_two_drivers_never_hold_the_lease_at_once(tmp_path: Path) -> None:
    """Four drivers take the lease in turn for seconds, while they are killed and suspended.

    A second lock, which the kernel drops with its process, detects two holders.
    """
    killed = int(finish(Forked(STORM, tmp_path, 7, 3.0, 4)))
    assert not (tmp_path / "two").exists()
    assert not (tmp_path / "error").exists(), (tmp_path / "error").read_text()
    assert killed > 5
    assert (tmp_path / "turns").stat().st_size > 5


def test_a_fork_does_not_release_the_lease(tmp_path: Path) -> None:
    """A child that leaves the driver's `with` block, as after an error, keeps the lease."""
    with Lease(tmp_path, "mine") as lease:
        pid = os.fork()
        if pid == 0:
            lease.__exit__(None, None, None)
            os._exit(0)
        os.waitpid(pid, 0)
        lease.check()


def test_a_fork_does_not_keep_the_store_locked(tmp_path: Path) -> None:
    """A child that was forked while the lock was held has a copy of the open file."""
    with Lease(tmp_path, "mine") as lease, lease._locked():
        pid = os.fork()
        if pid == 0:
            time.sleep(30)
            os._exit(0)
    try:
        began = time.monotonic()
        with Lease(tmp_path, "next"):
            assert time.monotonic() - began < 5
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def test_check_notices_a_take_over_and_exit_respects_it(tmp_path: Path) -> None:
    """A driver that lost the lease stops, and does not remove the new one."""
    with Lease(tmp_path, "mine") as lease:
        lease.check()
        write_lease(tmp_path, host="elsewhere")
        with pytest.raises(StoreBusyError, match="has taken over the lease"):
            lease.check()
    assert json.loads((tmp_path / LEASE).read_text())["host"] == "elsewhere"


def test_the_heartbeat_refreshes_the_lease(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The lease is refreshed; the thread ends with the lease."""
    monkeypatch.setattr(lease_module, "HEARTBEAT_S", 0.02)
    with Lease(tmp_path, "mine"):
        os.utime(tmp_path / LEASE, (0, 0))
        end = time.monotonic() + 5
        while (tmp_path / LEASE).stat().st_mtime == 0 and time.monotonic() < end:
            time.sleep(0.01)
        assert time.time() - (tmp_path / LEASE).stat().st_mtime < 5
    assert not [t for t in threading.enumerate() if t.name == "strata-lease"]


def test_the_heartbeat_does_not_refresh_another_lease(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A driver that lost its lease does not touch the new one."""
    monkeypatch.setattr(lease_module, "HEARTBEAT_S", 0.02)
    with Lease(tmp_path, "mine"):
        time.sleep(0.05)
        write_lease(tmp_path, age_s=1000, host="elsewhere")
        time.sleep(0.2)
        assert time.time() - (tmp_path / LEASE).stat().st_mtime > 900


def test_an_error_releases_the_lease(tmp_path: Path) -> None:
    """When the run fails."""
    with pytest.raises(RuntimeError), Lease(tmp_path, "mine"):
        raise RuntimeError
    assert live_holder(tmp_path) is None
    assert not (tmp_path / LEASE).exists()


def test_a_slow_take_over_cannot_remove_a_live_lease(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A driver pauses between finding a lease expired and taking it over; two more start.

    Without the lock the second driver takes the lease, the slow one then removes that live lease,
    and the third takes it: two would run.
    """
    write_lease(tmp_path, age_s=1000, host="elsewhere")
    original = lease_module.live_holder

    def slow(store: Location, name: str = LEASE, now_s: float | None = None) -> Holder | None:
        found = original(store, name, now_s)
        if threading.current_thread().name == "slow":
            time.sleep(0.5)
        return found

    monkeypatch.setattr(lease_module, "live_holder", slow)
    held: list[Lease] = []

    def driver() -> None:
        lease = Lease(tmp_path, threading.current_thread().name)
        with contextlib.suppress(StoreBusyError):
            held.append(lease.__enter__())

    drivers = [threading.Thread(target=driver, name=n) for n in ("slow", "second", "third")]
    for thread, wait_s in zip(drivers, (0.1, 0.65, 0), strict=True):
        thread.start()
        time.sleep(wait_s)
    for thread in drivers:
        thread.join()
    assert len(held) == 1
    held[0].check()
    held[0].__exit__(None, None, None)
