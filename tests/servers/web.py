"""A web server of a folder: lists as pages of links, and reads by range, if it is told to."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


@contextmanager
def serve_folder(folder: Path, has_ranges: bool = True) -> Iterator[str]:
    """Serve a folder while the `with` block runs; yield its address.

    Args:
        folder: The folder.
        has_ranges: Whether ranges are served; if not, the whole file is sent, as many servers do.
    """
    handler = partial(_Ranges if has_ranges else _Quiet, directory=str(folder))
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """Print nothing."""


class _Ranges(_Quiet):
    def do_GET(self) -> None:
        """Send a range if one is asked for."""
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        path = Path(self.translate_path(self.path))
        if asked is None or not path.is_file():
            super().do_GET()
            return
        content = path.read_bytes()
        first, last = int(asked[1]), int(asked[2])
        if first >= len(content):
            self.send_error(416)
            return
        some = content[first : last + 1]
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {first}-{first + len(some) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(some)))
        self.end_headers()
        self.wfile.write(some)
