"""Ranges of bytes of files on the hub, which are never stored: `dataset.stream=true`.

A file is named by its commit, so its content cannot change. The hub answers with the address of
the content, which is valid for some time, and is asked for again when it has expired.
"""

from __future__ import annotations

import re
import threading
import time
from collections import deque
from contextlib import AbstractContextManager
from typing import NamedTuple
from urllib.parse import urlsplit

import huggingface_hub
from huggingface_hub.utils import (  # type: ignore[attr-defined] # of its documented names
    build_hf_headers,
    hf_raise_for_status,
    http_backoff,
)

from pipeline.errors import SourceError
from pipeline.sources.repository.errors import HubUnreachableError, explained

_FILE = re.compile(r"hf://datasets/([^@]+)@([^/]+)/(.+)")
_PLACE = re.compile(r"hf://datasets/([^/@]+/[^/@]+)(?:@([^/]+))?(?:/(.*))?")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_N_TRIES = 4  # of answers that are too short; errors of the connection are retried by the client
_TIMEOUT_S = 30.0
_WAITS_S = (1.0, 2.0, 4.0, 8.0)
_MAX_KEPT, _MAX_KEPT_BYTES = 64, 1 << 26
_EXPIRED = (401, 403, 404, 410)
_RETRIED = (408, 429, 500, 502, 503, 504)


class _Address(NamedTuple):
    """Where the content of a file is.

    Attributes:
        url: Address for HTTP.
        n_bytes: Size of the file.
    """

    url: str
    n_bytes: int


class _Recent:
    """The ranges that were read last; thread-safe.

    A clip is opened to be decoded, and again to compare it with the plan; a footer is read by Arrow
    and here.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._ranges: deque[tuple[str, int, bytes]] = deque()  # newest first
        self._n_bytes = 0

    def find(self, path: str, start: int, n_bytes: int) -> bytes | None:
        """Return bytes that lie within one of the ranges; None if they do not."""
        with self._lock:
            for known, first, content in self._ranges:
                if known == path and first <= start and start + n_bytes <= first + len(content):
                    return content[start - first : start - first + n_bytes]
        return None

    def add(self, path: str, start: int, content: bytes) -> None:
        """Keep a range, and as many earlier ones as there is room for."""
        if len(content) > _MAX_KEPT_BYTES:
            return
        with self._lock:
            self._ranges.appendleft((path, start, content))
            self._n_bytes += len(content)
            while self._n_bytes > _MAX_KEPT_BYTES or len(self._ranges) > _MAX_KEPT:
                self._n_bytes -= len(self._ranges.pop()[2])


_recent = _Recent()
_addresses: dict[str, _Address] = {}
_lock = threading.Lock()


def size_of(path: str) -> int:
    """Return the bytes of a file on the hub.

    Raises:
        SourceError: The hub refuses it, or its commit is gone.
        HubUnreachableError: The hub does not answer.
    """
    return _address(path).n_bytes


def resolved(uri: str) -> str:
    """Return the URI of a file or a folder with the commit of its revision.

    Raises:
        SourceError: It is no URI of a dataset, or the hub refuses it.
        HubUnreachableError: The hub does not answer.
    """
    found = _PLACE.fullmatch(uri)
    if found is None:
        raise SourceError(
            f"{uri}: expected hf://datasets/USER/NAME/PATH, or hf://datasets/USER/NAME@REVISION/…"
        )
    name, revision, path = found[1], found[2], (found[3] or "").strip("/")
    if revision is None or not _COMMIT.fullmatch(revision):
        with explained(name, revision, uri):
            revision = huggingface_hub.HfApi().dataset_info(name, revision=revision).sha
    return f"hf://datasets/{name}@{revision}" + (f"/{path}" if path else "")


def list_files(folder: str) -> dict[str, tuple[int, str]]:
    """List the files below a folder of a commit.

    Returns:
        Bytes and digest of the content of each, by its path relative to the folder; empty if there
        is no such folder.

    Raises:
        SourceError: The hub refuses it.
        HubUnreachableError: The hub does not answer.
    """
    found = _PLACE.fullmatch(resolved(folder))
    assert found is not None
    name, commit, path = found[1], found[2], found[3]
    start = len(path) + 1 if path else 0
    with explained(name, commit, folder):
        try:
            entries = huggingface_hub.HfApi().list_repo_tree(
                name, path, recursive=True, revision=commit, repo_type="dataset"
            )
            files = [e for e in entries if isinstance(e, huggingface_hub.hf_api.RepoFile)]
        except huggingface_hub.errors.EntryNotFoundError:
            return {}
    return {
        file.path[start:]: (file.size, file.lfs.sha256 if file.lfs else file.blob_id)
        for file in files
    }


def read_range(path: str, start: int, n_bytes: int) -> bytes:
    """Read bytes of a file on the hub, exactly as many as are asked for.

    Args:
        path: `hf://datasets/NAME@COMMIT/FILE`.
        start: First byte.
        n_bytes: Number of bytes, all of which the file has.

    Raises:
        SourceError: The hub refuses them, or its commit is gone.
        HubUnreachableError: The hub does not answer, or too few bytes come in every try.
    """
    if n_bytes == 0:
        return b""
    known = _recent.find(path, start, n_bytes)
    if known is not None:
        return known
    content = b""
    for _ in range(_N_TRIES):
        content = _request(path, start, n_bytes)
        if len(content) == n_bytes:
            _recent.add(path, start, content)
            return content
    raise HubUnreachableError(
        f"{path} could not be read from the hub: of the {n_bytes:,} bytes from {start:,} only "
        f"{len(content):,} came; run the same command again: what is extracted is kept"
    )


def _request(path: str, start: int, n_bytes: int) -> bytes:
    for is_last in (False, True):
        url = _address(path).url
        headers = {"Range": f"bytes={start}-{start + n_bytes - 1}", "Accept-Encoding": "identity"}
        if urlsplit(url).netloc == urlsplit(huggingface_hub.constants.ENDPOINT).netloc:
            headers |= build_hf_headers()
        with _explained(path):
            response = http_backoff(
                "GET", url, headers=headers, timeout=_TIMEOUT_S, retry_on_status_codes=_RETRIED
            )
            if response.status_code in _EXPIRED and not is_last:
                with _lock:
                    _addresses.pop(path, None)
                continue
            hf_raise_for_status(response)
        is_whole = response.status_code == 200 and (start, n_bytes) == (0, _address(path).n_bytes)
        if response.status_code != 206 and not is_whole:
            raise SourceError(
                f"{path}: the server sends no ranges of bytes (HTTP {response.status_code}); "
                "leave out dataset.stream=true to download the files"
            )
        return bytes(response.content)
    raise AssertionError("unreachable")


def _address(path: str) -> _Address:
    with _lock:
        known = _addresses.get(path)
    if known is not None:
        return known
    name, commit, file = _parts(path)
    url = huggingface_hub.hf_hub_url(name, file, repo_type="dataset", revision=commit)
    found = _metadata(path, url)
    if found.size is None:
        raise SourceError(f"{path}: the hub states no size; leave out dataset.stream=true")
    with _lock:
        _addresses[path] = _Address(found.location, found.size)
        return _addresses[path]


def _metadata(path: str, url: str) -> huggingface_hub.HfFileMetadata:
    """Ask the hub for the address and the size of a file; the client does not retry it."""
    for wait_s in _WAITS_S:
        try:
            with _explained(path):
                return huggingface_hub.get_hf_file_metadata(url)
        except HubUnreachableError:
            if huggingface_hub.constants.HF_HUB_OFFLINE:
                raise
            time.sleep(wait_s)
    with _explained(path):
        return huggingface_hub.get_hf_file_metadata(url)


def _parts(path: str) -> tuple[str, str, str]:
    found = _FILE.fullmatch(path)
    if found is None:
        raise SourceError(f"{path} is no file of a commit of a dataset on the hub")
    return found[1], found[2], found[3]


def _explained(path: str) -> AbstractContextManager[None]:
    name, commit, _ = _parts(path)
    return explained(name, commit, f"{path}: it")
