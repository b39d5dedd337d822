"""A real browser that looks at a page, and a server that hears everything it asks for."""

from __future__ import annotations

import json
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from html import unescape
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import urlsplit

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
HOST = "report.test"
CALLS_HOME = (".google.com", ".googleapis.com", ".gstatic.com", ".gvt1.com")
"""What the browser asks for by itself, whatever page is open."""
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-default-apps",
    "--disable-extensions",
    "--hide-scrollbars",
)

MEASURE = """<!doctype html>
<iframe id="page" src="/report.html" style="width: {width}px; height: 2000px; border: 0"></iframe>
<pre id="found"></pre>
<script>
document.getElementById("page").onload = function () {{
  const inner = this.contentDocument;
  const charts = [...inner.querySelectorAll("svg")].map((svg) => {{
    const box = svg.getBoundingClientRect();
    const drawn = [...svg.querySelectorAll("path, use, text")].filter((part) => {{
      const size = part.getBoundingClientRect();
      return size.width + size.height > 0;
    }});
    const outside = [...svg.querySelectorAll("text")].filter((text) => {{
      const at = text.getBoundingClientRect();
      return at.left < box.left - 1 || at.right > box.right + 1 ||
        at.top < box.top - 1 || at.bottom > box.bottom + 1;
    }}).map((text) => text.textContent);
    return {{label: svg.getAttribute("aria-label"), width: box.width, height: box.height,
      drawn: drawn.length, outside: outside}};
  }});
  document.getElementById("found").textContent = JSON.stringify({{
    charts: charts, loaded: this.contentWindow.performance.getEntriesByType("resource").length,
    room: inner.documentElement.clientWidth, needed: inner.documentElement.scrollWidth,
  }});
}};
</script>"""
"""A page around the report that measures what the browser made of it."""


@dataclass
class Site:
    """A folder on the web.

    Attributes:
        folder: What is served.
        port: Of the server, which is the browser's proxy too: it hears of every host.
        asked: Every address that was asked for.
        pages: Pages beside the folder's files, by path.
    """

    folder: Path
    port: int = 0
    asked: list[str] = field(default_factory=list)
    pages: dict[str, str] = field(default_factory=dict)

    def asked_by_pages(self) -> set[str]:
        """Addresses that pages asked for, whatever their host; the browser asks for the icon."""
        hosts = {url: urlsplit(url if "://" in url else f"//{url}").hostname for url in self.asked}
        return {
            url
            for url, host in hosts.items()
            if not f".{host}".endswith(CALLS_HOME) and not url.endswith("/favicon.ico")
        }


@contextmanager
def served(folder: Path) -> Iterator[Site]:
    """Serves a folder as `http://report.test/` to a browser that has the server as its proxy."""
    site = Site(folder)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            site.asked.append(self.path)
            address = urlsplit(self.path)
            file = folder / address.path.lstrip("/")
            if address.hostname != HOST or not (address.path in site.pages or file.is_file()):
                self.send_error(404)
                return
            body = site.pages.get(address.path, "").encode() or file.read_bytes()
            self.send_response(200)
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_CONNECT(self) -> None:  # how a proxy is asked for https
            site.asked.append(self.path)
            self.send_error(403)

        def log_message(self, *_: object) -> None:
            """Quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    site.port = server.server_port
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield site
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def find_browser() -> str | None:
    """Path of a Chromium or Chrome, if one is installed."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


def browse(site: Site, path: str, *flags: str) -> str:
    """Opens a page of the site and waits until it is loaded; what the browser printed."""
    browser = find_browser()
    assert browser is not None
    with TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        done = subprocess.run(
            [
                browser,
                *FLAGS,
                f"--user-data-dir={profile}",
                f"--proxy-server=http://127.0.0.1:{site.port}",
                *flags,
                f"http://{HOST}{path}",
            ],
            capture_output=True,
            text=True,
            timeout=120,
        )
    assert done.returncode == 0, done.stderr
    return done.stdout


def measure(site: Site, width: int) -> dict:
    """What a window of so many pixels shows of the site's report.html."""
    site.pages["/measure.html"] = MEASURE.format(width=width)
    dom = browse(site, "/measure.html", "--dump-dom", "--window-size=1400,2200")
    found = dom.partition('<pre id="found">')[2].partition("</pre>")[0]
    return json.loads(unescape(found))
