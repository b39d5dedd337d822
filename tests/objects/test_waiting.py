"""Notes to the user while a server is waited for."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator

import pytest

from pipeline.errors import UnreachableError
from pipeline.objects import requests as requests_module
from pipeline.objects import waiting
from pipeline.objects.client import ObjectClient
from pipeline.objects.requests import Limits
from pipeline.objects.waiting import Wait, longest_wait, notes_sent_to
from tests.servers.localbucket import SECRET
from tests.servers.proxy import Fault, Proxy

LIMITS = Limits(answer_s=5.0, retry_s=1.5, first_retry_s=1.5)


@pytest.fixture
def notes(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The notes of a test, in which a few tenths of a second are long."""
    monkeypatch.setattr(waiting, "NOTE_AFTER_S", 0.3)
    monkeypatch.setattr(waiting, "NOTE_EVERY_S", 0.6)
    monkeypatch.setattr(waiting, "_LOOK_EVERY_S", 0.05)
    monkeypatch.setattr(waiting._Watch, "noted_s", -1e9)
    monkeypatch.setattr(requests_module, "_FIRST_WAIT_S", 0.02)
    found: list[str] = []
    with notes_sent_to(found.append):
        yield found


def test_a_busy_server_is_noted_at_most_so_often(proxy: Proxy, s3: str, notes: list[str]) -> None:
    """With the object, the reason, the number of retries, and the time until it is given up."""
    client = ObjectClient(s3, LIMITS)
    client.put("x", [b"x"])
    proxy.choose = lambda request: Fault.BUSY
    with pytest.raises(UnreachableError):
        client.get("x")
    assert 1 <= len(notes) <= 3
    first = notes[0]
    assert first.startswith(f"waiting for {s3}/x: {proxy.url}: 503 Service Unavailable, retry ")
    assert first.endswith(", gives up after 2 s")
    assert SECRET not in first


def test_a_server_that_does_not_answer_is_noted_while_the_request_is_blocked(
    proxy: Proxy, s3: str, notes: list[str]
) -> None:
    """The thread that makes it cannot say so itself."""
    client = ObjectClient(s3, LIMITS)
    client.put("x", [b"x"])
    proxy.moment_s = 0.8
    proxy.choose = lambda request: Fault.DELAY
    assert client.get("x") == b"x"
    assert len(notes) == 1
    assert f"waiting for {s3}/x: no answer for " in notes[0]


def test_quick_requests_are_not_noted_and_the_thread_ends(
    proxy: Proxy, s3: str, notes: list[str]
) -> None:
    """Also one that is repeated once; nothing runs on when there is nothing to wait for."""
    client = ObjectClient(s3, LIMITS)
    left = [Fault.BUSY]
    proxy.choose = lambda request: left.pop() if left else None
    client.put("x", [b"x"])
    assert longest_wait(0.0) is None
    end_s = time.monotonic() + 5
    while any(thread.name == "strata-waits" for thread in threading.enumerate()):
        assert time.monotonic() < end_s
        time.sleep(0.02)
    assert notes == []


def test_a_large_object_may_take_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Unless its request had to be repeated."""
    monkeypatch.setattr(waiting, "LARGE_S", 100.0)
    with Wait("s3://b/small", 120, is_large=False), Wait("s3://b/large", 120, is_large=True) as one:
        found = longest_wait(0.0)
        assert found is not None
        assert found.place == "s3://b/small"
        assert not one.waits_since(0.0)
        one.retries("503")
        assert one.waits_since(0.0)
    assert longest_wait(0.0) is None


def test_a_fork_waits_for_nothing_of_its_parent(notes: list[str]) -> None:
    """Its own requests are noted by a thread of its own."""
    with Wait("s3://b/of-the-parent", 120, is_large=False):
        receiving, sending = os.pipe()
        pid = os.fork()
        if pid == 0:
            with notes_sent_to(lambda line: os.write(sending, line.encode())):
                time.sleep(0.5)
                with Wait("s3://b/of-the-child", 120, is_large=False):
                    time.sleep(0.6)
            os._exit(0)
        os.close(sending)
        assert os.waitpid(pid, 0)[1] == 0
        text = os.read(receiving, 1000).decode()
        os.close(receiving)
    assert "of-the-child" in text
    assert "of-the-parent" not in text
