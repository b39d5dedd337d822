"""A store that can only be read: on the Hugging Face hub, or behind another URL."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NoReturn

from pipeline.errors import StoreError
from pipeline.objects.base import Objects
from pipeline.objects.parallel import run_parallel
from pipeline.store.backend.remote.backend import RemoteBackend
from pipeline.store.backend.remote.parts import is_part


class ReadOnlyBackend(RemoteBackend):
    """A store in a place without conditional creation, where others have put it.

    Args:
        client: The objects of the store.
    """

    replaces_cheaply = True  # a push writes its index as one cache

    def __init__(self, client: Objects) -> None:
        self._client = client

    def __reduce__(self) -> tuple[Any, ...]:
        return ReadOnlyBackend, (self._client,), self.__getstate__()

    def __repr__(self) -> str:
        return f"ReadOnlyBackend({self.uri!r})"

    def stamps(self, folder: str, expected: Sequence[str] = ()) -> dict[str, str]:
        """Stamp each object; where a list does not tell what it is, by a request for each."""
        objects, _ = self._client.list_folder(folder)
        objects = [info for info in objects if not is_part(info.key)]
        vague = [info.key for info in objects if not info.etag]
        told = run_parallel(self._client.head, vague, self.parallel_reads)
        known = dict(zip(vague, told, strict=True))
        found = [known.get(info.key, info) for info in objects]
        return {info.key.rpartition("/")[2]: f"{info.size}-{info.etag}" for info in found}

    def append(self, key: str, line: bytes) -> NoReturn:
        """Refuse."""
        self._refuse()

    @property
    def leases(self) -> NoReturn:
        """Refuse."""
        self._refuse()

    def _refuse(self) -> NoReturn:
        raise StoreError(
            f"store {self.uri} can only be read; copy it to a folder or a bucket, and change the "
            f"copy: strata copy {self.uri} FOLDER"
        )
