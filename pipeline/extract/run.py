"""A run: plan if needed, extract what is missing, finalise. It is always safe to run again.

Progress is on disk: what is left to do is the plan minus the committed units.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from pipeline.audio.decode import decode as decode_audio
from pipeline.audio.types import Decoded
from pipeline.config import Config
from pipeline.encoders.base import Encoder
from pipeline.errors import ConfigError, RunError
from pipeline.events import Observer, ObserverGroup
from pipeline.extract.driver import Driver, LeasedStore, failure_message
from pipeline.extract.encoder_setup import EncoderSetup, check_settings
from pipeline.extract.executors.opening import open_executor
from pipeline.extract.messages import Job
from pipeline.extract.planning import Estimate, check_space, estimate, plan_source
from pipeline.extract.replanning import quarantined_rows
from pipeline.extract.resources import Resources, find_resources
from pipeline.extract.stop import Stop
from pipeline.extract.store_setup import cpu_threads_of, make_layout, set_up_store
from pipeline.extract.worker import Worker
from pipeline.sources.base import Segment, Source
from pipeline.sources.opening import open_source
from pipeline.store import index as index_files
from pipeline.store.backend.base import Backend
from pipeline.store.backend.opening import open_backend
from pipeline.store.coordination.lease import Lease
from pipeline.store.coordination.log_observer import RunLogObserver
from pipeline.store.coordination.run_log import RunLog
from pipeline.store.documents import read_plan, write_plan
from pipeline.store.format.layout import GROUP, Layout
from pipeline.store.format.plan import Plan, round_up_to_chunk
from pipeline.store.maintain.cleanup import remove_leftovers
from pipeline.store.maintain.status import Status, read_status

Decode = Callable[[Segment, int], Decoded]


def plan(config: Config, observer: Observer | None = None) -> Estimate:
    """Scan the dataset and estimate the extraction; write nothing but the plan.

    With `store` set the plan is written there, and `extract` follows it.

    Args:
        config: What to extract, and where to.
        observer: Receives progress and notes.

    Returns:
        Utterances, hours, units, frames and bytes.

    Raises:
        NoSpaceError: The features do not fit on the store's disk.
    """
    observer = observer or Observer()
    config = _with_absolute_paths(config)
    setup = check_settings(config)
    source = _open_source(config, observer)
    backend = open_backend(config.store) if config.store else None
    if backend is None:
        wanted = config.plan.frames_per_unit
        found = plan_source(source, setup.windows, wanted, progress=observer.headers_scanned)
    else:
        with Lease(backend, _new_run_id()) as lease:
            found = _obtain_plan(setup, source, backend, lease, observer)
    layout = make_layout(setup, found)
    if backend is not None:
        done = len(index_files.committed_units(backend))
        check_space(found.n_units - done, layout, backend)
    return estimate(
        found, layout, setup.geometry.sample_rate_hz, Path() if backend is None else backend
    )


def extract(
    config: Config,
    observer: Observer | None = None,
    stop: Stop | None = None,
    decode: Decode = decode_audio,
    backend: Backend | None = None,
) -> Status:
    """Extract what the store lacks.

    Args:
        config: What to extract, where to, and how.
        observer: Receives the events of the run.
        stop: Lets a signal handler stop the run.
        decode: Decodes audio in the workers; it must pickle.
        backend: The store to write; None opens `config.store`.

    Returns:
        The state of the store at the end.

    Raises:
        ConfigError: No store is given, or the resources do not exist.
        IdentityError: The store holds other features.
        StoreBusyError: Another driver is using the store.
        NoSpaceError: The missing features do not fit on the disk.
        RunError: Units failed in every attempt, or the run was stopped; committed units are safe.
    """
    observer = observer or Observer()
    config = _with_absolute_paths(config)
    backend = _open_store(config) if backend is None else backend
    setup = check_settings(config)
    find_resources(config.engine)  # refuse missing resources before a long scan
    run_id = _new_run_id()
    with Lease(backend, run_id) as lease:
        source = _open_source(config, observer)
        found = _obtain_plan(setup, source, backend, lease, observer)
        resources = find_resources(config.engine, found.n_units, cpu_threads_of(backend))
        layout, make_worker = _prepare(setup, backend, found, source, resources, observer, decode)
        driver = Driver(
            config,
            LeasedStore(backend, layout, setup.geometry, lease, run_id),
            found,
            ObserverGroup(RunLogObserver(RunLog(backend, run_id)), observer),
            partial(open_executor, config.engine, resources, make_worker),
            stop or Stop(),
        )
        driver.run()
        _finalise(backend, layout, driver.failures)
    return read_status(backend)


def _with_absolute_paths(config: Config) -> Config:
    """Return the configuration with absolute paths, so that workers elsewhere read the same."""
    dataset = config.dataset
    if dataset.path is not None:
        dataset = replace(dataset, path=str(Path(dataset.path).expanduser().absolute()))
    store = config.store
    if store is not None:
        if "://" in store:
            raise ConfigError(f"store is {store!r}; expected a path on a file system")
        store = str(Path(store).expanduser().absolute())
    return replace(config, dataset=dataset, store=store)


def _open_store(config: Config) -> Backend:
    if config.store is None:
        raise ConfigError("no store is given; set store=PATH")
    return open_backend(config.store)


def _open_source(config: Config, observer: Observer) -> Source:
    """Open the dataset and report what of it is skipped."""
    source = open_source(config.dataset)
    for names, what in ((source.skipped, "files"), (source.skipped_columns, "columns")):
        if names:
            shown = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
            observer.note(f"{len(names)} {what} of the dataset are skipped: {shown}")
    return source


def _obtain_plan(
    setup: EncoderSetup, source: Source, backend: Backend, lease: Lease, observer: Observer
) -> Plan:
    """Return the store's plan; create or extend it as needed.

    Raises:
        ConfigError: The store has units of another size.
        SourceError: Planned utterances are missing or have changed.
    """
    config = setup.config
    stored = read_plan(backend)
    wanted = config.plan.frames_per_unit
    if stored is not None and wanted and round_up_to_chunk(wanted) != stored.frames_per_unit:
        if backend.children(GROUP):
            raise ConfigError(
                f"plan.frames_per_unit is {wanted}, but store {backend} was created with "
                f"{stored.frames_per_unit}; leave it out, or give another store="
            )
        stored = None
    retried = quarantined_rows(backend, stored) if stored and config.retry_quarantined else []
    if retried:
        observer.note(f"{len(retried)} quarantined utterances will be retried")
    found = plan_source(source, setup.windows, wanted, stored, observer.headers_scanned, retried)
    if found is not stored:
        lease.check()  # a scan takes long; another driver's plan must not be overwritten
        write_plan(backend, found)
    return found


def _prepare(
    setup: EncoderSetup,
    backend: Backend,
    found: Plan,
    source: Source,
    resources: Resources,
    observer: Observer,
    decode: Decode,
) -> tuple[Layout, Callable[[], Worker]]:
    """Load the encoder, set up the store, and return its layout and what creates a worker.

    The driver needs the encoder for its identity and self-check. Only an inline worker shares it;
    for other workers it is freed here, because a GPU has no room for two.
    """
    config = setup.config
    is_inline = config.engine.kind == "inline"
    if is_inline:
        torch.set_num_threads(resources.threads)  # before any computation: bits depend on it
    encoder = _load_encoder(setup, resources, observer)
    layout = set_up_store(setup, backend, found, source, encoder, resources, observer)
    job = Job(
        backend=backend,
        layout=layout,
        dataset=config.dataset,
        load_encoder=setup.loader(resources.device),
        max_batch_frames=setup.batch_frames(resources.device),
        threads=resources.threads,
        decode=decode,
    )
    if is_inline:
        return layout, partial(Worker, job, encoder, source)
    del encoder
    if resources.device == "cuda" and torch.cuda.is_available():
        torch.cuda.empty_cache()
    return layout, partial(Worker, job)


def _load_encoder(setup: EncoderSetup, resources: Resources, observer: Observer) -> Encoder:
    """Load the encoder on the workers' device, or on the CPU if the driver lacks that device."""
    here = resources.device if resources.device == "cpu" or torch.cuda.is_available() else "cpu"
    encoder = setup.loader(resources.device, here)()
    if encoder.is_random:
        observer.note(
            "WARNING: the encoder's weights are RANDOM; the features mean nothing. "
            "For real features set model.weights=pretrained or model.weights=PATH"
        )
    saved = setup.describe_layers()
    if saved:
        observer.note(saved)
    return encoder


def _finalise(backend: Backend, layout: Layout, failures: Mapping[int, Exception]) -> None:
    """Remove the data of failed attempts and compact the index.

    Raises:
        RunError: Units were given up.
    """
    remove_leftovers(backend, layout)
    if not index_files.is_compact(backend):
        index_files.refresh_cache(backend)
    if failures:
        raise RunError(failure_message(failures, backend))


def _new_run_id() -> str:
    return uuid.uuid4().hex[:12]
