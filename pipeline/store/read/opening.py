"""Opening of stores for reading; what a trainer imports first.

It needs torch, zarr and pyarrow, but neither ray, datasets nor torchaudio.
"""

from __future__ import annotations

from collections.abc import Iterable

from pipeline.errors import ConfigError
from pipeline.store.backend.base import Location
from pipeline.store.backend.opening import with_copies
from pipeline.store.read.features import FeatureStore
from pipeline.store.read.joined.store import JoinedStore
from pipeline.store.read.joined.view import locations_of


def open_store(
    uri: Location | Iterable[Location],
    *,
    prefix: bool = False,
    verify: bool = False,
    labels: int | None = None,
    cache: Location | None = None,
    cache_bytes: int | None = None,
) -> FeatureStore:
    """Open a store, or several as one, for reading.

    Several stores must be of one encoder, with the same layers, and return values of one type:
    int8 beside float16, but not float32 beside float16. Their utterances come one store after the
    other. A column that a store lacks has no values there, and classes are numbered over all.

    Args:
        uri: Its path or URI, such as s3://BUCKET/PREFIX or hf://datasets/USER/NAME, or a `Backend`;
            or those of several stores.
        prefix: Whether ids become `<folder of the store>/<id>`, for ids that several stores have.
        verify: Whether every read verifies what it returns; see `FeatureStore.read`. Datasets and
            loaders of the store do so, too.
        labels: Generation of labels to show; None is the newest. After the dataset was changed, 0
            has the utterances and columns from before the first change. Several stores have None.
        cache: Folder of this machine for whole copies of what is read of stores in buckets; several
            processes and stores may share it. Copies are compared with the index when they are
            made.
        cache_bytes: What the folder may hold. Copies that were not used for longest are removed for
            new ones. Without it nothing is copied.

    Raises:
        StoreNotFoundError: There is no store.
        StoreError: It has no such generation; or several stores have the same id, or a column of
            different types.
        IdentityError: Several stores have features of different kinds; the message lists every
            difference.
        ConfigError: No store is given, one is given twice, or `labels` is given for several; or the
            cache is for a store that is in a folder, has no bound, or one below a few shards.
        DamagedError: The attributes, the index or the labels of a store are damaged.
        TypeError: `labels` is no number.

    Example:
        >>> store = open_store("features/hubert")            # doctest: +SKIP
        >>> store.read("clip-1", layers=[6]).shape           # doctest: +SKIP
        torch.Size([1, 212, 768])
        >>> open_store(["clean-100", "clean-360"]).select(speaker="1034")  # doctest: +SKIP
    """
    if isinstance(labels, bool) or not (labels is None or hasattr(labels, "__index__")):
        raise TypeError(
            f"labels is {labels!r}; expected the number of a generation of labels, or None for the "
            "newest. Columns are in `store.metadata`"
        )
    locations = locations_of(uri)
    if not locations:
        raise ConfigError("no store is given; expected its path, or those of several")
    if len(locations) > 1 and labels is not None:
        raise ConfigError(
            f"labels={labels} is a generation of one store; several are opened with the newest"
        )
    if cache is not None or cache_bytes is not None:
        locations = [with_copies(location, cache, cache_bytes) for location in locations]
    stores = [FeatureStore(location, verify, labels) for location in locations]
    return JoinedStore(stores, prefix) if prefix or len(stores) > 1 else stores[0]
