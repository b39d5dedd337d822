"""A store in a bucket that readers do not find yet: its first document has another name.

A bucket has no renames. So a store that may only appear when it is complete is written in its
place, without the document that readers look for; that one is put there last.
"""

from __future__ import annotations

from pipeline.objects.client import ObjectClient
from pipeline.store.backend.remote.backend import RemoteBackend
from pipeline.store.backend.remote.leases import RemoteLeases
from pipeline.store.format.layout import ATTRIBUTES

_STAGED = f"{ATTRIBUTES}.copying"


class StagedBackend(RemoteBackend):
    """The store that will be at the place of another backend.

    One driver writes it, so its server need not honour conditional creation.

    Raises:
        StoreError: On creation, if that place can only be read.
    """

    def __init__(self, target: RemoteBackend) -> None:
        target.leases  # noqa: B018 - refuses a place that can only be read
        assert isinstance(target.client, ObjectClient)
        client = _StagedClient(target.client)
        super().__init__(client)
        self._leases = _UntriedLeases(client)

    def publish_to(self, target: RemoteBackend) -> None:
        """Make the store visible.

        Raises:
            StoreError: It cannot be written.
        """
        target.put(ATTRIBUTES, [self.read(ATTRIBUTES)])
        self.delete(ATTRIBUTES)


class _StagedClient(ObjectClient):
    def __init__(self, client: ObjectClient) -> None:
        super().__init__(client.place, client.limits, client.server)

    def _path(self, key: str) -> str:
        return super()._path(_STAGED if key == ATTRIBUTES else key)

    def _key(self, path: str) -> str:
        key = super()._key(path)
        return ATTRIBUTES if key == _STAGED else key


class _UntriedLeases(RemoteLeases):
    def check(self) -> str:
        return ""
