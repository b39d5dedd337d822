"""Remote files and folders, in the place of paths."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.errors import AudioError, SourceError
from pipeline.sources.remote.extents import extents
from pipeline.sources.remote.reading import Info, read_range
from pipeline.sources.remote.uri import folder_of, is_hub, joined, name_of

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer


@dataclass(frozen=True)
class RemoteFile:
    """A file in a bucket or on the hub.

    Attributes:
        uri: `s3://BUCKET/KEY`, `gs://…`, `az://…` or `hf://datasets/NAME@COMMIT/FILE`.
    """

    uri: str

    def __str__(self) -> str:
        return self.uri

    @property
    def name(self) -> str:
        """Name of the file without its folder."""
        return name_of(self.uri)

    @property
    def stem(self) -> str:
        """Name of the file without its folder and its last extension."""
        return self.name.rpartition(".")[0] or self.name

    @property
    def parent(self) -> RemoteFolder:
        """Its folder."""
        return RemoteFolder(folder_of(self.uri))

    @property
    def n_bytes(self) -> int:
        """Size of the file.

        Raises:
            SourceError: It does not exist, or the server does not answer.
        """
        return size_of(self.uri)

    def open(self) -> RemoteStream:
        """Open it for Arrow."""
        return RemoteStream(self.uri)


@dataclass(frozen=True)
class RemoteFolder:
    """A folder of remote files.

    Attributes:
        uri: URI without a slash at the end.
    """

    uri: str

    def __str__(self) -> str:
        return self.uri

    def __truediv__(self, name: str) -> RemoteFile:
        return RemoteFile(joined(self.uri, name))


def size_of(uri: str) -> int:
    """Return the bytes of a remote file.

    Raises:
        SourceError: It does not exist, or the server does not answer.
    """
    return _info(uri).n_bytes


def read_exactly(uri: str, start: int, n_bytes: int) -> bytes:
    """Read bytes of a table or an archive, and keep none of them.

    Raises:
        SourceError: The file is gone or has changed, or the server does not answer.
    """
    if n_bytes == 0:
        return b""
    stamp = "" if is_hub(uri) else _info(uri).stamp
    try:
        return read_range(uri, start, n_bytes, stamp)
    except AudioError as error:
        raise SourceError(f"{uri} cannot be read: {error}") from error


def _info(uri: str) -> Info:
    try:
        return extents.info(uri)
    except AudioError as error:
        raise SourceError(f"{uri} cannot be read: {error}") from error


class RemoteStream(io.RawIOBase):
    """A remote file that can be read anywhere; every read is a request.

    Args:
        uri: The file.
    """

    def __init__(self, uri: str) -> None:
        self._uri, self._position, self._n_bytes = uri, 0, size_of(uri)

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def tell(self) -> int:
        """Return the number of the next byte."""
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move to a byte and return its number."""
        origin = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._n_bytes}[whence]
        self._position = origin + offset
        return self._position

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        """Read into a buffer, up to the end of the file; return the number of bytes read."""
        view = memoryview(buffer).cast("B")
        n = max(0, min(len(view), self._n_bytes - self._position))
        view[:n] = read_exactly(self._uri, self._position, n)
        self._position += n
        return n
