"""A dataset repository of the hub: what is in it, and commits."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import ConfigError, StoreError, first_few

_URI = re.compile(r"hf://datasets/([\w.-]+/[\w.-]+?)(?:@([\w./-]+))?/?")
_DENIED = (401, 403)
_LOG_IN = "; log in with `hf auth login`, or set HF_TOKEN to a token that may write"


@dataclass(frozen=True)
class HubFile:
    """A file of the repository.

    Attributes:
        size: Its bytes.
        git_sha: Id of its content as git has it; of a large file that of its pointer.
        sha256: Hash of the content of a large file; None for a small one.
    """

    size: int
    git_sha: str
    sha256: str | None

    def has(self, content: bytes) -> bool:
        """Return whether this is its content."""
        if self.size != len(content):
            return False
        if self.sha256 is not None:
            return hashlib.sha256(content).hexdigest() == self.sha256
        header = b"blob %d\0" % len(content)
        return hashlib.sha1(header + content, usedforsecurity=False).hexdigest() == self.git_sha


@dataclass(frozen=True)
class Upload:
    """A file to upload.

    Attributes:
        key: Where it goes.
        content: Its content, or the file of this machine that has it.
    """

    key: str
    content: bytes | Path


class HubRepository:
    """A dataset repository.

    Args:
        uri: hf://datasets/USER/NAME, perhaps with @BRANCH.

    Raises:
        ConfigError: It is no such URI.
    """

    def __init__(self, uri: str) -> None:
        match = _URI.fullmatch(uri)
        if match is None:
            raise ConfigError(f"{uri}: expected hf://datasets/USER/NAME, perhaps with @BRANCH")
        from huggingface_hub import HfApi

        self._uri, self._name, self._branch = uri.rstrip("/"), match[1], match[2] or "main"
        self._hub = HfApi(library_name="strata-speech")

    @property
    def uri(self) -> str:
        """Its URI."""
        return self._uri

    @property
    def name(self) -> str:
        """User and name."""
        return self._name

    def create(self, private: bool) -> None:
        """Create the repository and the branch, unless they exist.

        Raises:
            StoreError: The hub refuses; the message says why.
        """
        with self._told("create it"):
            self._hub.create_repo(self._name, repo_type="dataset", private=private, exist_ok=True)
            if self._branch != "main":
                self._hub.create_branch(
                    self._name, branch=self._branch, repo_type="dataset", exist_ok=True
                )

    def files(self) -> Mapping[str, HubFile]:
        """List all files.

        Raises:
            StoreError: The hub refuses.
        """
        from huggingface_hub.hf_api import RepoFile

        found = {}
        with self._told("list it"):
            for item in self._hub.list_repo_tree(
                self._name, recursive=True, repo_type="dataset", revision=self._branch
            ):
                if isinstance(item, RepoFile):
                    large = item.lfs.sha256 if item.lfs else None
                    found[item.path] = HubFile(item.size, item.blob_id, large)
        return found

    def read(self, key: str) -> bytes:
        """Read a small file.

        Raises:
            StoreError: The hub refuses.
        """
        from huggingface_hub import HfFileSystem

        with self._told(f"read {key}"):
            files = HfFileSystem(endpoint=self._hub.endpoint, skip_instance_cache=True)
            content: bytes = files.cat_file(f"datasets/{self._name}@{self._branch}/{key}")
        return content

    def begin(self) -> HubCommit:
        """Begin a commit."""
        return HubCommit(self._hub, self._name, self._branch, self._told)

    @contextmanager
    def _told(self, action: str) -> Iterator[None]:
        """Raise what the hub's library raises as a StoreError in one line."""
        from huggingface_hub.errors import (
            HfHubHTTPError,
            HFValidationError,
            LocalTokenNotFoundError,
        )

        try:
            yield
        except Exception as raised:
            error: BaseException = raised
            if type(raised) is RuntimeError and raised.__cause__ is not None:
                error = raised.__cause__  # how the library reports an upload that failed
            again = "; run the same command again: it goes on where it stopped"
            where = f"{self._uri}: cannot {action}"
            if isinstance(error, LocalTokenNotFoundError | HFValidationError):
                raise StoreError(f"{self._uri}: {_line(error)}") from None
            if isinstance(error, HfHubHTTPError):
                is_denied = getattr(error.response, "status_code", 0) in _DENIED
                remedy = _LOG_IN if is_denied else again
                raise StoreError(f"{where}: {_line(error)}{remedy}") from None
            if isinstance(error, OSError) and error.filename is None:
                raise StoreError(f"{where}: {_line(error)}") from None
            if _is_of_connection(error):
                raise StoreError(f"{where}: {_line(error)}{again}") from None
            raise  # of a file of this machine, or of this program


class HubCommit:
    """Files that become visible together.

    Large ones are sent when they are added; a repeated push does not send them again.
    """

    def __init__(self, hub: Any, name: str, branch: str, told: Callable[[str], Any]) -> None:
        self._hub, self._told = hub, told
        self._place = {"repo_id": name, "repo_type": "dataset", "revision": branch}
        self._operations: list[Any] = []
        self.n_bytes = 0

    def __len__(self) -> int:
        return len(self._operations)

    def add(self, uploads: Sequence[Upload]) -> None:
        """Add files, and send the large ones.

        Raises:
            StoreError: The hub refuses.
        """
        from huggingface_hub import CommitOperationAdd

        operations = [CommitOperationAdd(item.key, item.content) for item in uploads]
        named = first_few([item.key for item in uploads])
        with self._told(f"upload {named}"), _no_bars():
            self._hub.preupload_lfs_files(
                self._place["repo_id"],
                operations,
                repo_type="dataset",
                revision=self._place["revision"],
            )
        self._operations += operations
        self.n_bytes += sum(operation.upload_info.size for operation in operations)

    def finish(self, message: str) -> None:
        """Make the files visible.

        Raises:
            StoreError: The hub refuses.
        """
        named = first_few([operation.path_in_repo for operation in self._operations])
        with self._told(f"commit {named}"), _no_bars():
            self._hub.create_commit(
                operations=self._operations, commit_message=message, **self._place
            )
        self._operations, self.n_bytes = [], 0


@contextmanager
def _no_bars() -> Iterator[None]:
    """Keep the hub's library from drawing bars: a push has a progress of its own."""
    from huggingface_hub.utils.tqdm import (
        are_progress_bars_disabled,
        disable_progress_bars,
        enable_progress_bars,
    )

    if are_progress_bars_disabled():
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()


def _is_of_connection(error: BaseException) -> bool:
    """Return whether an exception is one of the hub's http library."""
    return any(kind.__module__.startswith("httpx") for kind in type(error).__mro__)


def _line(error: BaseException) -> str:
    """Return the text of an error, its first paragraphs in one line."""
    return " ".join(str(error).split())[:400] or type(error).__name__
