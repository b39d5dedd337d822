"""Tests run without a network: the guard in conftest.py refuses other machines."""

from __future__ import annotations

import socket
import urllib.request
from pathlib import Path

import pytest

from tests.helpers.network import NetworkUseError, is_local, refused_network

ELSEWHERE = "192.0.2.1"  # TEST-NET-1 (RFC 5737): belongs to no machine


def test_a_connection_to_another_machine_is_refused() -> None:
    """By address, at once, whichever call makes the connection."""
    with socket.socket() as connection:
        with pytest.raises(NetworkUseError, match=ELSEWHERE):
            connection.connect((ELSEWHERE, 80))
        with pytest.raises(NetworkUseError, match=ELSEWHERE):
            connection.connect_ex((ELSEWHERE, 80))
    with socket.socket(type=socket.SOCK_DGRAM) as connection, pytest.raises(NetworkUseError):
        connection.sendto(b"", (ELSEWHERE, 53))


def test_a_name_of_another_machine_is_not_looked_up() -> None:
    """Libraries on top of sockets meet the guard, too."""
    with pytest.raises(NetworkUseError, match=r"models\.example"):
        socket.getaddrinfo("models.example", 443)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with pytest.raises(NetworkUseError, match=r"models\.example"):
        opener.open("http://models.example/weights.pt", timeout=1)


def test_this_machine_may_be_reached(tmp_path: Path) -> None:
    """Loopback, the machine's own name and Unix sockets work as ever."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        for host in ("127.0.0.1", "localhost"):
            socket.create_connection((host, server.getsockname()[1]), timeout=5).close()
    path = str(tmp_path / "socket")
    with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as client:
        server.bind(path)
        server.listen()
        client.connect(path)
    assert is_local(socket.gethostname())
    assert is_local("::1")
    assert not is_local(ELSEWHERE)


def test_the_guard_may_be_nested() -> None:
    """The end of an inner guard does not end the session's."""
    with refused_network():
        pass
    with socket.socket() as connection, pytest.raises(NetworkUseError):
        connection.connect((ELSEWHERE, 80))
