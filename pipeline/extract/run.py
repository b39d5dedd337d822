"""A run: plan if needed, extract what is missing, finalise. Always safe to run again.

Here is what a run needs before the first unit and after the last; the loop between is driver.py's.
All that matters is on disk: what to do next is the plan minus the committed units.
"""

from __future__ import annotations

import json
import platform
import sys
import uuid
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from pipeline.audio.decode import decode as decode_audio
from pipeline.audio.identity import AUDIO_IDENTITY, audio_provenance
from pipeline.audio.types import Decoded
from pipeline.config import Config
from pipeline.encoders.base import Encoder
from pipeline.errors import ConfigError, RunError
from pipeline.events import Observer, ObserverGroup
from pipeline.extract.driver import Driver, Stop, failure_message
from pipeline.extract.encoder_setup import EncoderSetup, check_settings, short_selfcheck
from pipeline.extract.executors.opening import open_executor
from pipeline.extract.messages import Job
from pipeline.extract.planning import Estimate, check_space, estimate, plan_source
from pipeline.extract.resources import Resources, find_resources
from pipeline.extract.retry import quarantined_rows
from pipeline.extract.worker import Worker
from pipeline.sources.base import Segment, Source
from pipeline.sources.opening import open_source
from pipeline.store import index as index_files
from pipeline.store.backend.base import Backend
from pipeline.store.backend.opening import open_backend
from pipeline.store.coordination.lease import Lease
from pipeline.store.coordination.ledger import Ledger
from pipeline.store.coordination.log_observer import RunLogObserver
from pipeline.store.coordination.run_log import RunLog, now
from pipeline.store.format.identity import Identity, check_same, make_identity
from pipeline.store.format.layout import ATTRIBUTES, FORMAT_VERSION, GROUP, Layout
from pipeline.store.format.plan import Plan, round_up_to_chunk
from pipeline.store.maintain.cleanup import sweep
from pipeline.store.maintain.status import Status, read_status
from pipeline.store.write.documents import (
    check_format_shape,
    read_attributes,
    read_plan,
    resize,
    write_group,
    write_plan,
)

_VERSIONED = ("strata-speech", "torch", "torchaudio", "datasets", "pyarrow", "zarr", "ray", "numpy")


def plan(config: Config, observer: Observer | None = None) -> Estimate:
    """Scans the dataset and says what extracting it amounts to; writes nothing but the plan.

    With `store` set the plan is written there, for `extract` to follow.

    Raises:
        NoSpaceError: It does not fit on the store's disk.
    """
    observer = observer or Observer()
    config = _settled(config)
    setup = check_settings(config)
    source = _open_source(config, observer)
    backend = open_backend(config.store) if config.store else None
    if backend is None:
        found = plan_source(
            source,
            setup.windows,
            config.plan.frames_per_unit,
            progress=observer.headers_scanned,
        )
    else:
        with Lease(backend, _new_run_id()) as lease:
            found = _obtain_plan(setup, source, backend, lease, observer)
    layout = _layout(setup, found)
    done = len(index_files.committed_units(backend)) if backend else 0
    if backend:
        check_space(found.n_units - done, layout, backend)
    return estimate(found, layout, setup.geometry.sample_rate_hz, backend or Path())


def extract(
    config: Config,
    observer: Observer | None = None,
    stop: Stop | None = None,
    decode: Callable[[Segment, int], Decoded] = decode_audio,
    backend: Backend | None = None,
) -> Status:
    """Extracts what the store lacks.

    Args:
        config: What to extract, where to, and how.
        observer: Who watches.
        stop: Through which the run can be asked to end.
        decode: Makes a waveform of a segment, in the workers; it pickles.
        backend: Where to write; None takes `config.store`.

    Returns:
        The state of the store at the end.

    Raises:
        IdentityError: The store holds other features.
        StoreBusyError: Another driver is at work on it.
        NoSpaceError: The rest does not fit on the disk.
        RunError: Some units failed again and again, or the run was asked to stop; what is
            committed is safe.
    """
    observer = observer or Observer()
    config = _settled(config)
    if backend is None:
        if config.store is None:
            raise ConfigError("no store is given; say store=PATH")
        backend = open_backend(config.store)
    setup = check_settings(config)
    find_resources(config.engine)  # what is wrong with it is said before a long scan
    run_id = _new_run_id()
    with Lease(backend, run_id) as lease:
        source = _open_source(config, observer)
        found = _obtain_plan(setup, source, backend, lease, observer)
        resources = find_resources(config.engine, found.n_units, _threads_before(backend))
        if config.engine.kind == "inline":  # before anything is computed: bits follow the threads
            torch.set_num_threads(resources.threads)
        encoder = _load_encoder(setup, resources)
        if encoder.is_random:
            observer.note(
                "WARNING: the encoder's weights are RANDOM; the features mean nothing. "
                "For real ones: model.weights=pretrained or model.weights=PATH"
            )
        saved = setup.describe_layers()
        if saved:
            observer.note(saved)
        observer = ObserverGroup(RunLogObserver(RunLog(backend, run_id)), observer)
        layout = _prepare(setup, source, found, encoder, resources, backend, observer)
        job = Job(
            backend=backend,
            layout=layout,
            dataset=config.dataset,
            load_encoder=setup.loader(resources.device),
            max_batch_frames=setup.batch_frames(resources.device),
            threads=resources.threads,
            decode=decode,
        )
        # Only the inline executor's worker runs in this process, with what is open here.
        make_worker = partial(Worker, job, encoder, source)
        if config.engine.kind != "inline":
            make_worker = partial(Worker, job)
            del encoder  # workers load their own; a GPU has no room for two
            if resources.device == "cuda" and torch.cuda.is_available():
                torch.cuda.empty_cache()
        open_ = partial(open_executor, config.engine, resources, make_worker)
        driver = Driver(
            config,
            backend,
            layout,
            setup.geometry,
            found,
            lease,
            observer,
            open_,
            run_id,
            stop or Stop(),
        )
        driver.run()
        sweep(backend, layout)
        if not index_files.is_compact(backend):
            index_files.refresh_cache(backend)
        if driver.failures:
            raise RunError(failure_message(driver.failures, backend))
    return read_status(backend)


def _settled(config: Config) -> Config:
    """The configuration with absolute paths, so that workers elsewhere read the same."""
    dataset = config.dataset
    if dataset.path is not None:
        dataset = replace(dataset, path=str(Path(dataset.path).expanduser().absolute()))
    store = config.store
    if store is not None:
        if "://" in store:
            raise ConfigError(f"store is {store!r}; expected a path on a file system")
        store = str(Path(store).expanduser().absolute())
    return replace(config, dataset=dataset, store=store)


def _open_source(config: Config, observer: Observer) -> Source:
    source = open_source(config.dataset)
    for names, what in ((source.skipped, "files"), (source.skipped_columns, "columns")):
        if names:
            shown = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
            observer.note(f"{len(names)} {what} of the dataset left out: {shown}")
    return source


def _obtain_plan(
    setup: EncoderSetup, source: Source, backend: Backend, lease: Lease, observer: Observer
) -> Plan:
    """The plan of the store, made or extended as needed."""
    config = setup.config
    stored = read_plan(backend)
    wanted = config.plan.frames_per_unit
    if stored is not None and wanted and round_up_to_chunk(wanted) != stored.frames_per_unit:
        if backend.children(GROUP):
            raise ConfigError(
                f"plan.frames_per_unit is {wanted}, but store {backend} was begun with "
                f"{stored.frames_per_unit}; leave it out, or give another store="
            )
        stored = None
    again = quarantined_rows(backend, stored) if stored and config.retry_quarantined else []
    if again:
        observer.note(f"{len(again)} quarantined utterances are going to be tried again")
    found = plan_source(source, setup.windows, wanted, stored, observer.headers_scanned, again)
    if found is not stored:
        lease.check()  # a scan takes long, and another driver's plan must not be overwritten
        write_plan(backend, found)
    return found


def _load_encoder(setup: EncoderSetup, resources: Resources) -> Encoder:
    """The encoder for the driver itself, which needs its identity; on the workers' device if any.

    A driver without that device (the head of a cluster) has it on the CPU.
    """
    here = resources.device if resources.device == "cpu" or torch.cuda.is_available() else "cpu"
    return setup.loader(resources.device, here)()


def _threads_before(backend: Backend) -> int | None:
    """Threads per worker that the store was begun with, if it was begun, and on CPUs."""
    if not backend.exists(ATTRIBUTES):
        return None
    before = read_attributes(backend)["provenance"]
    return int(before["threads_per_worker"]) if before["device"] == "cpu" else None


def _prepare(
    setup: EncoderSetup,
    source: Source,
    found: Plan,
    encoder: Encoder,
    resources: Resources,
    backend: Backend,
    observer: Observer,
) -> Layout:
    """Makes the store, or makes sure that it is the one that this run would make."""
    layout = _layout(setup, found)
    identity = make_identity(source.identity, AUDIO_IDENTITY, encoder.identity)
    provenance = _provenance(setup, resources) | {"weights": encoder.weights_source}
    if not backend.exists(ATTRIBUTES):
        n_slots = Ledger.open(backend, found.n_units).n_slots
        attributes = _attributes(setup, layout, identity, encoder, provenance)
        attributes["selfcheck"] = _selfcheck(encoder, source, resources, observer)
        write_group(backend, layout, n_slots, attributes)
        return layout
    stored = read_attributes(backend)
    check_same(stored["identity"], _as_json(identity), str(backend))
    check_format_shape(stored, layout, backend)
    resize(backend, layout, Ledger.open(backend, found.n_units).n_slots)
    before = stored["provenance"]
    for name in ("threads_per_worker", "max_batch_frames", "device"):
        if before[name] != provenance[name]:
            observer.note(
                f"{name} is {provenance[name]} now and was {before[name]} when the store was "
                "begun: features agree within rounding, but not to the last bit"
            )
    return layout


def _selfcheck(
    encoder: Encoder, source: Source, resources: Resources, observer: Observer
) -> dict[str, Any] | None:
    """Checks the encoder before a new store is begun; what it finds is kept in the store."""
    if encoder.device.type != resources.device:
        observer.note("no self-check: this process has no GPU; run `strata selfcheck` where one is")
        return None
    found = short_selfcheck(encoder, source)
    if found is None:
        return None
    if not found.ok:
        observer.note(
            f"WARNING: the self-check found relative errors of {max(found.alone_vs_batch):.1e} "
            f"(alone against batch) and {max(found.precision_vs_fp32):.1e} ({found.precision} "
            f"against fp32), more than {found.tolerance:g}; see `strata selfcheck`"
        )
    return asdict(found)


def _layout(setup: EncoderSetup, found: Plan) -> Layout:
    dim = setup.description.dim
    return Layout(setup.layers, dim, found.frames_per_unit, found.utterances_per_slot)


def _attributes(
    setup: EncoderSetup,
    layout: Layout,
    identity: Identity,
    encoder: Encoder,
    provenance: Mapping[str, Any],
) -> dict[str, Any]:
    return {
        "format_version": FORMAT_VERSION,
        "layers": list(layout.layers),
        "feature_dim": layout.dim,
        "frames_per_unit": layout.frames_per_unit,
        "utterances_per_slot": layout.utterances_per_slot,
        "frame_rate_hz": encoder.geometry.frame_rate_hz,
        "sample_rate_hz": encoder.geometry.sample_rate_hz,
        "geometry": encoder.geometry.to_dict(),
        "final_norm": setup.final_norm(encoder),
        "identity": identity,
        "provenance": dict(provenance),
    }


def _provenance(setup: EncoderSetup, resources: Resources) -> dict[str, Any]:
    versions = {"python": platform.python_version()}
    for name in _VERSIONED:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return {
        "created": now(),
        "command": sys.argv[1:],
        "device": resources.device,
        "threads_per_worker": resources.threads,
        "max_batch_frames": setup.batch_frames(resources.device),
        "processor": platform.machine(),
        "versions": versions | {"audio": audio_provenance()},
    }


def _as_json(identity: Identity) -> Identity:
    return dict(json.loads(json.dumps(identity)))


def _new_run_id() -> str:
    return uuid.uuid4().hex[:12]
