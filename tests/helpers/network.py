"""A guard that refuses connections to other machines."""

from __future__ import annotations

import ipaddress
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

INTERNET = (socket.AF_INET, socket.AF_INET6)
LOOKUPS = ("socket.getaddrinfo", "socket.gethostbyname")


class NetworkUseError(RuntimeError):
    """A test needs another machine. Not an `OSError`, which libraries catch and retry."""


@cache
def is_local(host: str) -> bool:
    """Whether a name or address is of this machine; Ray listens on more than the loopback."""
    if host in ("", "localhost", socket.gethostname()):
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    if address.is_loopback or address.is_unspecified:
        return True
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind((host, 0))  # succeeds only on an address of this machine
        except OSError:
            return False
    return True


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _check(event: str, arguments: tuple[Any, ...]) -> None:
    if event in LOOKUPS:
        host = arguments[0] or ""
        host = host.decode() if isinstance(host, bytes) else host
        allowed = _is_address(host) or is_local(host)  # an address is not looked up
    elif event in ("socket.connect", "socket.sendto"):
        connection, address = arguments
        if connection.family not in INTERNET:
            return
        if event == "socket.connect" and connection.type == socket.SOCK_DGRAM:
            return  # sends nothing: some Ray versions learn the machine's address this way
        host = address[0]
        allowed = is_local(host)
    else:
        return
    if not allowed:
        raise NetworkUseError(f"{event} to {host!r}: tests may use this machine only")


_refusing = False
_installed = False


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if _refusing and event.startswith("socket."):
        _check(event, arguments)


@contextmanager
def refused_network() -> Iterator[None]:
    """Refuse connections and name look-ups beyond this machine, in this process and its forks.

    Raises:
        NetworkUseError: In whatever code tries, from inside the `with` block.
    """
    global _refusing, _installed
    if not _installed:
        sys.addaudithook(_hook)  # there is no way to remove one
        _installed = True
    before, _refusing = _refusing, True
    try:
        yield
    finally:
        _refusing = before
