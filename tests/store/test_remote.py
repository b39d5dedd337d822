"""Stores in a bucket: what `test_backends.py`, which tests all backends, does not have."""

from __future__ import annotations

import os
import pickle
import signal
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict

import pytest

from pipeline.errors import StoreBusyError, StoreError, UnansweredError
from pipeline.objects import requests as requests_module
from pipeline.objects.requests import Limits
from pipeline.store.backend.opening import open_backend
from pipeline.store.backend.remote.backend import RemoteBackend
from pipeline.store.backend.remote.probe import N_RACERS
from pipeline.store.coordination import lease as lease_module
from pipeline.store.coordination.lease import Holder, Lease, live_holder
from pipeline.store.coordination.processes import process_space
from pipeline.store.format.layout import LEASE, LEASE_LOCK, LOG
from pipeline.store.serialization import json_bytes
from tests.helpers.backends import contents
from tests.helpers.forked import Forked, finish
from tests.servers.base import Bucket
from tests.servers.localbucket import SECRET, LocalBucket
from tests.servers.proxy import Fault, Proxy

QUICK = Limits(answer_s=2.0, transfer_s=10.0, retry_s=1.0, first_retry_s=0.5)


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Try again soon."""
    monkeypatch.setattr(requests_module, "_FIRST_WAIT_S", 0.02)


# The trial of the server


def test_a_server_that_honours_conditions_is_accepted(proxy: Proxy, s3: str) -> None:
    """The trial creates one object twice, races eight clients, and leaves nothing."""
    backend = RemoteBackend(s3, QUICK)
    assert backend.leases.check() == ""
    assert proxy.counts["CREATE"] == 2 + N_RACERS
    assert sum(proxy.counts.values()) < 30
    assert contents(backend) == {}


def test_a_server_that_ignores_conditions_is_refused(
    rclone: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By its name, before anything is written; with what to do. Nothing is left."""
    backend = RemoteBackend(f"{rclone.use(monkeypatch)}/refused")
    remedy = "does not support conditional creation .* write to a local directory and `strata copy`"
    with pytest.raises(StoreError, match=rf"{rclone.endpoint} {remedy}") as raised:
        Lease(backend, "mine").__enter__()
    assert "\n" not in str(raised.value)
    assert list(backend.list()) == []


def test_a_server_without_conditions_is_refused(proxy: Proxy, s3: str) -> None:
    """One that says so, as some do, and one that lets only the second client win."""
    passed = proxy.pass_on

    def refuse(method: str, target: str, headers: list[tuple[str, str]], body: bytes) -> object:
        if any(name.lower() == "if-none-match" for name, _ in headers):
            return 501, [], b"<Error><Code>NotImplemented</Code></Error>"
        return passed(method, target, headers, body)

    proxy.pass_on = refuse  # type: ignore[assignment, method-assign]
    with pytest.raises(StoreError, match="does not support conditional creation"):
        RemoteBackend(s3, QUICK).leases.check()


def test_a_server_that_cannot_be_written_is_named(proxy: Proxy, s3: str) -> None:
    """That is another error than missing conditions."""
    proxy.choose = lambda request: Fault.BUSY if request.method == "PUT" else None
    with pytest.raises(StoreError, match="503") as raised:
        RemoteBackend(s3, QUICK).leases.check()
    assert "conditional" not in str(raised.value)


def test_a_user_who_may_not_delete_is_refused(proxy: Proxy, s3: str) -> None:
    """With the permission: data of failed attempts would stay, and be paid for."""
    proxy.refuses = lambda request: request.method == "DELETE"
    with pytest.raises(StoreError, match=r"cannot be deleted.*this takes s3:DeleteObject"):
        RemoteBackend(s3, QUICK).leases.check()


# Leases

HOLD = """
import sys
from pipeline.store.coordination.lease import Lease
with Lease(sys.argv[1], "run-of-child"):
    print("held", flush=True)
    sys.stdin.read()
"""


def write_lease(backend: RemoteBackend, **changes: object) -> Holder:
    """Make a lease like one of this process, with changes."""
    holder = Holder("other", socket.gethostname(), os.getpid(), 0, "")
    holder = Holder(**{**asdict(holder), **changes})
    assert backend.leases.create(LEASE, json_bytes(asdict(holder)))
    return holder


def test_a_live_holder_is_refused_with_its_name(s3: str) -> None:
    """The message names process, host and run. A killed one is taken over at once."""
    holder = Forked(HOLD, s3)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    pattern = rf"process {holder.pid} on {socket.gethostname()} \(run run-of-child"
    with pytest.raises(StoreBusyError, match=pattern), Lease(s3, "mine"):
        pass
    assert live_holder(s3) is not None
    holder.send_signal(signal.SIGKILL)
    holder.communicate()
    assert live_holder(s3) is None
    with Lease(s3, "mine") as lease:
        lease.check()
    assert live_holder(s3) is None


def test_a_released_lease_leaves_one_empty_object(s3: str, localbucket: LocalBucket) -> None:
    """Its number, so that the next one is higher; earlier ones are removed."""
    prefix = s3.rpartition("/")[2]
    for number in (1, 2, 3):
        with Lease(s3, f"run-{number}") as lease:
            lease.check()
            found = localbucket.files(prefix)
            assert f"{LEASE}/~{number:012d}" in found
        found = {key: path.stat().st_size for key, path in localbucket.files(prefix).items()}
        assert found == {f"{LEASE}/~{number:012d}": 0, LEASE_LOCK: 0}


def test_a_holder_elsewhere_is_stale_by_the_server_s_clock(
    s3: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever time it is here: both times are the server's."""
    backend = RemoteBackend(s3, QUICK)
    write_lease(backend, host="elsewhere")
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + 1e6)
    with pytest.raises(StoreBusyError, match=r"last heartbeat [01] s ago"):
        Lease(backend, "mine").__enter__()
    assert live_holder(backend) is not None
    monkeypatch.setattr(lease_module, "STALE_AFTER_S", 0.9)
    time.sleep(2.1)
    assert live_holder(backend) is None
    with Lease(backend, "mine") as lease:
        lease.check()


def test_the_heartbeat_keeps_a_lease_and_check_notices_a_take_over(
    s3: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A driver that has lost its lease stops, and does not end the new one."""
    monkeypatch.setattr(lease_module, "HEARTBEAT_S", 0.1)
    backend = RemoteBackend(s3, QUICK)
    with Lease(backend, "mine") as lease:
        before = backend.leases.find(LEASE)
        time.sleep(1.5)
        after = backend.leases.find(LEASE)
        assert before is not None
        assert after is not None
        assert after.heartbeat_s > before.heartbeat_s
        other = RemoteBackend(s3, QUICK)
        other.leases.expire(LEASE, lambda found: False)
        with pytest.raises(StoreError, match="has vanished"):
            lease.check()
        write_lease(other, host="elsewhere")
        with pytest.raises(StoreBusyError, match="has taken over the lease"):
            lease.check()
    holder = live_holder(backend)
    assert holder is not None
    assert holder.host == "elsewhere"


def test_a_creator_with_an_old_list_makes_no_second_lease(s3: str) -> None:
    """It saw lease 1 end; since then 2 came and went, and 3 stands: its number 2 is not the lease.

    Two drivers would hold the store if the numbers of ended leases were free again.
    """
    slow, others = RemoteBackend(s3, QUICK), RemoteBackend(s3, QUICK)
    assert others.leases.create(LEASE, b"1")
    others.leases.release(LEASE, b"1")
    seen = slow.leases._find(LEASE)
    assert others.leases.create(LEASE, b"2")
    others.leases.release(LEASE, b"2")
    assert others.leases.create(LEASE, b"3")
    answers = iter([seen])
    real = slow.leases._find
    slow.leases._find = lambda key: next(answers, None) or real(key)  # type: ignore[method-assign]
    assert not slow.leases.create(LEASE, b"slow")
    found = others.leases.find(LEASE)
    assert found is not None
    assert found.content == b"3"


def test_of_racing_drivers_exactly_one_gets_an_expired_lease(s3: str) -> None:
    """Threads with a client each, an expired lease of another host or none."""
    n, rounds = 3, 4
    barrier = threading.Barrier(n, timeout=20)
    for i in range(rounds):
        if i % 2:
            write_lease(RemoteBackend(f"{s3}/{i}"), process_start=1, process_space=process_space())

    def race(me: int) -> list[bool]:
        got = []
        for i in range(rounds):
            lease = Lease(RemoteBackend(f"{s3}/{i}"), f"run-{me}")
            lease._leases.check = lambda: ""  # type: ignore[method-assign]
            barrier.wait()
            try:
                lease.__enter__()
            except StoreBusyError:
                got.append(False)
            else:
                got.append(True)
            barrier.wait()
            if got[-1]:
                lease.check()
                lease.__exit__(None, None, None)
        return got

    with ThreadPoolExecutor(n) as pool:
        got = list(pool.map(race, range(n)))
    assert [sum(got[me][i] for me in range(n)) for i in range(rounds)] == [1] * rounds


# Logs, pickles


def test_the_log_is_one_object_to_its_readers(s3: str, localbucket: LocalBucket) -> None:
    """Several writers have objects of their own; many lines share one."""
    one, two = open_backend(s3), RemoteBackend(s3)
    for i in range(20):
        one.append(LOG, f"{i}\n".encode())
    two.append(LOG, b"of another writer\n")
    one.append(LOG, b"the last\n")
    assert len(localbucket.files(s3.rpartition("/")[2])) == 2
    lines = two.read(LOG).splitlines()
    assert [line for line in lines if line != b"of another writer"] == [
        *(str(i).encode() for i in range(20)),
        b"the last",
    ]
    assert list(two.list()) == [LOG]
    assert two.exists(LOG)
    assert two.size(LOG) == len(two.read(LOG)) == two.open_reader(LOG).size
    assert two.children("") == [LOG]


def test_a_backend_pickles_without_secrets(s3: str) -> None:
    """Nor does any text show one; the copy reads the credentials of its own process."""
    backend = RemoteBackend(s3)
    backend.append(LOG, b"x\n")
    data = pickle.dumps(backend)
    assert SECRET.encode() not in data
    assert SECRET not in repr(backend)
    assert pickle.loads(data) == backend
    done = Forked(
        "import pickle, sys\n"
        "backend = pickle.loads(bytes.fromhex(sys.argv[1]))\n"
        "print(backend.read('log.jsonl').decode())",
        data.hex(),
    )
    assert finish(done).strip() == "x"


def test_a_commit_without_an_answer_is_no_other_s(proxy: Proxy, s3: str) -> None:
    """It raises an error of its own kind: what the object refers to must not be deleted."""
    backend = RemoteBackend(s3, QUICK)
    backend.put("x", [b"x"])
    proxy.choose = lambda request: Fault.LOST
    with pytest.raises(UnansweredError):
        backend.put_if_absent("index/unit-0.parquet", [b"of slot 0"])
