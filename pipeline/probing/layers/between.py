"""CKA between the layers of several encoders, on the same frames of the same utterances."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import torch

from pipeline.errors import ConfigError, IdentityError, StoreError, counted, first_few
from pipeline.feed.frames.sample import FrameSample, sample_same_frames
from pipeline.probing.encoder_description import (
    describe_encoder,
    encoder_facts,
    encoder_warnings,
)
from pipeline.probing.encoder_names import encoder_names
from pipeline.probing.layers.cka import Alignment, FloatArray, GroupedFrames, or_none
from pipeline.probing.layers.statistics import N_FRAMES
from pipeline.store.backend.folders import name_of
from pipeline.store.format.layers import label_layers
from pipeline.store.read.features import FeatureStore
from pipeline.store.read.joined.columns import check_distinct
from pipeline.store.read.joined.store import JoinedStore

N_GROUPS = 10
"""Groups of utterances of the jackknife."""
_MOST_UNEQUAL = 2  # frames by which the numbers of an utterance may differ, for the end's padding

Matrix = tuple[tuple[float | None, ...], ...]


@dataclass(frozen=True)
class ComparedEncoder:
    """An encoder of a comparison.

    Attributes:
        name: Its short name: the model, and what tells it from others of one model.
        store: Path of the store.
        encoder: Description of the encoder.
        layers: Layer numbers.
        layer_names: Name of each layer.
    """

    name: str
    store: str
    encoder: str
    layers: tuple[int, ...]
    layer_names: tuple[str, ...] = ()

    @property
    def labels(self) -> list[str]:
        """What tables call each layer: its number if it is 0 or a block, else its name."""
        return list(label_layers(self.layers, self.layer_names).values())


@dataclass(frozen=True)
class LayerPairs:
    """CKA of every layer of an encoder with every layer of another one.

    A value is None where a layer is constant.

    Attributes:
        first: Name of the encoder of the rows.
        second: Name of the encoder of the columns.
        cka: Linear CKA, [n_layers of the first][n_layers of the second].
        error: Standard error of each value, by a jackknife over groups of utterances; None also
            if there is only one utterance.
        chance: Mean of each value over all orders of the frames of one encoder.
    """

    first: str
    second: str
    cka: Matrix
    error: Matrix
    chance: Matrix


@dataclass(frozen=True)
class EncoderComparison:
    """CKA between the layers of several encoders.

    Attributes:
        encoders: The encoders, at least two.
        warnings: Warnings to show before the comparison.
        notes: What was left out.
        n_frames: Frames in the sample.
        n_utterances: Utterances in the sample.
        n_groups: Groups of utterances of the jackknife.
        seed: Seed of the sample.
        pairs: One for every two encoders.
    """

    encoders: tuple[ComparedEncoder, ...]
    warnings: tuple[str, ...]
    notes: tuple[str, ...]
    n_frames: int
    n_utterances: int
    n_groups: int
    seed: int
    pairs: tuple[LayerPairs, ...]


def by_encoder(stores: Sequence[FeatureStore]) -> tuple[list[FeatureStore], list[str]]:
    """Join the stores that can be read as one: of one encoder, without an id in common.

    Returns:
        A store for each encoder, in the order of the first of each; and why the others could not be
        joined with those before them.

    Raises:
        ConfigError: A store is given twice.
    """
    check_distinct([backend for store in stores for backend in store.backends])
    groups: list[list[FeatureStore]] = []
    reasons = []
    for store in stores:
        for group in groups:
            try:
                JoinedStore([*group, store])
            except (IdentityError, StoreError) as error:
                reasons.append(str(error))
            else:
                group.append(store)
                break
        else:
            groups.append([store])
    joined = [group[0] if len(group) == 1 else JoinedStore(group) for group in groups]
    return joined, reasons


def compare_encoders(
    stores: Sequence[FeatureStore],
    n_frames: int = N_FRAMES,
    seed: int = 0,
    note: Callable[[str], None] | None = None,
    reasons: Sequence[str] = (),
) -> EncoderComparison:
    """Compute the CKA of every layer of each encoder with every layer of each other one.

    Memory: as for `measure_layers`, for the sample of every encoder.

    Args:
        stores: A store for each encoder.
        n_frames: Approximate number of frames; all frames if the stores have fewer.
        seed: Seed of the sample.
        note: Called with progress lines.
        reasons: Why the stores are not read as one, for messages.

    Raises:
        ConfigError: `n_frames` is out of range, or frames have different times.
        StoreError: The stores have no utterance in common, or no frames.
        DamagedError: A shard is missing or damaged.
    """
    note = note or (lambda _: None)
    aligned, notes = align(stores, reasons)
    samples = sample_same_frames(aligned, n_frames, seed)
    n_drawn = len(samples[0].utterance)
    bounds = _bounds(samples[0])
    encoders = tuple(
        ComparedEncoder(
            name, ", ".join(map(str, store.backends)), describe_encoder(store.attributes),
            tuple(store.layers), store.layer_names,
        )
        for name, store in zip(names_of(stores), stores, strict=True)
    )  # fmt: skip
    sizes = " and ".join(str(len(encoder.layers)) for encoder in encoders)
    note(f"read {counted(n_drawn, 'frame')} of {sizes} layers")
    pairs = []
    for one, other in combinations(range(len(stores)), 2):
        found = _all_pairs(samples[one], samples[other], bounds, note)
        pairs.append(LayerPairs(encoders[one].name, encoders[other].name, *found))
    warnings = [
        f"{encoder.name}: {line}"
        for encoder, store in zip(encoders, stores, strict=True)
        for line in encoder_warnings(store.attributes)
    ]
    return EncoderComparison(
        encoders=encoders,
        warnings=tuple(warnings),
        notes=tuple(notes),
        n_frames=n_drawn,
        n_utterances=len(np.unique(samples[0].utterance)),
        n_groups=len(bounds) - 1,
        seed=seed,
        pairs=tuple(pairs),
    )


def align(
    stores: Sequence[FeatureStore], reasons: Sequence[str] = ()
) -> tuple[list[FeatureStore], list[str]]:
    """Return the stores with the utterances that they have in common, at the same positions.

    Utterances whose numbers of frames differ by more than padding of their end are left out.

    Args:
        stores: The stores.
        reasons: Why they are not read as one, for messages.

    Returns:
        The stores, and notes about what was left out.

    Raises:
        ConfigError: Frames of the stores have different times.
        StoreError: They have no utterance in common.
    """
    for store in stores[1:]:
        _check_times(stores[0], store)
    places = [{name: i for i, name in enumerate(store.ids)} for store in stores]
    common = [name for name in stores[0].ids if all(name in place for place in places[1:])]
    if not common:
        ids = " and ".join(
            f"{store.location} has {first_few([repr(name) for name in store.ids[:2]])}"
            for store in stores[:2]
        )
        why = f". Or to read them as one store: {reasons[0]}" if reasons else ""
        raise StoreError(
            f"the stores have no utterance in common: {ids}. To compare encoders, extract the same "
            f"dataset with each{why}"
        )
    positions = [np.array([place[name] for name in common]) for place in places]
    counts = np.array([store.frame_counts[at] for store, at in zip(stores, positions, strict=True)])
    differ = counts.max(0) - counts.min(0) > _MOST_UNEQUAL
    if differ.all():
        shown = ", ".join(str(n) for n in counts[:, 0].tolist())
        raise StoreError(
            f"all {counted(len(common), 'utterance')} in common have different numbers of frames "
            f"(first {common[0]!r}: {shown}); expected the same recordings in all stores"
        )
    notes = []
    n_other = max(len(store) for store in stores) - len(common)
    if n_other:
        notes.append(
            f"{counted(len(common), 'utterance')} in all stores, compared; up to {n_other:,} of a "
            "store left out"
        )
    if differ.any():
        first = common[int(np.flatnonzero(differ)[0])]
        notes.append(
            f"{counted(int(differ.sum()), 'utterance')} with different numbers of frames in the "
            f"stores, left out (first {first!r})"
        )
    taken = [store.take(at[~differ].tolist()) for store, at in zip(stores, positions, strict=True)]
    return taken, notes


def names_of(stores: Sequence[FeatureStore]) -> list[str]:
    """Return a short name of each store: that of its encoder, as sweeps name it.

    Stores of one encoder have the names of their folders, or their paths if these are equal.
    """
    facts = [
        {name: str(value) for name, value in encoder_facts(store.attributes).items()}
        for store in stores
    ]
    folders = ["+".join(name_of(backend) for backend in store.backends) for store in stores]
    paths = ["+".join(str(backend) for backend in store.backends) for store in stores]
    shared = {folder for folder in folders if folders.count(folder) > 1}
    unique = [
        path if folder in shared else folder for folder, path in zip(folders, paths, strict=True)
    ]
    names = encoder_names(facts, [{name} for name in unique])
    return unique if len(set(names)) < len(names) else names


def are_one_encoder(stores: Sequence[FeatureStore]) -> bool:
    """Whether all stores are of one encoder with the same precision and dtype."""
    first, *others = (encoder_facts(store.attributes) for store in stores)
    return all(facts == first for facts in others)


def _check_times(one: FeatureStore, other: FeatureStore) -> None:
    """Check that frame i of both stores is at about the same time.

    Raises:
        ConfigError: It is not.
    """
    for store in (one, other):
        store.check_frames()
    if abs(one.frame_rate_hz - other.frame_rate_hz) > 1e-9 * one.frame_rate_hz:
        raise ConfigError(
            f"{one.location} has {one.frame_rate_hz:g} frames a second and {other.location} "
            f"{other.frame_rate_hz:g}; layers are compared on the same frames, so expected "
            "encoders of the same frame rate"
        )
    centres = [
        store.geometry.centre_samples / store.geometry.sample_rate_hz for store in (one, other)
    ]
    if abs(centres[0] - centres[1]) > 0.5 / one.frame_rate_hz:
        raise ConfigError(
            f"the first frame of {one.location} has its centre at {centres[0] * 1e3:.1f} ms and "
            f"that of {other.location} at {centres[1] * 1e3:.1f} ms; layers are compared on the "
            "same frames, so expected centres within half a frame"
        )


def _bounds(sample: FrameSample) -> list[int]:
    """Return the bounds of groups of whole utterances, with about equally many frames each."""
    starts = np.flatnonzero(np.diff(sample.utterance, prepend=-1))
    n_frames = len(sample.utterance)
    if len(starts) > N_GROUPS:
        wanted = np.arange(N_GROUPS) * n_frames / N_GROUPS
        starts = np.unique(starts[np.searchsorted(starts, wanted).clip(max=len(starts) - 1)])
    return [*starts.tolist(), n_frames]


def _all_pairs(
    one: FrameSample,
    other: FrameSample,
    bounds: Sequence[int],
    note: Callable[[str], None],
) -> tuple[Matrix, Matrix, Matrix]:
    """Return CKA, standard errors and chance of all pairs of layers.

    One layer of the first encoder and one of the second are in memory in float64 at a time.
    """
    start_s = time.perf_counter()
    rows: list[list[Alignment]] = []
    own: list[FloatArray | None] = [None] * len(other.features)
    for i, features in enumerate(one.features):
        x = GroupedFrames(torch.from_numpy(features), bounds)
        rows.append([])
        for j, values in enumerate(other.features):
            y = GroupedFrames(torch.from_numpy(values), bounds, own[j])
            own[j] = y.own
            rows[i].append(x.aligned(y))
        if i == 1:  # the first layer took longer
            remaining_s = (time.perf_counter() - start_s) / 2 * (len(one.features) - 2)
            note(f"CKA of the other pairs of layers takes up to {remaining_s:.0f} s")

    def matrix(name: str) -> Matrix:
        return tuple(tuple(or_none(getattr(found, name)) for found in row) for row in rows)

    return matrix("cka"), matrix("error"), matrix("chance")
