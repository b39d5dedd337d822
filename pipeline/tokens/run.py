"""One run of `tokenize`: a codebook is trained or found, and units get the tokens they lack.

The codebook is written first, and only if there is none of its name: a process that comes second
uses that of the first. A chunk of tokens is written at once and never changes. So a run that was
interrupted is repeated with the same command, and processes do not disturb each other.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import PurePosixPath

import numpy as np
import torch

from pipeline.config.sizes import parse_bytes
from pipeline.devices import choose_device
from pipeline.errors import ConfigError, IdentityError, StoreError, counted
from pipeline.events import Observer
from pipeline.store.backend.base import Backend, Location
from pipeline.store.backend.opening import open_backend
from pipeline.store.coordination.lease import check_no_drop
from pipeline.store.documents import read_attributes
from pipeline.store.format.codebook import Codebook
from pipeline.store.format.layers import number_layers
from pipeline.store.format.tokens import MAX_CODES, codebook_key
from pipeline.store.read.features import FeatureStore
from pipeline.store.read.joined.view import locations_of
from pipeline.store.read.opening import open_store
from pipeline.store.tokens import stored
from pipeline.store.write.slot import check_exists
from pipeline.tokens.quality import usage
from pipeline.tokens.stores import StoreTokens, tokenize_store
from pipeline.tokens.training import ALL, TokenSettings, train_codebook, weights_of

MEMORY = "2GB"


@dataclass(frozen=True)
class Tokenization:
    """Result of a run.

    Attributes:
        name: Name of the tokens.
        codebook: Where the codebook is.
        codebook_sha256: Its hash.
        layer: The layer; None for a weighted sum.
        k: Number of codes.
        seed: Seed of the training.
        trained: Whether this run has trained the codebook.
        train_frames: Frames that it was trained on.
        train_inertia: Their mean squared distance from their centroids.
        iterations: Iterations over these frames.
        units: Units with tokens.
        units_written: Those that this run has written.
        frames: Frames with tokens.
        inertia: Mean squared distance, from their centroids, of the frames of the units that this
            run has written; None if it has written none.
        used_codes: Codes that occur.
        entropy_bits: Entropy of the codes over all frames.
        perplexity: 2 ** entropy.
        wall_seconds: Duration of this run.
    """

    name: str
    codebook: str
    codebook_sha256: str
    layer: int | None
    k: int
    seed: int
    trained: bool
    train_frames: int
    train_inertia: float
    iterations: int
    units: int
    units_written: int
    frames: int
    inertia: float | None
    used_codes: int
    entropy_bits: float
    perplexity: float
    wall_seconds: float


def tokenize(
    store: Location | Sequence[Location],
    layer: int | str | None = None,
    k: int | None = None,
    *,
    weights: Sequence[float] | None = None,
    seed: int | None = None,
    where: str | None = None,
    sample_frames: int | str | None = None,
    name: str | None = None,
    codebook: Location | None = None,
    memory: int | str = MEMORY,
    device: str = "auto",
    observer: Observer | None = None,
) -> Tokenization:
    """Train k-means on the frames of a layer, and give every frame of a store its code.

    Repeat the call to complete a run that was interrupted, or after the store has grown: then it
    uses the codebook that the store has, and `layer` and `k` may be left out.

    Args:
        store: The store; or several, which get the same codebook, trained on all of them.
        layer: The layer, by number or name.
        k: Number of codes, up to 65,535.
        weights: Weights of the layers, for a weighted sum in place of a layer.
        seed: Seed of the sample and of the initial centroids; None is 0.
        where: Condition on the utterances that the codebook is trained on; see
            `FeatureStore.select`. All utterances get tokens.
        sample_frames: Frames to train on, drawn uniformly in slices of 8; `all` reads all frames
            from the disk in each iteration. None is 1,000 for each code, but at least 100,000 and
            at most what `memory` holds.
        name: Name of the tokens; None is `layer<layer>-k<k>`, or the name of the codebook's file.
        codebook: A codebook that another store has, in place of a training. Its encoder must be
            that of this store.
        memory: Bytes that the sample may take, or text such as "2GB".
        device: auto, cpu or cuda.
        observer: Receives progress and notes.

    Returns:
        The sizes, and how the codes are used.

    Raises:
        StoreNotFoundError: There is no store.
        ConfigError: A setting is wrong or missing, the file of the codebook is missing, there are
            fewer frames than codes, or the sample does not fit in memory.
        IdentityError: The store has other tokens of this name, or the codebook is for other
            features.
        StoreError: The store lacks the layer, keeps no frames, or cannot be written.
        DamagedError: Frames or tokens are damaged.

    Example:
        >>> tokenize("features", layer=9, k=500).perplexity                     # doctest: +SKIP
        412.7
    """
    start_s = time.perf_counter()
    observer = observer or Observer()
    number = layer if not isinstance(layer, str) else None
    settings = TokenSettings(number, weights_of(weights), k, seed, where, sample_frames)
    _check(settings, codebook, layer)
    target, most = choose_device(device), parse_bytes(memory)
    opened = open_store(locations_of(store))
    if isinstance(layer, str):
        [number] = number_layers([layer], opened.named_layers, opened.location)
        settings = replace(settings, layer=number)
    for backend in opened.backends:
        check_no_drop(backend)
    given = None if codebook is None else _read_file(codebook)
    name = name or _default_name(opened, settings, codebook)
    for backend in opened.backends:
        stored.check_free(backend, name)
    book, is_trained = _codebook(opened, name, settings, given, codebook, most, target, observer)
    written: list[StoreTokens] = [
        tokenize_store(backend, name, book, target, observer) for backend in opened.backends
    ]
    counts = np.sum([item.counts for item in written], axis=0)
    n_new = sum(item.n_new_frames for item in written)
    usage_of_codes = usage(counts) if counts.any() else None
    return Tokenization(
        name=name,
        codebook=opened.backends[0].locate(codebook_key(name)),
        codebook_sha256=book.sha256,
        layer=book.layer,
        k=book.k,
        seed=book.seed,
        trained=is_trained,
        train_frames=book.training["n_frames"],
        train_inertia=book.training["inertia"],
        iterations=book.training["iterations"],
        units=sum(item.n_units for item in written),
        units_written=sum(item.n_written for item in written),
        frames=int(counts.sum()),
        inertia=math.fsum(item.inertia for item in written) / n_new if n_new else None,
        used_codes=usage_of_codes.used if usage_of_codes else 0,
        entropy_bits=usage_of_codes.entropy_bits if usage_of_codes else 0.0,
        perplexity=usage_of_codes.perplexity if usage_of_codes else 0.0,
        wall_seconds=round(time.perf_counter() - start_s, 3),
    )


def _check(settings: TokenSettings, codebook: Location | None, layer: int | str | None) -> None:
    """Check settings that need no store.

    Raises:
        ConfigError: One is out of range, or two contradict each other.
    """
    if settings.k is not None and not 1 <= settings.k <= MAX_CODES:
        raise ConfigError(f"k is {settings.k:,}; expected 1 to {MAX_CODES:,} codes")
    if layer is not None and settings.weights is not None:
        raise ConfigError("layer= and weights= contradict each other; give one")
    given = settings.sample_frames
    if given is not None and given != ALL and not (isinstance(given, int) and given > 0):
        raise ConfigError(f"sample_frames is {given!r}; expected a whole number from 1, or all")
    if codebook is None:
        return
    for key in ("where", "sample_frames", "seed"):
        if getattr(settings, key) is not None:
            raise ConfigError(
                f"{key}= is for a training, and codebook={codebook} needs none; leave one of them "
                "out"
            )


def _default_name(opened: FeatureStore, settings: TokenSettings, codebook: Location | None) -> str:
    """Return the name of the tokens where none is given.

    Raises:
        ConfigError: It takes a layer and k.
    """
    if codebook is not None:
        return PurePosixPath(str(codebook)).name.removesuffix(".safetensors")
    if settings.k is None or not settings.names_features:
        names = _codebook_names(opened.backends)
        known = f"; or go on with name={'|'.join(names)}" if names else ""
        raise ConfigError(
            f"give the layer and the number of codes, as in layer=9 k=500, or codebook=FILE{known}"
        )
    if settings.layer is None:
        return f"weighted-k{settings.k}"
    label = opened.layer_labels.get(settings.layer, "")
    is_name = label.isidentifier() and not opened.is_collapsed
    return f"{label if is_name else f'layer{settings.layer}'}-k{settings.k}"


def _codebook_names(backends: Sequence[Backend]) -> list[str]:
    """Return the names of the codebooks of stores, sorted."""
    return sorted({name for backend in backends for name in stored.codebook_names(backend)})


def _read_file(location: Location) -> Codebook:
    """Read a codebook that the user names.

    Raises:
        ConfigError: There is no such file.
        DamagedError: It is no codebook.
    """
    folder, _, file = str(location).rpartition("/")
    backend = open_backend(folder or ("/" if str(location).startswith("/") else "."))
    try:
        raw = backend.read(file)
    except (FileNotFoundError, IsADirectoryError) as error:
        raise ConfigError(
            f"codebook={location}: there is no such file; expected a codebook, as in the folder "
            "codebooks/ of a store with tokens"
        ) from error
    return Codebook.from_bytes(raw, str(location))


def _codebook(
    opened: FeatureStore,
    name: str,
    settings: TokenSettings,
    given: Codebook | None,
    location: Location | None,
    memory: int,
    device: torch.device,
    observer: Observer,
) -> tuple[Codebook, bool]:
    """Return the codebook of all stores, each of which has it then; and whether it is new.

    Raises:
        IdentityError: A store has another one of this name, or it is for other features.
        ConfigError: There is none, and none can be trained with the settings.
    """
    backends = opened.backends
    known = [stored.read_codebook(backend, name) for backend in backends]
    for backend, found in zip(backends, known, strict=True):
        place = backend.locate(codebook_key(name))
        if found is not None:
            settings.check_same(found, name, place)
            if given is not None and found.sha256 != given.sha256:
                raise IdentityError(
                    f"{place} is another codebook than {location}; give another name= than {name}"
                )
    book = given or next((found for found in known if found is not None), None)
    if given is not None:
        settings.check_same(given, name, str(location))
    is_new = book is None
    if book is None:
        if settings.k is None or not settings.names_features:
            names = _codebook_names(backends)
            raise ConfigError(
                f"store {opened.location} has no tokens {name!r}"
                + (f" (it has {', '.join(names)})" if names else "")
                + "; to make them, give the layer and the number of codes, as in layer=9 k=500"
            )
        view = opened if settings.where is None else _selected(opened, settings.where, observer)
        book = train_codebook(view, settings, memory, device, observer)
    for backend in backends:
        _note_differences(backend, name, book, str(location), observer, is_new)
    for backend in backends:
        book, is_new = _settle(backend, name, book, settings, is_new)
    return book, is_new


def _selected(opened: FeatureStore, where: str, observer: Observer) -> FeatureStore:
    """Return the utterances to train on.

    Raises:
        StoreError: There are none.
    """
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        view = opened.select(where)
    texts = [str(item.message) for item in caught]
    if len(view) == 0:
        raise StoreError(
            f"where={where!r:.200} selects none of the {counted(len(opened), 'utterance')} of "
            f"{opened.location}{''.join(f'; {text}' for text in texts)}"
        )
    for text in texts:
        observer.note(f"WARNING: {text}")
    return view


def _note_differences(
    backend: Backend, name: str, book: Codebook, location: str, observer: Observer, is_new: bool
) -> None:
    """Note in what the features of a store differ from those that the codebook was trained on.

    Raises:
        IdentityError: It is for other features.
    """
    if is_new:
        return
    facts = stored.encoder_facts(read_attributes(backend), with_layers=book.weights is not None)
    free = book.check_applies(facts, location, str(backend))
    if free and stored.read_tokens(backend, name) is None:
        observer.note(f"the codebook (there) and store {backend} differ: {'; '.join(free)}")


def _settle(
    backend: Backend, name: str, book: Codebook, settings: TokenSettings, is_new: bool
) -> tuple[Codebook, bool]:
    """Write the codebook to a store, or return the one that another process has written first.

    Raises:
        IdentityError: That is another one.
    """
    check_exists(backend)
    if stored.put_codebook(backend, name, book):
        return book, is_new
    found = stored.read_codebook(backend, name)
    place = backend.locate(codebook_key(name))
    if found is None:
        raise StoreError(f"{place} was removed while this run was using it; run again")
    if found.sha256 == book.sha256:
        return found, is_new
    if not is_new:
        raise IdentityError(
            f"{place} is another codebook than that of the other store; give another name= than "
            f"{name}"
        )
    settings.check_same(found, name, place)
    return found, False
