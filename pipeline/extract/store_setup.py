"""The store of a run: create it, or check that it is the store that this run would create."""

from __future__ import annotations

import json
import platform
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from pipeline.audio.identity import audio_identity, audio_provenance
from pipeline.config import DatasetConfig
from pipeline.encoders.base import Encoder
from pipeline.encoders.checking.findings import findings, refusal
from pipeline.encoders.selfcheck import SelfCheck
from pipeline.errors import ConfigError, EncoderError, IdentityError
from pipeline.events import Observer, announced
from pipeline.extract.encoder_setup import EncoderSetup
from pipeline.extract.planning.dataset import PlannedDataset
from pipeline.extract.resources import Resources
from pipeline.extract.selfcheck import quick_selfcheck
from pipeline.sources.base import Source
from pipeline.sources.remote.uri import is_hub
from pipeline.store.backend.base import Backend
from pipeline.store.backend.folders import relation
from pipeline.store.backend.opening import open_backend
from pipeline.store.coordination.ledger import Ledger
from pipeline.store.coordination.run_log import now
from pipeline.store.documents import (
    check_format_shape,
    group_attributes,
    read_attributes,
    resize,
)
from pipeline.store.format.identity import SOXR_KEY, Identity, check_same, make_identity
from pipeline.store.format.layout import ATTRIBUTES, CACHED, DROPPED_LAYERS, Layout
from pipeline.store.format.plan import Plan
from pipeline.store.write.creation import create_store

_VERSIONED = ("strata-speech", "torch", "torchaudio", "datasets", "pyarrow", "zarr", "ray", "numpy")
_AFFECTS_ROUNDING = ("threads_per_worker", "max_batch_frames", "device")
"""Provenance on which the last bits of the features depend."""
_ONE_BY_ONE = "one_by_one"
"""Provenance of a store whose clips are encoded one by one, because the other clips of a batch
change their features. It is no part of the identity: features are those of the clips alone, as in
any store."""


def is_created(backend: Backend) -> bool:
    """Return whether the store's attributes exist, which fix its shapes and identity."""
    return backend.exists(ATTRIBUTES)


def check_extracted(backend: Backend) -> None:
    """Check that a store, if it exists, was extracted, and not made from other stores.

    Raises:
        IdentityError: It was made by `collapse`, `copy` or `pipeline.cached`.
    """
    identity = read_attributes(backend).get("identity", {}) if is_created(backend) else {}
    for verb in ("collapse", "copy"):
        if verb in identity:
            raise IdentityError(
                f"store {backend} was made by `strata {verb}`, and nothing can be extracted into "
                f"it; extract into the store that it was made from, then run `strata {verb}` "
                "again, or give another store="
            )
    check_has_dataset(backend)


def check_apart_from_dataset(dataset: DatasetConfig, backend: Backend) -> None:
    """Check that a store that is not there yet does not mix with the files of its dataset.

    Raises:
        ConfigError: It does.
    """
    path = dataset.path
    if path is None or is_hub(path) or is_created(backend):
        return
    found = relation(backend, open_backend(path))
    if found == "the same folder as":
        raise ConfigError(
            f"store={backend} is the folder of the dataset: removing the store would remove the "
            "audio; give a folder of its own"
        )
    if found == "inside" and dataset.kind == "parquet":
        raise ConfigError(
            f"store={backend} is inside dataset.path={path}, and its Parquet files would be read "
            "as files of the dataset; give a place outside of it"
        )


def check_has_dataset(backend: Backend) -> None:
    """Check that a store, if it exists, is not one that `pipeline.cached` adds utterances to.

    Raises:
        IdentityError: It is.
    """
    identity = read_attributes(backend).get("identity", {}) if is_created(backend) else {}
    is_derived = "collapse" in identity or "copy" in identity
    if not is_derived and identity.get("source", {}).get("kind") == CACHED:
        raise IdentityError(
            f"store {backend} is filled by `pipeline.cached`, and has no dataset; add to it by the "
            f"program that made it. `strata copy {backend} NEW` makes a store whose labels can be "
            "changed"
        )


def make_layout(setup: EncoderSetup, plan: Plan, backend: Backend | None = None) -> Layout:
    """Return the shapes of the store's arrays for the configured model and layers.

    Args:
        setup: The configured encoder.
        plan: The plan of the store.
        backend: The store, of which layers may have been dropped; None if there is none.
    """
    dim, form = setup.description.dim_of(setup.layers), setup.form
    dropped: Sequence[int] = ()
    if backend is not None and is_created(backend):
        dropped = read_attributes(backend).get(DROPPED_LAYERS, ())
    return Layout(
        setup.layers,
        dim,
        plan.frames_per_unit,
        plan.utterances_per_slot,
        form.codec,
        form.keep,
        form.statistics,
        tuple(layer for layer in dropped if layer in setup.layers),
        tuple(setup.description.names[layer] for layer in setup.layers),
    )


def cpu_threads_of(backend: Backend) -> int | None:
    """Return the threads per worker of an existing store made on CPUs, else None."""
    if not is_created(backend):
        return None
    provenance = read_attributes(backend)["provenance"]
    return int(provenance["threads_per_worker"]) if provenance["device"] == "cpu" else None


def set_up_store(
    setup: EncoderSetup,
    backend: Backend,
    dataset: PlannedDataset,
    encoder: Encoder,
    resources: Resources,
    observer: Observer,
    checks: bool = True,
) -> Layout:
    """Create the store, or check that it is the store that this run would create.

    Args:
        setup: The configured encoder.
        backend: The store.
        dataset: The dataset and its plan.
        encoder: The loaded encoder.
        resources: Number, threads and device of the workers.
        observer: Receives a note for each setting that changes the rounding of later features, and
            warnings about what the self-check found.
        checks: Whether a new store gets a self-check of the encoder.

    Returns:
        The shapes of the store's arrays.

    Raises:
        EncoderError: The encoder gives other features each time.
        IdentityError: The store holds other features.
    """
    plan, source = dataset.plan, dataset.source
    layout = make_layout(setup, plan, backend)
    provenance = _provenance(setup, resources) | {"weights": encoder.weights_source}
    if not is_created(backend):
        found = _checked(setup, encoder, source, resources, observer) if checks else None
        if encoder.one_by_one or (found is not None and found.leaks):
            provenance[_ONE_BY_ONE] = True
        n_slots = Ledger.open(backend, plan.n_units).n_slots
        audio = audio_identity(uses_soxr=SOXR_KEY in plan.source)
        identity = make_identity(source.identity, audio, encoder.identity, layout)
        attributes = group_attributes(
            layout,
            encoder.geometry,
            encoder.final_norm,
            setup.description.n_layers,
            identity,
            provenance,
        )
        attributes["selfcheck"] = None if found is None else asdict(found)
        create_store(backend, layout, n_slots, attributes)
        return layout
    stored = read_attributes(backend)
    _check_same(stored, backend, dataset, layout, encoder.identity)
    resize(backend, layout, Ledger.open(backend, plan.n_units).n_slots)
    if encodes_one_by_one(backend):
        observer.note(
            "clips are encoded one by one, as they were when the store was created, because the "
            "other clips of a batch change their features"
        )
    for name in _AFFECTS_ROUNDING:
        before, current = stored["provenance"][name], provenance[name]
        if before != current:
            observer.note(
                f"{name} is {current}, but the store was created with {before}: features agree "
                "within rounding, not to the last bit"
            )
    return layout


def encodes_one_by_one(backend: Backend) -> bool:
    """Return whether the clips of a store are encoded one by one, as decided at its creation.

    A store whose features depend on the other clips of a batch would depend on where a run was
    interrupted, or on how utterances are ordered. So each clip is a batch of its own.
    """
    provenance = read_attributes(backend)["provenance"]
    return bool(provenance.get(_ONE_BY_ONE, False))


def check_planned(setup: EncoderSetup, backend: Backend, dataset: PlannedDataset) -> None:
    """Check that a store holds what a run with this configuration would add to.

    All is compared that is known without the weights of the encoder, and without the device that
    resolves the precision "auto".

    Raises:
        IdentityError: The store holds other features.
    """
    if not is_created(backend):
        return
    stored = read_attributes(backend)
    encoder = dict(stored["identity"].get("encoder", {}))
    known = setup.stated_facts()
    encoder |= {name: value for name, value in known.items() if name in encoder}
    _check_same(stored, backend, dataset, make_layout(setup, dataset.plan), encoder)


def _check_same(
    stored: Mapping[str, Any],
    backend: Backend,
    dataset: PlannedDataset,
    layout: Layout,
    encoder: dict[str, Any],
) -> None:
    """Compare the attributes of a store with the dataset, the layout and the encoder of a run.

    Raises:
        IdentityError: The store holds other features.
    """
    audio = audio_identity(uses_soxr=SOXR_KEY in dataset.plan.source)
    if SOXR_KEY not in stored["identity"].get("audio", {}):
        audio.pop(SOXR_KEY, None)  # such files were added later; the plan names the resampler
    identity = make_identity(dict(dataset.source.identity), audio, encoder, layout)
    if dataset.has_labels:  # their columns are no part of the identity
        before = stored["identity"].get("source", {})
        identity["source"] |= {name: before[name] for name in ("columns",) if name in before}
    check_same(dict(stored["identity"]), _as_json(identity), str(backend))
    check_format_shape(dict(stored), layout, backend)


def _provenance(setup: EncoderSetup, resources: Resources) -> dict[str, Any]:
    return {
        "created": now(),
        "command": sys.argv[1:],
        "model": asdict(setup.config.model),
        "device": resources.device,
        "threads_per_worker": resources.threads,
        "max_batch_frames": setup.batch_frames(resources.device),
        "processor": platform.machine(),
        "versions": {**_versions(), "audio": audio_provenance()},
    }


@cache
def _versions() -> Mapping[str, str]:
    """Return the versions of Python and of the installed packages, read once: it takes 20 ms."""
    versions = {"python": platform.python_version()}
    for name in _VERSIONED:
        with suppress(PackageNotFoundError):
            versions[name] = version(name)
    return versions


def _checked(
    setup: EncoderSetup,
    encoder: Encoder,
    source: Source,
    resources: Resources,
    observer: Observer,
) -> SelfCheck:
    """Check the encoder on the first clips, and say what was found.

    Raises:
        EncoderError: The encoder gives other features each time.
    """
    with announced(observer, "checking the encoder on a few clips"):
        found, notes = quick_selfcheck(encoder, source, setup, resources.device)
    for note in notes:
        observer.note(note)
    if why_not := refusal(found):
        raise EncoderError(why_not)
    for finding in findings(found):
        observer.note(f"WARNING: {finding}")
    return found


def _as_json(identity: Identity) -> Identity:
    return dict(json.loads(json.dumps(identity)))
