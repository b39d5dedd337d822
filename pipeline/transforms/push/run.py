"""One run of `push`. Running it again goes on where it was interrupted."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.errors import ConfigError, StoreError, counted
from pipeline.events import Observer
from pipeline.store import index as index_files
from pipeline.store.backend.base import Backend, Location
from pipeline.store.backend.opening import open_backend
from pipeline.store.coordination.lease import check_no_drop
from pipeline.store.documents import layout_of, read_attributes
from pipeline.store.format.identity import check_same
from pipeline.store.format.layout import (
    ATTRIBUTES,
    FRAME_STATISTICS,
    GROUP,
    HUB_FILES,
    INDEX_CACHE,
    INDEX_DIR,
    LABELS_DIR,
    PLAN,
    Layout,
    index_key,
    ledger_key,
)
from pipeline.store.format.tokens import TOKENS, chunk_key, codebook_key, document_key
from pipeline.store.index_cache import unit_stamps
from pipeline.store.read.opening import open_store
from pipeline.store.tokens.stored import slots_with_tokens, token_names
from pipeline.transforms.push.card import CARD, make_card
from pipeline.transforms.push.hub import HubCommit, HubFile, HubRepository, Upload

COMMIT_BYTES = 5 << 30
"""Bytes after which what was sent becomes visible."""
COMMIT_FILES = 1000
_LICENSE = re.compile(r"[a-z0-9][a-z0-9.-]{1,63}")


@dataclass(frozen=True)
class Push:
    """Result of a run.

    Attributes:
        uri: The repository.
        units: Units of the store.
        units_sent: Units that this run has sent.
        utterances: Utterances of the store.
        bytes_sent: Bytes that this run has sent, or that the hub had from an earlier one.
        card_written: Whether this run has written a card: one that is there is left as it is.
        wall_seconds: Duration of this run.
    """

    uri: str
    units: int
    units_sent: int
    utterances: int
    bytes_sent: int
    card_written: bool
    wall_seconds: float


def push(
    store: Location,
    uri: str,
    *,
    private: bool = True,
    license: str | None = None,  # noqa: A002  the name of the setting
    observer: Observer | None = None,
) -> Push:
    """Send a store to a dataset repository of the Hugging Face hub.

    Units become visible in commits of a few gigabytes, each with its data, so the repository is a
    store at any time. A push that was interrupted goes on when it is repeated, and a store that has
    grown is brought up to date. Nothing is deleted there. The run log, which has names of machines,
    is not sent.

    Args:
        store: The store; its committed units are sent.
        uri: hf://datasets/USER/NAME, perhaps with @BRANCH. The repository is created if need be.
        private: Whether a new repository is private.
        license: Licence of the features for a new dataset card, by the hub's short name, such as
            "cc-by-4.0"; None leaves it to be filled in.
        observer: Receives the progress.

    Returns:
        What was sent.

    Raises:
        ConfigError: The URI is no dataset repository, or the licence no short name.
        StoreError: The hub refuses, the repository has something else in it, or the store holds
            nothing.
        IdentityError: The repository has features of another encoder or dataset.
        DamagedError: The store is damaged.

    Example:
        >>> push("features", "hf://datasets/me/features", license="cc-by-4.0")  # doctest: +SKIP
    """
    start_s = time.perf_counter()
    observer = observer or Observer()
    if license is not None and not _LICENSE.fullmatch(license):
        raise ConfigError(f"license is {license!r}; expected a short name such as cc-by-4.0")
    repository, backend = HubRepository(uri), open_backend(store)
    check_no_drop(backend)
    attributes, opened = read_attributes(backend), open_store(backend)
    slots = _slots(backend)
    if not slots:
        raise StoreError(f"store {backend} has no committed unit; extract into it first")
    command = " ".join(map(str, attributes.get("provenance", {}).get("command", [])))
    if command:
        observer.note(f"{uri} will show how the store was made: strata {command}")
    repository.create(private)
    there = repository.files()
    _check_place(repository, there, attributes)
    missing = _missing_units(repository, backend, there, slots)
    sending = _Sending(repository, backend, layout_of(attributes), there, observer)
    documents = list(sending.changed(_documents(backend)))
    sending.send(documents, {unit: slots[unit] for unit in missing}, len(slots))
    sending.send_tokens(set(slots.values()))
    last = list(sending.cache_of_index(is_new=bool(missing)))
    writes_card = CARD not in there
    if writes_card:
        text = make_card(opened, repository.uri, repository.name, license)
        last.append(Upload(CARD, text.encode()))
    if last:
        sending.commit(last, "Index and dataset card" if writes_card else "Index")
    return Push(
        uri=repository.uri,
        units=len(slots),
        units_sent=len(missing),
        utterances=len(opened),
        bytes_sent=sending.n_bytes,
        card_written=writes_card,
        wall_seconds=round(time.perf_counter() - start_s, 3),
    )


class _Sending:
    """Sends files in commits of a bounded size."""

    def __init__(
        self,
        repository: HubRepository,
        backend: Backend,
        layout: Layout,
        there: Mapping[str, HubFile],
        observer: Observer,
    ) -> None:
        self._repository, self._backend, self._layout = repository, backend, layout
        self._there, self._observer = there, observer
        self.n_bytes = 0

    def changed(self, keys: Sequence[str]) -> Iterator[Upload]:
        """Yield small files of the store that the repository does not have as they are."""
        for key in keys:
            content = self._backend.read(key)
            if key not in self._there or not self._there[key].has(content):
                yield Upload(key, content)

    def send(self, documents: Sequence[Upload], slots: Mapping[int, int], n_units: int) -> None:
        """Send documents, and units with their slots; what is readable becomes visible at a time.

        The documents are part of the first commit, without which no unit could be read, and of no
        use without a unit.
        """
        n_done = n_units - len(slots)
        self._observer.units_pushed(n_done, n_units)
        commit = self._repository.begin()
        if documents:
            commit.add(documents)
        first = n_done
        for unit, slot in slots.items():
            commit.add([self._upload(key) for key in self._keys(unit, slot)])
            n_done += 1
            self._observer.units_pushed(n_done, n_units)
            if commit.n_bytes >= COMMIT_BYTES or len(commit) >= COMMIT_FILES:
                self._finish(commit, n_done - first)
                first = n_done
        if len(commit):
            self._finish(commit, n_done - first)

    def send_tokens(self, slots: Collection[int]) -> None:
        """Send the tokens of slots that the repository does not have as they are."""
        commit = self._repository.begin()
        for name in token_names(self._backend):
            for slot in sorted(slots_with_tokens(self._backend, name) & set(slots)):
                if found := list(self.changed([chunk_key(name, slot)])):
                    commit.add(found)
                if commit.n_bytes >= COMMIT_BYTES or len(commit) >= COMMIT_FILES:
                    self._finish_tokens(commit)
                    commit = self._repository.begin()
        if len(commit):
            self._finish_tokens(commit)

    def _finish_tokens(self, commit: HubCommit) -> None:
        self.n_bytes += commit.n_bytes
        commit.finish(f"Tokens of {counted(len(commit), 'unit')}")

    def commit(self, uploads: Sequence[Upload], message: str) -> None:
        """Send files in a commit of their own."""
        commit = self._repository.begin()
        commit.add(uploads)
        self.n_bytes += commit.n_bytes
        commit.finish(message)

    def cache_of_index(self, is_new: bool) -> Iterator[Upload]:
        """Yield the cache of the index, which states what the hub calls each unit's file."""
        if is_new or INDEX_CACHE not in self._there:
            stamps = unit_stamps(open_backend(self._repository.uri))
            yield Upload(INDEX_CACHE, index_files.cache_of_copy(self._backend, stamps))

    def _finish(self, commit: HubCommit, n_units: int) -> None:
        self.n_bytes += commit.n_bytes
        commit.finish(f"Features of {counted(n_units, 'unit')}" if n_units else "Labels and plan")

    def _keys(self, unit: int, slot: int) -> list[str]:
        """Return the keys of a unit, that of its commit last."""
        layout = self._layout
        gone = {layout.shard_key(axis, slot) for axis in layout.dropped_axes}
        data = [key for key in layout.slot_objects(slot) if key not in gone]
        claims = [key for key in [ledger_key(slot)] if self._backend.exists(key)]
        return [*data, *claims, index_key(unit)]

    def _upload(self, key: str) -> Upload:
        return Upload(key, self._backend.local_path(key) or self._backend.read(key))


def _slots(backend: Backend) -> dict[int, int]:
    """Return the slot of each committed unit, by unit."""
    rows = index_files.read_index(backend, columns=["unit", "slot"])
    pairs = rows.group_by("unit").aggregate([("slot", "max")]).to_pydict()
    found = dict(zip(pairs["unit"], pairs["slot_max"], strict=True))
    return dict(sorted(found.items()))


def _documents(backend: Backend) -> list[str]:
    """Return the keys of what a store has besides its units."""
    arrays = [f"{GROUP}/{name}/zarr.json" for name in backend.children(GROUP) if "." not in name]
    labels = sorted(f"{LABELS_DIR}/{name}" for name in backend.children(LABELS_DIR))
    optional = [key for key in (PLAN, FRAME_STATISTICS) if backend.exists(key)]
    names = token_names(backend)
    tokens = [key for name in names for key in (document_key(name), codebook_key(name))]
    group = [f"{TOKENS}/zarr.json"] if names else []
    arrays = [key for key in arrays if key not in group]
    tokens = [key for key in tokens if backend.exists(key)]
    return [ATTRIBUTES, *sorted(arrays), *optional, *labels, *group, *tokens]


def _check_place(
    repository: HubRepository, there: Mapping[str, HubFile], attributes: Mapping[str, Any]
) -> None:
    """Check that a repository is empty, or has this store.

    Raises:
        StoreError: It has something else.
        IdentityError: It has other features.
    """
    if ATTRIBUTES in there:
        found = json.loads(repository.read(ATTRIBUTES))["attributes"]
        check_same(found["identity"], attributes["identity"], repository.uri)
        return
    others = sorted(key for key in there if key not in HUB_FILES)
    if others:
        raise StoreError(
            f"{repository.uri} has no store, but {counted(len(others), 'file')} such as "
            f"{others[0]}; push to a new repository, or to a branch: {repository.uri}@BRANCH"
        )


def _missing_units(
    repository: HubRepository,
    backend: Backend,
    there: Mapping[str, HubFile],
    slots: Mapping[int, int],
) -> list[int]:
    """Return the units that the repository lacks, or has as they were before.

    Raises:
        StoreError: It has units that the store lacks.
    """
    more = {key for key in there if key.startswith(f"{INDEX_DIR}/")} - set(map(index_key, slots))
    if more:
        raise StoreError(
            f"{repository.uri} has {counted(len(more), 'unit')} that store {backend} lacks, such "
            f"as {min(more)}; push to a new repository, or to a branch: {repository.uri}@BRANCH"
        )
    return [
        unit
        for unit in slots
        if index_key(unit) not in there
        or not there[index_key(unit)].has(backend.read(index_key(unit)))
    ]
