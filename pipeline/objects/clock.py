"""The clock of a server, which stands in the headers of its answers."""

from __future__ import annotations

import time
import urllib.error
import urllib.request
from contextlib import suppress
from email.utils import parsedate_to_datetime

from pipeline.objects.server import Server

_TIMEOUT_S = 5.0
_AGE_S = 60.0
_asked: dict[Server, tuple[float, float]] = {}  # when, by the steady clock, and the server's time


def server_time_s(server: Server) -> float:
    """Return the time of a server, in seconds since the epoch; that of this machine if unknown.

    It is asked once a minute, by a request without credentials: an answer that refuses it has the
    time, too. In between it runs on by the monotonic clock of this machine.
    """
    found = _asked.get(server)
    if found is None or time.monotonic() - found[0] > _AGE_S:
        time_s = _ask(server.address)
        found = _asked[server] = time.monotonic(), time.time() if time_s is None else time_s
    return found[1] + time.monotonic() - found[0]


def _ask(address: str) -> float | None:
    request = urllib.request.Request(address, method="HEAD")
    headers = None
    with suppress(OSError, ValueError):
        try:
            with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as answer:
                headers = answer.headers
        except urllib.error.HTTPError as error:
            with error:
                headers = error.headers
    text = headers.get("Date") if headers is not None else None
    with suppress(TypeError, ValueError):
        return parsedate_to_datetime(text or "").timestamp()
    return None
