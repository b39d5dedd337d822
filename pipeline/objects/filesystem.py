"""Objects of any file system that fsspec knows, for reading: the Hugging Face hub, http, sftp.

Such a place has no conditional creation, so nothing is written there by this package.
"""

from __future__ import annotations

import errno
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, NoReturn, TypeVar

from pipeline.errors import ConfigError, RefusedError, StoreError, UnreachableError
from pipeline.files import Buffer
from pipeline.objects.base import ObjectInfo, Objects
from pipeline.objects.library import generation
from pipeline.objects.uri import scheme_of

Result = TypeVar("Result")

_OTHERS = ("file", "local", "dir", "s3", "gs", "az")  # this machine, and those of `client.py`
_STAMPS = (
    "ETag", "etag", "e_tag", "blob_id", "sha256", "Content-MD5", "Digest", "Last-Modified", "mtime",
    "last_modified", "LastModified", "created",
)  # fmt: skip
_TIMES = ("mtime", "last_modified", "LastModified", "modified", "created")
_ATTEMPTS = 4
_FIRST_WAIT_S = 0.2
_PASSING = (ConnectionError, TimeoutError)


class FileSystemClient(Objects):
    """The files below a folder of a file system, as objects that can be read.

    Safe to use from several threads and after a fork. It pickles with its URI only: credentials
    come from the environment or the files of the process that loads it.

    Reads raise a FileNotFoundError for a missing file and another OSError otherwise, with the URI
    as its `filename`. Writes raise a StoreError.

    Args:
        uri: A URI whose scheme fsspec knows, such as hf://datasets/USER/NAME or https://HOST/PATH.

    Raises:
        ConfigError: fsspec does not know it, or has no library for it, or it holds a password.
    """

    def __init__(self, uri: str) -> None:
        self._uri = uri.rstrip("/")
        _check(self._uri)
        _class_of(self._uri)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, FileSystemClient) and self._uri == other._uri

    def __hash__(self) -> int:
        return hash(self._uri)

    def __repr__(self) -> str:
        return f"FileSystemClient({self._uri!r})"

    @property
    def uri(self) -> str:
        """The URI of the folder."""
        return self._uri

    @property
    def server(self) -> str:
        """The kind of place, for messages."""
        return {"hf": "the Hugging Face hub"}.get(scheme_of(self._uri), scheme_of(self._uri))

    def locate(self, key: str) -> str:
        """Return the URI of a file."""
        return f"{self._uri}/{key}" if key else self._uri

    def get(self, key: str) -> bytes:
        """Read a whole file."""
        return self._try(key, lambda files, path: bytes(files.cat_file(path)))

    def fetch(self, key: str, start: int, length: int, etag: str = "") -> tuple[memoryview, None]:
        """Read a range of a file; few of these places could compare an ETag.

        Raises:
            EOFError: The file ends before.
            OSError: It cannot be read.
        """
        try:
            content = self._try(key, lambda files, path: _cat(files, path, start, start + length))
        except EOFError:
            content = b""
        if len(content) == length:
            return memoryview(content), None
        size = self.head(key).size
        if start + length > size:
            raise EOFError(f"{self.locate(key)} ends at byte {size}")
        reason = "sends whole files for ranges" if len(content) > length else "cuts answers short"
        raise OSError(
            errno.EIO,
            f"{self.server} {reason} ({len(content)} bytes came of {length}); copy the store to a "
            "disk with another program, and read it there",
            self.locate(key),
        )

    def head(self, key: str) -> ObjectInfo:
        """Return the size and, as far as the place knows them, stamp and time of a file."""

        def ask(files: Any, path: str) -> Any:
            files.invalidate_cache(files._parent(path))
            return files.info(path)

        info: Mapping[str, Any] = self._try(key, ask)
        if info["type"] != "file":
            raise FileNotFoundError(errno.ENOENT, "no such object", self.locate(key))
        if info.get("size") is None:
            raise OSError(errno.EIO, f"{self.server} tells no size", self.locate(key))
        return _object(key, info)

    def list(self, prefix: str = "", offset: str = "", last: str = "") -> Sequence[ObjectInfo]:
        """List the files below a folder; a missing folder has none.

        Args:
            prefix: The folder.
            offset: List only keys after this one.
            last: List no keys after this one.
        """
        # else fsspec leaves out folders that it cannot list; the hub's file system raises anyway
        strictly = {} if scheme_of(self._uri) == "hf" else {"on_error": "raise"}

        def find(files: Any, path: str) -> Any:
            files.invalidate_cache(path)
            return files.find(path, detail=True, **strictly)

        folder, nothing = prefix.rstrip("/"), dict[str, Mapping[str, Any]]()
        found: Mapping[str, Mapping[str, Any]] = self._try(folder, find, nothing)
        start = len(self._path(folder).rstrip("/")) + 1
        keys = {(f"{folder}/" if folder else "") + path[start:]: i for path, i in found.items()}
        return [
            _object(key, info)
            for key, info in sorted(keys.items())
            if key > offset and (not last or key <= last)
        ]

    def list_folder(self, folder: str = "") -> tuple[Sequence[ObjectInfo], Sequence[str]]:
        """Return the files directly below a folder, and the names of the folders there."""

        def ls(files: Any, path: str) -> Any:
            files.invalidate_cache(path)
            return files.ls(path, detail=True)

        folder, nothing = folder.rstrip("/"), list[Mapping[str, Any]]()
        entries: Sequence[Mapping[str, Any]] = self._try(folder, ls, nothing)
        objects, folders = [], []
        for info in entries:
            name = info["name"].rstrip("/").rpartition("/")[2]
            if info["type"] == "directory":
                folders.append(name)
            elif info["name"].rstrip("/") != self._path(folder).rstrip("/"):
                objects.append(_object(f"{folder}/{name}" if folder else name, info))
        return objects, folders

    def put(self, key: str, parts: Sequence[Buffer]) -> NoReturn:
        """Refuse."""
        self._refuse()

    def create(self, key: str, content: Buffer) -> NoReturn:
        """Refuse."""
        self._refuse()

    def delete(self, key: str) -> NoReturn:
        """Refuse."""
        self._refuse()

    def _refuse(self) -> NoReturn:
        raise StoreError(
            f"{self._uri} can only be read; write the store to a folder or a bucket, and copy it "
            "there (`strata push` for the Hugging Face hub)"
        )

    def _path(self, key: str) -> str:
        """Return what the file system calls a file."""
        path: str = self._files()._strip_protocol(self.locate(key))
        return path

    def _files(self) -> Any:
        """Return the file system, made once per process."""
        return _file_system(self._uri)

    def _try(
        self,
        key: str,
        request: Callable[[Any, str], Result],
        missing: Result | None = None,
    ) -> Result:
        """Call a function of the file system and a path, again if a connection fails.

        Args:
            key: The file.
            request: What to call.
            missing: What to return if there is no such file; None raises an error.
        """
        uri = self.locate(key)
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                return request(self._files(), self._path(key))
            except FileNotFoundError as error:
                failure = error.__cause__ or error
                if not _is_other(failure):
                    if missing is not None:
                        return missing
                    reason = _reason(error)  # most have only the path
                    known = reason if " " in reason and not error.errno else "no such object"
                    raise FileNotFoundError(errno.ENOENT, known, uri) from None
            except PermissionError as error:
                raise RefusedError(errno.EACCES, _refusal(error), uri) from None
            except Exception as error:  # noqa: BLE001  libraries raise what they like
                failure = error
            if not _may_pass(failure) or attempt == _ATTEMPTS:
                break
            time.sleep(_FIRST_WAIT_S * 4 ** (attempt - 1))
        if _status_of(failure) == 416:
            raise EOFError(f"{uri} ends before")
        if _status_of(failure) in (401, 403):
            raise RefusedError(errno.EACCES, _refusal(failure), uri) from None
        raise UnreachableError(errno.EIO, f"{self.server}: {_reason(failure)}", uri) from failure


def is_known(uri: str) -> bool:
    """Return whether fsspec has a file system for the scheme of a URI."""
    from fsspec.registry import known_implementations, registry

    scheme = scheme_of(uri)
    return scheme not in _OTHERS and (scheme in known_implementations or scheme in registry)


_made: dict[tuple[int, str], Any] = {}
_making = threading.Lock()


def _file_system(uri: str) -> Any:
    """Return the file system of a URI in this process: its connections do not survive a fork.

    Raises:
        ConfigError: A library is missing.
    """
    scheme = scheme_of(uri)
    key = (generation(), uri if scheme in ("sftp", "ssh", "ftp", "smb", "webhdfs") else scheme)
    found = _made.get(key)
    if found is None:
        with _making:
            if key not in _made:
                kind = _class_of(uri)
                _made[key] = kind(**kind._get_kwargs_from_urls(uri), skip_instance_cache=True)
            found = _made[key]
    return found


def _class_of(uri: str) -> Any:
    import fsspec

    try:
        return fsspec.get_filesystem_class(scheme_of(uri))
    except ImportError as error:
        raise ConfigError(f"{uri}: {error}") from None
    except ValueError:
        raise ConfigError(
            f"{uri}: unknown scheme; expected a path, s3://, gs://, az://, hf:// or another one "
            "that fsspec reads, such as https://"
        ) from None


def _check(uri: str) -> None:
    """Refuse what is no URI of a folder, or has a secret in it."""
    address = uri.partition("://")[2].partition("/")[0]
    user, at, _ = address.rpartition("@")
    if at and ":" in user:
        raise ConfigError(
            f"the {scheme_of(uri)}:// URI has a password in it; leave it out, and use a key or the "
            "file that the program reads passwords from"
        )
    if "?" in uri or "#" in uri or "::" in uri:
        raise ConfigError(f"{scheme_of(uri)}://: expected the URI of a folder, without ?, # or ::")
    if not address:
        raise ConfigError(f"{uri}: names no place")


def _cat(files: Any, path: str, start: int, stop: int) -> bytes:
    content: bytes = files.cat_file(path, start=start, end=stop)
    return content


def _object(key: str, info: Mapping[str, Any]) -> ObjectInfo:
    stamps = [str(info[name]) for name in _STAMPS if info.get(name) is not None]
    size = int(info.get("size") or 0)
    return ObjectInfo(key, size, "-".join(stamps), _time_of(info))


def _time_of(info: Mapping[str, Any]) -> float:
    for name in _TIMES:
        value = info.get(name)
        if isinstance(value, datetime):
            return value.timestamp()
        if isinstance(value, int | float):
            return float(value)
    return 0.0


def _status_of(error: BaseException) -> int:
    """Return the status of an answer over http; 0 if the error is none."""
    response = getattr(error, "response", None)
    status = getattr(error, "status", None) or getattr(response, "status_code", None)
    return status if isinstance(status, int) else 0


def _may_pass(error: BaseException) -> bool:
    status = _status_of(error)
    if status:
        return status in (408, 425, 429) or status >= 500
    names = {kind.__name__ for kind in type(error).__mro__}
    passing = {
        "ClientConnectionError",
        "ClientPayloadError",
        "TransportError",
        "ServerDisconnectedError",
    }
    return isinstance(error, _PASSING) or bool(names & passing)


def _is_other(error: BaseException) -> bool:
    """Return whether it is not known that a file is missing; http calls each failure so."""
    return _may_pass(error) or _status_of(error) in (401, 403)


def _refusal(error: BaseException) -> str:
    return f"{_reason(error)}; give credentials that may read it"


def _reason(error: BaseException) -> str:
    """Return an error in one line."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    text = " ".join(str(error).split())
    return text[:300] or type(error).__name__
