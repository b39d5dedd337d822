"""A small server that speaks the calls of the Hugging Face hub that Strata makes.

It keeps dataset repositories in memory: their creation, the upload of large files by LFS, commits,
lists of the tree, and reads by range. What it does not know is answered with 404 and noted.
`tests/helpers/hub_server.py` is another one, for datasets: it has revisions and faults, and no
writes.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

from pipeline.objects import filesystem

LFS_BYTES = 4096
"""Files from this size on are uploaded by LFS; the real hub looks at their content, too."""


@dataclass
class Repository:
    """A dataset repository.

    Attributes:
        files: Content by path.
        commits: Message and paths of each commit.
        private: Whether it was created as private.
    """

    files: dict[str, bytes] = field(default_factory=dict)
    commits: list[tuple[str, list[str]]] = field(default_factory=list)
    private: bool = False

    @property
    def sha(self) -> str:
        """Id of the last commit."""
        return hashlib.sha1(str(len(self.commits)).encode()).hexdigest()

    def entry(self, path: str) -> dict[str, Any]:
        """Return what a list of the tree says of a file."""
        content = self.files[path]
        found: dict[str, Any] = {"type": "file", "path": path, "size": len(content)}
        if len(content) < LFS_BYTES:
            return found | {"oid": _git_sha(content)}
        sha = hashlib.sha256(content).hexdigest()
        pointer = _git_sha(f"pointer {sha}".encode())
        return found | {"oid": pointer, "lfs": {"oid": sha, "size": len(content), "pointerSize": 9}}


@dataclass
class Hub:
    """A running server.

    Attributes:
        endpoint: Its address, for HF_ENDPOINT.
        repositories: By id.
        objects: LFS objects by sha256.
        requests: Method and path of every request, in order.
        unknown: Those that were answered with 404 because the server does not know the call.
        fail_after: Number of further commits after which each is answered with 500; None for never.
        refused: Calls whose method and path begin so are answered with 403; None for none.
    """

    endpoint: str = ""
    repositories: dict[str, Repository] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)
    fail_after: int | None = None
    refused: str | None = None

    def use(self, patch: pytest.MonkeyPatch) -> None:
        """Make this process, and those that it starts, use the server."""
        from huggingface_hub import constants

        patch.setattr(filesystem, "_made", {})  # a process has one hub; tests have several
        for name, value in {
            "HF_ENDPOINT": self.endpoint,
            "HF_TOKEN": "hf_test",
            "HF_HUB_DISABLE_XET": "1",
        }.items():
            patch.setenv(name, value)
        template = self.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        patch.setattr(constants, "ENDPOINT", self.endpoint)
        patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        patch.setattr(constants, "HF_HUB_DISABLE_XET", True)


@contextmanager
def serve_hub() -> Iterator[Hub]:
    """Run a server while the `with` block runs."""
    hub = Hub()

    class Handler(_Handler):
        state = hub

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    state: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        """Print nothing."""

    def do_GET(self) -> None:
        """Answer a read."""
        self._answer()

    do_HEAD = do_POST = do_PUT = do_GET  # noqa: N815  the names of http.server

    def _answer(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length)
        if self.headers.get("Transfer-Encoding") == "chunked":
            body = self._chunks()
        parts = urlsplit(self.path)
        path = unquote(parts.path)
        self.state.requests.append(f"{self.command} {path}")
        refused = self.state.refused
        if refused is not None and f"{self.command} {path}".startswith(refused):
            self._json({"error": "this token may only read"}, 403)
            return
        for pattern, name in _CALLS:
            match = re.fullmatch(pattern, f"{self.command} {path}")
            if match:
                getattr(self, name)(*match.groups(), body=body, query=parse_qs(parts.query))
                return
        self.state.unknown.append(f"{self.command} {path}")
        self._json({"error": "unknown call"}, 404)

    def _chunks(self) -> bytes:
        found = b""
        while size := int(self.rfile.readline(), 16):
            found += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return found

    def _json(self, content: Any, status: int = 200, headers: Mapping[str, str] = {}) -> None:
        self._send(json.dumps(content).encode(), status, headers)

    def _send(self, content: bytes, status: int, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _found(self, name: str) -> Repository | None:
        repository = self.state.repositories.get(name)
        if repository is None:
            headers = {"X-Error-Code": "RepoNotFound"}
            self._json({"error": "Repository not found"}, 404, headers)
        return repository

    def create(self, body: bytes, **_: Any) -> None:
        """Create a repository."""
        asked = json.loads(body)
        name = f"{asked.get('organization') or 'me'}/{asked['name']}"
        if name in self.state.repositories:
            self._json({"error": "exists", "url": f"{self.state.endpoint}/datasets/{name}"}, 409)
            return
        self.state.repositories[name] = Repository(private=asked.get("visibility") == "private")
        self._json({"url": f"{self.state.endpoint}/datasets/{name}"})

    def whoami(self, **_: Any) -> None:
        """Name the user."""
        self._json({"name": "me", "type": "user"})

    def info(self, name: str, *_: Any, **__: Any) -> None:
        """Describe a repository."""
        repository = self._found(name)
        if repository is not None:
            self._json({"id": name, "sha": repository.sha, "private": repository.private})

    def validate(self, **_: Any) -> None:
        """Accept any metadata of a card."""
        self._json({"errors": [], "warnings": []})

    def preupload(self, name: str, body: bytes, **_: Any) -> None:
        """Say how each file is uploaded."""
        files = json.loads(body)["files"]
        modes = [
            {
                "path": item["path"],
                "uploadMode": "lfs" if item["size"] >= LFS_BYTES else "regular",
                "shouldIgnore": False,
            }
            for item in files
        ]
        self._json({"files": modes})

    def batch(self, name: str, body: bytes, **_: Any) -> None:
        """Say where LFS objects go; those that are here already go nowhere."""
        found = []
        for item in json.loads(body)["objects"]:
            href = f"{self.state.endpoint}/lfs/{item['oid']}"
            actions = {} if item["oid"] in self.state.objects else {"upload": {"href": href}}
            found.append({**item, "actions": actions} if actions else item)
        self._json({"transfer": "basic", "objects": found})

    def put_object(self, sha: str, body: bytes, **_: Any) -> None:
        """Keep an LFS object."""
        if hashlib.sha256(body).hexdigest() != sha:
            self._json({"error": "wrong content"}, 400)
            return
        self.state.objects[sha] = body
        self._json({})

    def commit(self, name: str, body: bytes, **_: Any) -> None:
        """Make a commit: all of it, or nothing."""
        repository = self._found(name)
        if repository is None:
            return
        if self.state.fail_after is not None:
            self.state.fail_after -= 1
            if self.state.fail_after < 0:
                self._json({"error": "the server is ill"}, 500)
                return
        message, changed = "", {}
        for line in body.splitlines():
            item = json.loads(line)
            value = item["value"]
            if item["key"] == "header":
                message = value["summary"]
            elif item["key"] == "file":
                changed[value["path"]] = base64.b64decode(value["content"])
            elif item["key"] == "lfsFile":
                changed[value["path"]] = self.state.objects[value["oid"]]
        repository.files |= changed
        repository.commits.append((message, sorted(changed)))
        url = f"{self.state.endpoint}/datasets/{name}/commit/{repository.sha}"
        self._json({"commitUrl": url, "commitOid": repository.sha, "success": True})

    def tree(self, name: str, _: str, folder: str | None, query: Any, **__: Any) -> None:
        """List a folder."""
        repository = self._found(name)
        if repository is None:
            return
        start = f"{folder.strip('/')}/" if folder and folder.strip("/") else ""
        below = sorted(path for path in repository.files if path.startswith(start))
        if start and not below:
            headers = {"X-Error-Code": "EntryNotFound"}
            self._json({"error": "no such folder"}, 404, headers)
            return
        deep = query.get("recursive", ["false"])[0].lower() in ("true", "1")
        folders = {
            start + "/".join(rest[: n + 1])
            for path in below
            for rest in [path.removeprefix(start).split("/")]
            for n in range(len(rest) - 1)
            if deep or n == 0
        }
        files = [path for path in below if deep or "/" not in path.removeprefix(start)]
        entries = [{"type": "directory", "path": item, "oid": "0", "size": 0} for item in folders]
        self._json(entries + [repository.entry(path) for path in files])

    def paths_info(self, name: str, body: bytes, **_: Any) -> None:
        """Describe files."""
        repository = self._found(name)
        if repository is not None:
            try:
                paths = json.loads(body)["paths"]
            except ValueError:
                paths = parse_qs(body.decode())["paths"]
            self._json([repository.entry(path) for path in paths if path in repository.files])

    def resolve(self, name: str, _: str, path: str, **__: Any) -> None:
        """Send a file, or a range of it."""
        repository = self._found(name)
        if repository is None:
            return
        content = repository.files.get(path)
        if content is None:
            self._json({"error": "no such file"}, 404, {"X-Error-Code": "EntryNotFound"})
            return
        headers = {"ETag": f'"{_git_sha(content)}"', "X-Repo-Commit": repository.sha}
        match = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if match is None:
            self._send(content, 200, headers)
            return
        first, last = int(match[1]), int(match[2] or len(content) - 1)
        if first >= len(content):
            self._send(b"", 416, headers)
            return
        some = content[first : last + 1]
        stated = f"bytes {first}-{first + len(some) - 1}/{len(content)}"
        self._send(some, 206, headers | {"Content-Range": stated})


_ID = r"([\w.-]+/[\w.-]+)"
_CALLS = (
    (r"POST /api/repos/create", "create"),
    (r"GET /api/whoami-v2", "whoami"),
    (r"POST /api/validate-yaml", "validate"),
    (rf"GET /api/datasets/{_ID}(?:/revision/[^/]+)?", "info"),
    (rf"POST /api/datasets/{_ID}/preupload/[^/]+", "preupload"),
    (rf"POST /datasets/{_ID}\.git/info/lfs/objects/batch", "batch"),
    (r"PUT /lfs/(\w+)", "put_object"),
    (rf"POST /api/datasets/{_ID}/commit/[^/]+", "commit"),
    (rf"GET /api/datasets/{_ID}/tree/([^/]+)(/.*)?", "tree"),
    (rf"POST /api/datasets/{_ID}/paths-info/[^/]+", "paths_info"),
    (rf"(?:GET|HEAD) /datasets/{_ID}/resolve/([^/]+)/(.+)", "resolve"),
)


def _git_sha(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
