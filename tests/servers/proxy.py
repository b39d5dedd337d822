"""A proxy between a client and a server of objects: it counts requests and can spoil them."""

from __future__ import annotations

import http.client
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit


class Fault(Enum):
    """What goes wrong with a request."""

    BUSY = "answered with 503, and not passed on"
    SLOW_DOWN = "answered with 429, and not passed on"
    DROP = "the connection is closed, and nothing passed on"
    LOST = "passed on; the connection is closed in place of the answer"
    LATE = "the connection is closed; passed on a moment later"
    TWICE = "passed on twice; the second answer is sent"
    SHORT = "passed on; the connection is closed in the middle of the answer's content"
    DELAY = "passed on a moment later"


@dataclass(frozen=True)
class Request:
    """A request that a client sent.

    Attributes:
        method: PUT, GET, HEAD, POST or DELETE.
        path: Path, unquoted not; without the query.
        query: The query's values by name.
        headers: Headers by name in lower case.
        n_bytes: Bytes of its content.
    """

    method: str
    path: str
    query: dict[str, list[str]]
    headers: dict[str, str]
    n_bytes: int

    @property
    def kind(self) -> str:
        """What it asks for, in one word."""
        if self.method == "GET" and "list-type" in self.query:
            return "LIST"
        return "CREATE" if "if-none-match" in self.headers else self.method


Choice = Callable[[Request], Fault | None]
_DENIED = b"<Error><Code>AccessDenied</Code></Error>"


class Proxy:
    """A running proxy.

    Attributes:
        url: Its address.
        requests: What was asked for so far.
        choose: Returns the fault of a request; None for none.
        injected: How often each fault was.
        refuses: Returns whether a request is answered as by S3 to a user who may not make it.
    """

    def __init__(self, url: str, upstream: str) -> None:
        self.url, self._upstream = url, urlsplit(upstream)
        self.requests: list[Request] = []
        self.choose: Choice = lambda request: None
        self.injected: Counter[Fault] = Counter()
        self.refuses: Callable[[Request], bool] = lambda request: False
        self.moment_s = 0.2

    @property
    def counts(self) -> Counter[str]:
        """How many requests of each kind there were."""
        return Counter(request.kind for request in self.requests)

    def pass_on(
        self, method: str, target: str, headers: list[tuple[str, str]], body: bytes
    ) -> tuple[int, list[tuple[str, str]], bytes]:
        """Send a request to the server; return the status, the headers and the content."""
        connection = http.client.HTTPConnection(self._upstream.netloc, timeout=60)
        try:
            connection.putrequest(method, target, skip_host=True, skip_accept_encoding=True)
            for name, value in headers:
                connection.putheader(name, value)
            connection.endheaders(body)
            answer = connection.getresponse()
            return answer.status, answer.getheaders(), answer.read()
        finally:
            connection.close()


@contextmanager
def start_proxy(upstream: str) -> Iterator[Proxy]:
    """Run a proxy in a thread of this process, in front of the server at `upstream`."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def handle_one(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
            parts = urlsplit(self.path)
            request = Request(
                self.command,
                parts.path,
                parse_qs(parts.query, keep_blank_values=True),
                {name.lower(): value for name, value in self.headers.items()},
                len(body),
            )
            proxy.requests.append(request)
            if proxy.refuses(request):
                self.answer(403, [], b"" if self.command == "HEAD" else _DENIED)
                return
            fault = proxy.choose(request)
            if fault is not None:
                proxy.injected[fault] += 1
            arguments = (self.command, self.path, list(self.headers.items()), body)
            if fault in (Fault.BUSY, Fault.SLOW_DOWN):
                self.answer(503 if fault is Fault.BUSY else 429, [], b"")
                return
            if fault is Fault.LATE:
                threading.Timer(proxy.moment_s, lambda: proxy.pass_on(*arguments)).start()
            if fault in (Fault.DROP, Fault.LATE):
                self.cut()
                return
            if fault is Fault.DELAY:
                time.sleep(proxy.moment_s)
            if fault is Fault.TWICE:
                proxy.pass_on(*arguments)
            status, headers, content = proxy.pass_on(*arguments)
            if fault is Fault.LOST:
                self.cut()
                return
            self.answer(status, headers, content, fault is Fault.SHORT)

        do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = handle_one  # noqa: N815

        def answer(
            self, status: int, headers: list[tuple[str, str]], content: bytes, cut: bool = False
        ) -> None:
            self.send_response_only(status)
            hop = ("transfer-encoding", "connection", "keep-alive")
            has_length = False
            for name, value in headers:
                has_length |= name.lower() == "content-length"
                if name.lower() not in hop:
                    self.send_header(name, value)
            if not has_length:
                self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content[: len(content) // 2] if cut else content)
            if cut:
                self.wfile.flush()
                self.cut()

        def cut(self) -> None:
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)

        def log_message(self, *arguments: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        request_queue_size = 128

        def handle_error(self, request: object, address: object) -> None:
            """Print nothing: clients close connections whenever they like."""

    server = Server(("127.0.0.1", 0), Handler)
    proxy = Proxy(f"http://127.0.0.1:{server.server_port}", upstream)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield proxy
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
