"""The client of buckets, against a real server, through a proxy that spoils requests."""

from __future__ import annotations

import errno
import itertools
import multiprocessing
import os
import pickle
import random
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.errors import ConfigError, StoreError, UnansweredError
from pipeline.objects import client as client_module
from pipeline.objects import requests as requests_module
from pipeline.objects.client import ObjectClient
from pipeline.objects.ranges import merge
from pipeline.objects.requests import Limits
from tests.servers.base import free_port
from tests.servers.localbucket import BUCKET, SECRET, LocalBucket
from tests.servers.proxy import Fault, Proxy, Request

QUICK = Limits(answer_s=2.0, transfer_s=10.0, retry_s=1.2, first_retry_s=0.5)
CONTENT = bytes(range(256)) * 40


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Try again soon."""
    monkeypatch.setattr(requests_module, "_FIRST_WAIT_S", 0.02)


@pytest.fixture
def client(s3: str) -> ObjectClient:
    """A client of an empty prefix."""
    return ObjectClient(s3, QUICK)


def of(key: str, *faults: Fault) -> Callable[[Request], Fault | None]:
    """Return a choice that gives the requests for one key these faults, one after the other."""
    left = list(faults)

    def choose(request: Request) -> Fault | None:
        return left.pop(0) if left and request.path.endswith(f"/{key}") else None

    return choose


def test_what_is_put_comes_back(client: ObjectClient) -> None:
    """Parts one after the other; whole, by range, and as facts."""
    client.put("a/b", [b"old"])
    client.put("a/b", [b"12", memoryview(b"345"), np.arange(2, dtype=np.uint8)])
    assert client.get("a/b") == b"12345\x00\x01"
    assert client.get_range("a/b", 1, 3) == b"234"
    assert client.get_range("a/b", 7, 0) == b""
    info = client.head("a/b")
    assert (info.key, info.size) == ("a/b", 7)
    assert abs(info.modified_s - time.time()) < 5
    assert info.etag
    client.put("floats", [np.ones((2, 3), np.float32)])
    assert client.get("floats") == np.ones((2, 3), np.float32).tobytes()
    client.put("empty", [b""])
    assert client.get("empty") == b""
    assert client.exists("empty")


def test_a_missing_object_is_a_file_not_found_error(client: ObjectClient) -> None:
    """Its filename is the URI. Deleting one is no error."""
    for act in (client.get, client.head, lambda key: client.get_range(key, 0, 1)):
        with pytest.raises(FileNotFoundError) as raised:
            act("none")
        assert raised.value.filename == client.locate("none")
    assert not client.exists("none")
    client.delete("none")
    client.put("none", [b"x"])
    client.delete("none")
    assert not client.exists("none")
    assert client.list() == []


def test_a_range_beyond_the_end_is_an_eof_error(client: ObjectClient) -> None:
    """A server sends what there is; never less than asked for is returned."""
    client.put("x", [b"12345"])
    for start, length in ((3, 3), (5, 1), (9, 2)):
        with pytest.raises(EOFError, match="/x ends"):
            client.get_range("x", start, length)
    with pytest.raises(EOFError):
        client.get_ranges("x", [0, 4], [2, 9])
    with pytest.raises(OSError, match="no range"):
        client.get_range("x", -1, 2)


def test_a_changed_object_is_an_error(client: ObjectClient) -> None:
    """If the ETag is given that it had."""
    client.put("x", [b"12345"])
    etag = client.head("x").etag
    assert client.get_range("x", 0, 2, etag) == b"12"
    client.put("x", [b"54321"])
    with pytest.raises(OSError, match="has changed") as raised:
        client.get_range("x", 0, 2, etag)
    assert raised.value.errno == errno.ESTALE
    with pytest.raises(OSError, match="has changed"):
        client.get_ranges("x", [0, 3], [1, 1], 0, etag)


def test_ranges_come_in_their_order(client: ObjectClient) -> None:
    """However they overlap and however far they may be merged."""
    content = np.random.default_rng(1).bytes(50_000)
    client.put("x", [content])
    draw = random.Random(2)
    for coalesce in (0, 100, 1 << 20):
        starts = [draw.randrange(49_000) for _ in range(40)]
        lengths = [draw.choice([0, 1, 50, 1000]) for _ in starts]
        found = client.get_ranges("x", starts, lengths, coalesce)
        expected = [content[a : a + n] for a, n in zip(starts, lengths, strict=True)]
        assert [bytes(part) for part in found] == expected
    assert client.get_ranges("x", [], []) == []


def test_near_ranges_are_one_request(proxy: Proxy, s3: str) -> None:
    """Those within the gap; the others are requested apart."""
    client = ObjectClient(s3, QUICK)
    client.put("x", [CONTENT])
    before = len(proxy.requests)
    client.get_ranges("x", [0, 200, 5000, 5090], [100, 100, 10, 10], coalesce=150)
    assert len(proxy.requests) - before == 2
    assert merge([5000, 0, 200], [10, 100, 100], 150) == [(0, 300, [1, 2]), (5000, 5010, [0])]


def test_lists_are_by_folder(client: ObjectClient) -> None:
    """A folder is what a slash ends: `a` has neither `ab/y` nor itself."""
    for key in ("a/x", "a/deep/er/z", "ab/y", "top"):
        client.put(key, [key.encode()])
    assert {info.key for info in client.list()} == {"a/x", "a/deep/er/z", "ab/y", "top"}
    assert {info.key for info in client.list("a")} == {"a/x", "a/deep/er/z"}
    assert {info.key for info in client.list("a", offset="a/deep/z")} == {"a/x"}
    assert sorted(client.children("")) == ["a", "ab", "top"]
    assert sorted(client.children("a/")) == ["deep", "x"]
    assert client.children("none") == []
    objects, folders = client.list_folder("a")
    assert [(info.key, info.size) for info in objects] == [("a/x", 3)]
    assert list(folders) == ["deep"]


def test_keys_may_have_any_characters(client: ObjectClient) -> None:
    """As the store's own keys and the files of other people have."""
    for key in ("a b/ü.wav", "100%/x+y=z", "q?#&", "%2F/x"):
        client.put(key, [key.encode()])
        assert client.get(key) == key.encode()
    assert {info.key for info in client.list()} == {"a b/ü.wav", "100%/x+y=z", "q?#&", "%2F/x"}


def test_one_of_racing_creators_wins(client: ObjectClient) -> None:
    """Eight threads; the object has the winner's content."""
    barrier = threading.Barrier(8)

    def race(me: int) -> list[bool]:
        won = []
        for i in range(5):
            barrier.wait()
            won.append(client.create(f"race/{i}", bytes([me]) * 100))
        return won

    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(race, range(8)))
    for i in range(5):
        (winner,) = [me for me in range(8) if results[me][i]]
        assert client.get(f"race/{i}") == bytes([winner]) * 100


@pytest.mark.parametrize("fault", [*Fault, None])
def test_a_creation_counts_as_done_exactly_if_it_is(
    proxy: Proxy, s3: str, fault: Fault | None
) -> None:
    """Whatever happens to the first request: also if its answer is lost, or it arrives late."""
    client = ObjectClient(s3, QUICK)
    proxy.moment_s = 0.05
    proxy.choose = of("mine", *([fault] if fault else []))
    assert client.create("mine", b"of attempt 1")
    assert not client.create("mine", b"of attempt 2")
    proxy.choose = of("theirs", *([fault] if fault else []))
    client.put("theirs", [b"of another one"])
    proxy.choose = of("theirs", *([fault] if fault else []))
    assert not client.create("theirs", b"of attempt 1")
    assert client.get("mine") == b"of attempt 1"
    assert client.get("theirs") == b"of another one"


def test_a_conflict_with_nothing_there_is_tried_again(proxy: Proxy, s3: str) -> None:
    """A server may answer 409 because another creation is under way, which then fails."""
    client = ObjectClient(s3, QUICK)
    passed = proxy.pass_on
    answers = iter([(409, [], b"<Error><Code>ConditionalRequestConflict</Code></Error>")])
    proxy.pass_on = lambda method, *rest: (
        (  # type: ignore[method-assign]
            next(answers, None) if method == "PUT" else None
        )
        or passed(method, *rest)
    )
    assert client.create("x", b"mine")
    assert client.get("x") == b"mine"


def test_a_creation_without_any_answer_says_so(proxy: Proxy, s3: str) -> None:
    """It may be there or not: the caller must not delete what it refers to."""
    client = ObjectClient(s3, QUICK)
    client.put("other", [b"x"])
    proxy.choose = lambda request: Fault.LOST
    with pytest.raises(UnansweredError, match=r"the connection broke, tried again for"):
        client.create("x", b"mine")
    proxy.choose = lambda request: None
    assert client.get("x") == b"mine"  # it has arrived
    proxy.choose = lambda request: Fault.SLOW_DOWN
    with pytest.raises(StoreError, match="429") as raised:
        client.create("y", b"mine")
    assert not isinstance(raised.value, UnansweredError)


@pytest.mark.parametrize("fault", Fault)
def test_requests_are_tried_again(proxy: Proxy, s3: str, fault: Fault) -> None:
    """Reads, ranges, lists, writes and deletions survive two faults in a row."""
    client = ObjectClient(s3, QUICK)
    proxy.moment_s = 0.05
    client.put("first", [b"x"])

    def spoil(*methods: str) -> None:
        left = itertools.repeat(fault, 2)
        proxy.choose = lambda request: next(left, None) if request.method in methods else None

    spoil("PUT")
    client.put("x", [CONTENT])
    spoil("GET")
    assert client.get("x") == CONTENT
    spoil("GET")
    assert client.get_range("x", 100, 5000) == CONTENT[100:5100]
    spoil("GET")
    assert {info.key for info in client.list()} == {"first", "x"}
    spoil("HEAD")
    assert client.head("x").size == len(CONTENT)
    spoil("DELETE")
    client.delete("x")
    assert not client.exists("x")
    assert proxy.injected[fault] >= 5


@pytest.mark.parametrize(
    ("fault", "reason"),
    [(Fault.BUSY, "503 Service Unavailable"), (Fault.DROP, "the connection broke")],
)
def test_a_server_that_stays_away_is_one_clear_line(
    proxy: Proxy, s3: str, fault: Fault, reason: str
) -> None:
    """It names the object, the server, what it answered, and for how long that was tried."""
    client = ObjectClient(s3, QUICK)
    client.put("x", [CONTENT])
    proxy.choose = lambda request: fault
    start_s = time.monotonic()
    with pytest.raises(OSError, match=reason) as raised:
        client.get("x")
    assert time.monotonic() - start_s < 4
    assert raised.value.filename == f"{s3}/x"
    with pytest.raises(StoreError, match=reason) as refused:
        client.put("x", [b"new"])
    for text in (str(raised.value), str(refused.value)):
        assert f"{s3}/x" in text
        assert f"{proxy.url}: {reason}" in text
        assert "tried again for" in text
        assert "\n" not in text
        assert "Debug" not in text
        assert SECRET not in text
    pickle.loads(pickle.dumps((raised.value, refused.value)))


def test_a_list_on_a_busy_server_is_given_up_in_time(proxy: Proxy, s3: str) -> None:
    """The library repeats lists itself; that does not add its own eight pauses to ours."""
    proxy.choose = lambda request: Fault.BUSY
    start_s = time.monotonic()
    with pytest.raises(OSError, match="503"):
        ObjectClient(s3, QUICK).list()
    assert time.monotonic() - start_s < 4


def test_a_wrong_address_is_found_out_soon(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not after as long as a server may be away in the middle of a run."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_port()}")
    limits = Limits(retry_s=60.0, first_retry_s=0.4)
    start_s = time.monotonic()
    with pytest.raises(OSError, match="cannot connect"):
        ObjectClient(s3, limits).get("x")
    assert time.monotonic() - start_s < 3


def test_a_server_that_does_not_answer_is_given_up(proxy: Proxy, s3: str) -> None:
    """After the time for an answer."""
    limits = Limits(answer_s=0.3, retry_s=0.5, first_retry_s=0.5)
    client = ObjectClient(s3, limits)
    proxy.moment_s = 1.0
    proxy.choose = lambda request: Fault.DELAY
    with pytest.raises(OSError, match="no answer in time"):
        client.head("x")


@pytest.mark.parametrize("n_bytes", [300_000, 9_000_000])
def test_large_objects_go_up_in_parts(
    client: ObjectClient,
    localbucket: LocalBucket,
    monkeypatch: pytest.MonkeyPatch,
    n_bytes: int,
) -> None:
    """One request below a size; above it several, and no part is left behind."""
    monkeypatch.setattr(client_module, "SINGLE_PUT_BYTES", 6_000_000)
    monkeypatch.setattr(client_module, "PART_BYTES", 5 << 20)
    content = np.random.default_rng(3).bytes(n_bytes)
    client.put("large", [content[:1000], content[1000:]])
    assert client.get("large") == content
    assert client.get_range("large", n_bytes - 10, 10) == content[-10:]
    assert localbucket.unfinished == []


def test_a_large_object_that_fails_leaves_no_parts(
    proxy: Proxy, localbucket: LocalBucket, s3: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The upload is aborted: its parts would be invisible, and would be paid for."""
    monkeypatch.setattr(client_module, "SINGLE_PUT_BYTES", 6_000_000)
    monkeypatch.setattr(client_module, "PART_BYTES", 5 << 20)
    client = ObjectClient(s3, QUICK)
    client.put("x", [b"x"])
    proxy.choose = lambda r: Fault.BUSY if r.query.get("partNumber") == ["2"] else None
    with pytest.raises(StoreError, match="503"):
        client.put("large", [bytes(9_000_000)])
    assert not client.exists("large")
    assert localbucket.unfinished == []


def _read_in_child(client: ObjectClient, key: str, out: Any) -> None:
    with ThreadPoolExecutor(4) as pool:
        contents = list(pool.map(client.get, [key] * 8))
    parts = client.get_ranges(key, [0, 9000], [2, 2], 0)
    out.put((set(contents), [bytes(part) for part in parts]))


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_client_works_in_a_child_process(client: ObjectClient, method: str) -> None:
    """Although obstore's threads do not survive a fork; and in the parent afterwards."""
    client.put("x", [CONTENT])
    client.get_ranges("x", [0, 9000], [2, 2], 0)
    context = multiprocessing.get_context(method)
    out = context.Queue()
    child = context.Process(target=_read_in_child, args=(client, "x", out))
    child.start()
    contents, parts = out.get(timeout=60)
    child.join(30)
    assert child.exitcode == 0
    assert contents == {CONTENT}
    assert parts == [CONTENT[:2], CONTENT[9000:9002]]
    assert client.get("x") == CONTENT


def test_a_child_of_a_child_works(client: ObjectClient) -> None:
    """It was forked from a process that had loaded the library a second time."""
    client.put("x", [CONTENT])

    def fork(left: int) -> int:
        pid = os.fork()
        if pid == 0:
            signal.alarm(30)  # ends the process if the client hangs
            try:
                is_right = client.get("x") == CONTENT
                os._exit(0 if is_right and (left == 0 or fork(left - 1) == 0) else 1)
            finally:
                os._exit(2)
        return os.waitpid(pid, 0)[1]

    assert fork(2) == 0


def test_nothing_shows_a_secret(client: ObjectClient) -> None:
    """Neither its text, its pickle, nor the error of a request that the server refuses."""
    again = pickle.loads(pickle.dumps(client))
    assert again == client
    assert again.uri == client.uri
    for text in (repr(client), str(client.server), repr(client.server), str(client.__dict__)):
        assert SECRET not in text
    assert SECRET.encode() not in pickle.dumps(client)
    assert BUCKET in client.uri


def test_a_profile_of_aws_is_used(
    localbucket: LocalBucket, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """With its keys, its region and its address; a profile that does not exist is an error."""
    pytest.importorskip("boto3")
    for name in ("AWS_ENDPOINT_URL", "AWS_REGION", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "config").write_text(
        f"[profile mine]\nregion = eu-west-1\nendpoint_url = {localbucket.url}\n"
    )
    (tmp_path / "keys").write_text(
        f"[mine]\naws_access_key_id = profile-key\naws_secret_access_key = {SECRET}\n"
    )
    monkeypatch.setenv("AWS_ALLOW_HTTP", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "keys"))
    monkeypatch.setenv("AWS_PROFILE", "mine")
    client = ObjectClient(f"s3://{BUCKET}/of-a-profile", QUICK)
    client.put("x", [b"x"])
    assert localbucket.files("of-a-profile").keys() == {"x"}
    monkeypatch.setenv("AWS_PROFILE", "other")
    with pytest.raises(ConfigError, match=r"AWS_PROFILE=other: .*could not be found"):
        ObjectClient(f"s3://{BUCKET}/x", Limits(answer_s=1.0)).get("x")


def test_when_one_request_was_given_up_others_wait_no_longer(s3: str, proxy: Proxy) -> None:
    """Until one succeeds; so a command ends about one limit after its server has gone."""
    client = ObjectClient(s3, Limits(retry_s=1.5, first_retry_s=1.5, given_up_s=0.0))
    client.put("x", [b"x"])
    proxy.choose = lambda request: Fault.BUSY
    for least_s, most_s in ((0.7, 10.0), (0.0, 0.6), (0.0, 0.6)):
        began = time.monotonic()
        with pytest.raises(OSError, match="503"):
            client.get("x")
        assert least_s <= time.monotonic() - began <= most_s
    proxy.choose = lambda request: None
    assert client.get("x") == b"x"
    proxy.choose = lambda request: Fault.BUSY if len(proxy.requests) == n + 1 else None
    n = len(proxy.requests)
    assert client.get("x") == b"x"  # it is tried again, as before


def test_requests_that_are_left_over_do_not_delay_the_end_of_a_process(
    s3: str, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The interpreter waits for the threads that read ahead; its main thread still tries again."""
    client = ObjectClient(s3)
    client.put("x", [b"x"])
    monkeypatch.setattr("concurrent.futures.thread._shutdown", True)  # as while it ends
    proxy.choose = lambda request: Fault.BUSY if len(proxy.requests) == n + 1 else None
    n, errors = len(proxy.requests), []

    def read_ahead() -> None:
        try:
            client.get("x")
        except OSError as error:
            errors.append(error)

    thread = threading.Thread(target=read_ahead)
    thread.start()
    thread.join()
    assert len(errors) == 1
    assert len(proxy.requests) == n + 1
    n = len(proxy.requests)
    assert client.get("x") == b"x"
    assert len(proxy.requests) == n + 2
