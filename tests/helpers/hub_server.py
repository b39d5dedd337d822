"""A hub on this machine: an HTTP server with what datasets and models need of the Hugging Face hub.

The clients are the real ones, `huggingface_hub` and `datasets`. As on the hub, a large file is
redirected to a server of another name, a commit never changes, and errors have an `X-Error-Code`.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import datasets
import huggingface_hub
import pytest
from huggingface_hub.utils import _http as hub_http

from pipeline.sources.remote.extents import extents
from pipeline.sources.repository import remote

CONVERTED = "refs/convert/parquet"
PAGE_ENTRIES = 1000
_API = re.compile(
    r"/api/(?:datasets|models)/(?P<repo>[^/]+/[^/]+)(?:/(?P<verb>[a-z-]+)/(?P<rest>.+))?"
)
_RESOLVE = re.compile(
    r"(?:/datasets)?/(?P<repo>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<path>.+)"
)
_LARGE = (".parquet", ".wav", ".flac", ".tar", ".safetensors")


@dataclass(frozen=True)
class Fault:
    """What goes wrong with a request.

    Attributes:
        status: Answer with this status; 0 = a usual answer.
        code: `X-Error-Code` of that answer, as the hub sends it.
        sent_bytes: Close the connection after so many bytes of the content; -1 = send all.
        content: Send this in the place of the content.
        is_whole: Send the whole file where a range is asked for.
    """

    status: int = 0
    code: str | None = None
    sent_bytes: int = -1
    content: bytes | None = None
    is_whole: bool = False


@dataclass(frozen=True)
class Request:
    """A request that the server received.

    Attributes:
        method: HEAD, GET or POST.
        path: Path of the file in its repository, or of the URL for other requests.
        range: Value of its `Range`, or None.
        n_bytes: Bytes of content that were sent.
        is_file: Whether it is about the content of a file.
    """

    method: str
    path: str
    range: str | None
    n_bytes: int
    is_file: bool


@dataclass
class Hub:
    """Repositories of datasets, and what was asked for.

    Attributes:
        url: Address of the server.
        cdn: Address of large files, under another name.
        trees: Files of each commit of each repository, of datasets and models alike.
        branches: Newest commit of each branch of each repository.
        dates: Days of commits, by repository and commit.
        requests: The requests, in order.
        fault: Called with method and path of every request, as `Request` has it, to make it fail.
        token: Token without which nothing is found; None if all is public.
    """

    url: str = ""
    trees: dict[tuple[str, str], dict[str, bytes]] = field(default_factory=dict)
    branches: dict[tuple[str, str], str] = field(default_factory=dict)
    dates: dict[tuple[str, str], str] = field(default_factory=dict)
    requests: list[Request] = field(default_factory=list)
    fault: Callable[[str, str], Fault | None] = lambda method, path: None
    token: str | None = None
    cdn: str = ""

    def commit(
        self, repo: str, files: Mapping[str, bytes], branch: str = "main", date: str = "2024-01-01"
    ) -> str:
        """Make a commit with these files, and no others; return its name."""
        digest = hashlib.sha1(f"{repo} {branch}".encode())
        for path, content in sorted(files.items()):
            digest.update(f"{path} {hashlib.sha1(content).hexdigest()}".encode())
        name = digest.hexdigest()
        self.trees[repo, name] = dict(files)
        self.branches[repo, branch] = name
        self.dates[repo, name] = date
        return name

    def commit_folder(self, repo: str, folder: Path, branch: str = "main") -> str:
        """Make a commit with the files of a folder."""
        files = [path for path in folder.rglob("*") if path.is_file()]
        content = {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}
        return self.commit(repo, content, branch)

    def n_bytes(self, suffix: str = ".parquet") -> int:
        """Return the bytes of content of files with a suffix that were sent."""
        return sum(r.n_bytes for r in self.requests if r.is_file and r.path.endswith(suffix))


@contextmanager
def running_hub() -> Iterator[Hub]:
    """Run a hub without repositories."""
    hub = Hub()

    class Bound(_Handler):
        """A handler of this hub."""

    Bound.hub = hub
    server = ThreadingHTTPServer(("127.0.0.1", 0), Bound)
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    hub.cdn = f"http://localhost:{server.server_address[1]}/cdn"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def use_hub(hub: Hub, home: Path, monkeypatch: pytest.MonkeyPatch, offline: bool = False) -> None:
    """Make the clients in this process use a hub, and caches below `home`, without waiting.

    They read `HF_ENDPOINT` and the others when they are imported.
    """
    constants, url = huggingface_hub.constants, hub.url
    for name, value in {
        "ENDPOINT": url,
        "HUGGINGFACE_CO_URL_TEMPLATE": url + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HUB_CACHE": str(home / "hub"),
        "HF_HUB_OFFLINE": offline,
        "HF_HUB_DISABLE_XET": True,
    }.items():
        monkeypatch.setattr(constants, name, value)
    monkeypatch.setattr(datasets.config, "HF_ENDPOINT", url)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", offline)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", home / "datasets")
    monkeypatch.setattr(
        datasets.config, "HUB_DATASETS_URL", url + "/datasets/{repo_id}/resolve/{revision}/{path}"
    )
    monkeypatch.setattr(datasets.config, "DOWNLOADED_DATASETS_PATH", home / "datasets/downloads")
    monkeypatch.setattr(hub_http, "time", _NoWaiting)
    monkeypatch.setattr(huggingface_hub.file_download, "time", _NoWaiting)
    monkeypatch.setattr(remote, "time", _NoWaiting)
    monkeypatch.setattr(remote, "_addresses", {})
    monkeypatch.setattr(remote, "_recent", remote._Recent())
    extents.forget()
    huggingface_hub.HfFileSystem.clear_instance_cache()
    huggingface_hub.HfFileSystem._cache.clear()


class _NoWaiting:
    """Stands for the module `time` in the clients, which wait up to 8 s before they retry."""

    @staticmethod
    def sleep(seconds: float) -> None:
        """Return at once."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *args: Any) -> None:
        """Print nothing."""

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        url = urlsplit(self.path)
        path, query = unquote(url.path), parse_qs(url.query)
        found = _RESOLVE.fullmatch(url.path)
        parts = {
            name: unquote(value) for name, value in (found.groupdict() if found else {}).items()
        }
        if url.path.startswith("/cdn/"):
            _, _, repo, commit, name = path.split("/", 4)
            return self._file(repo.replace(":", "/"), commit, name)
        fault = self.hub.fault(self.command, parts.get("path", path))
        if fault is not None and fault.status:
            return self._refuse(fault.status, fault.code, parts.get("path", path))
        if found:
            return self._resolve(parts["repo"], parts["revision"], parts["path"])
        found = _API.fullmatch(url.path)
        if found is None:
            return self._refuse(404, None, path)
        rest = (
            unquote(found["rest"] or "") if found["verb"] == "paths-info" else found["rest"] or ""
        )
        return self._api(found["repo"], found["verb"], rest, body, query)

    def _commit(self, repo: str, revision: str) -> str | None:
        """Return the commit of a revision; None after a refusal."""
        authorization = self.headers.get("Authorization")
        if self.hub.token is not None and authorization != f"Bearer {self.hub.token}":
            self._refuse(401, "GatedRepo", repo)
            return None
        if not any(name == repo for name, _ in self.hub.branches):
            self._refuse(404, "RepoNotFound", repo)
            return None
        commit = self.hub.branches.get((repo, revision), revision)
        if (repo, commit) not in self.hub.trees:
            self._refuse(404, "RevisionNotFound", f"{repo}@{revision}")
            return None
        return commit

    def _resolve(self, repo: str, revision: str, path: str) -> None:
        commit = self._commit(repo, revision)
        if commit is None:
            return None
        content = self.hub.trees[repo, commit].get(path)
        headers = {"X-Repo-Commit": commit}
        if content is None:
            return self._refuse(404, "EntryNotFound", path, headers)
        if not path.endswith(_LARGE):
            return self._send(content, path, True, headers | {"ETag": f'"{_blob(content)}"'})
        headers |= {
            "X-Linked-Size": str(len(content)),
            "X-Linked-ETag": f'"{hashlib.sha256(content).hexdigest()}"',
            "Location": f"{self.hub.cdn}/{repo.replace('/', ':')}/{commit}/{path}",
        }
        return self._send(b"", path, False, headers, 302)

    def _file(self, repo: str, commit: str, path: str) -> None:
        """Send a large file, or a range of it, from what the hub calls its CDN."""
        fault = self.hub.fault(self.command, f"cdn:{path}") or Fault()
        if fault.status:
            return self._refuse(fault.status, fault.code, path)
        content = self.hub.trees[repo, commit][path]
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        headers, status = {"Accept-Ranges": "bytes"}, 200
        headers["ETag"] = f'"{hashlib.sha256(content).hexdigest()}"'
        part = content
        if wanted and not fault.is_whole:
            start, stop = int(wanted[1]), min(int(wanted[2] or len(content) - 1) + 1, len(content))
            if start >= len(content):
                return self._refuse(416, None, path)
            part, status = content[start:stop], 206
            headers["Content-Range"] = f"bytes {start}-{stop - 1}/{len(content)}"
        part = part if fault.content is None else fault.content
        return self._send(part, path, True, headers, status, fault.sent_bytes)

    def _api(
        self, repo: str, verb: str | None, rest: str, body: bytes, query: dict[str, list[str]]
    ) -> None:
        revision, _, path = rest.partition("/")
        commit = self._commit(repo, unquote(revision) or "main")
        if commit is None:
            return None
        tree = self.hub.trees[repo, commit]
        if verb in (None, "revision"):
            siblings = [{"rfilename": name} for name in sorted(tree)]
            info = {"id": repo, "sha": commit, "siblings": siblings, "private": False, "tags": []}
            date = f"{self.hub.dates[repo, commit]}T00:00:00.000Z"
            info |= {"lastModified": date}
            return self._json(info | {"gated": False, "disabled": False, "downloads": 0})
        if verb == "paths-info":
            names = {n.strip("/") for n in parse_qs(body.decode()).get("paths", [])}
            entries = [e for e in _entries(tree) if e["path"] in names]
            return self._json(entries)
        if verb == "tree":
            prefix = f"{unquote(path)}/" if path else ""
            entries = [e for e in _entries(tree) if e["path"].startswith(prefix)]
            if query.get("recursive", ["false"])[0].lower() != "true":
                entries = [e for e in entries if "/" not in e["path"][len(prefix) :]]
            if prefix and not entries:
                return self._refuse(404, "EntryNotFound", path)
            return self._json(entries)
        return self._refuse(404, None, rest)

    def _json(self, value: Any) -> None:
        content = json.dumps(value).encode()
        self._send(content, unquote(self.path), False, {"Content-Type": "application/json"})

    def _refuse(
        self, status: int, code: str | None, what: str, headers: Mapping[str, str] | None = None
    ) -> None:
        stated = {"X-Error-Code": code} if code else {}
        stated["X-Error-Message"] = f"{code or status}: {what}"
        self._send(b"", what, False, {**stated, **(headers or {})}, status)

    def _send(
        self,
        content: bytes,
        path: str,
        is_file: bool,
        headers: Mapping[str, str],
        status: int = 200,
        sent_bytes: int = -1,
    ) -> None:
        """Send an answer; close the connection after `sent_bytes` of it, unless they are -1."""
        sent = content if sent_bytes < 0 else content[:sent_bytes]
        sent = b"" if self.command == "HEAD" else sent
        request = Request(self.command, path, self.headers.get("Range"), len(sent), is_file)
        self.hub.requests.append(request)
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(sent)
        if 0 <= sent_bytes < len(content):
            self.close_connection = True


def _blob(content: bytes) -> str:
    return hashlib.sha1(f"blob {len(content)}\0".encode() + content).hexdigest()


def _entries(tree: Mapping[str, bytes]) -> list[dict[str, Any]]:
    """Return files and folders as the hub lists them."""
    folders = {str(parent) for path in tree for parent in Path(path).parents if str(parent) != "."}
    entries: list[dict[str, Any]] = [
        {"type": "directory", "path": name, "oid": _blob(name.encode()), "size": 0}
        for name in folders
    ]
    for path, content in tree.items():
        entry = {"type": "file", "path": path, "oid": _blob(content), "size": len(content)}
        if path.endswith(_LARGE):
            sha = hashlib.sha256(content).hexdigest()
            entry["lfs"] = {"oid": sha, "size": len(content), "pointerSize": 130}
        entries.append(entry)
    return sorted(entries, key=lambda entry: str(entry["path"]))
