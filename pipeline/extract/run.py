"""One run of `plan` or `extract`. Running it again is always safe.

Progress is on disk: the units to extract are those of the plan that are not committed.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from pipeline.audio.decode import decode as decode_audio
from pipeline.audio.probe import count_channels
from pipeline.audio.types import Decoded
from pipeline.config import Config, DatasetConfig
from pipeline.encoders.base import Encoder
from pipeline.errors import ConfigError, RunError, SourceError, StoreError, counted, first_few
from pipeline.events import Observer, ObserverGroup, announced
from pipeline.extract.driver import Driver, LeasedStore, Share, failure_message
from pipeline.extract.encoder_setup import EncoderSetup, resolve_encoder_setup, revision_of
from pipeline.extract.executors.opening import open_executor
from pipeline.extract.messages import Job
from pipeline.extract.planning.dataset import PlannedDataset
from pipeline.extract.planning.estimate import Estimate, check_space, estimate
from pipeline.extract.planning.fixed_windows import note_fixed_windows
from pipeline.extract.planning.obtain import obtain_dataset, plan_new, save_dataset
from pipeline.extract.planning.replanning import deferred_rows
from pipeline.extract.planning.scan import explain_unreadable
from pipeline.extract.resources import Resources, find_resources
from pipeline.extract.stop import Stop
from pipeline.extract.store_setup import (
    check_apart_from_dataset,
    check_planned,
    cpu_threads_of,
    encodes_one_by_one,
    is_created,
    make_layout,
    set_up_store,
)
from pipeline.extract.worker import Worker
from pipeline.sources.base import Segment, Source
from pipeline.sources.opening import open_source
from pipeline.sources.remote.uri import is_remote
from pipeline.store import index as index_files
from pipeline.store.backend.base import Backend
from pipeline.store.backend.opening import absolute_location, open_backend
from pipeline.store.coordination.lease import Lease, is_read_only
from pipeline.store.coordination.log_observer import RunLogObserver
from pipeline.store.coordination.run_log import RunLog
from pipeline.store.documents import read_attributes, read_plan
from pipeline.store.format.layout import Layout
from pipeline.store.labels import read_labels
from pipeline.store.maintain.cleanup import remove_leftovers
from pipeline.store.maintain.status import Status, read_status

Decode = Callable[[Segment, int], Decoded]
"""Decodes the audio of a segment to a waveform at a sample rate in Hz."""


def plan(config: Config, observer: Observer | None = None) -> Estimate:
    """Scan the dataset and estimate the extraction.

    With `store` set, the plan is written there, and nothing else; `extract` follows it. If the
    dataset has changed since it was extracted, nothing is written, and the result has the changes.

    Args:
        config: What to extract, and where to.
        observer: Receives progress and notes.

    Returns:
        Utterances, hours, units, frames and bytes.

    Raises:
        ConfigError: A setting is wrong, or does not fit the plan that the store has.
        SourceError: The dataset cannot be opened, or planned utterances are missing or changed.
        WeightsError: The configuration of a Hugging Face checkpoint cannot be fetched.
        IdentityError: The store holds other features. The weights are not compared.
        StoreBusyError: Another driver is using the store.
        NoSpaceError: The features do not fit on the store's disk.
    """
    observer = observer or Observer()
    config = _with_absolute_paths(config)
    backend = open_backend(config.store) if config.store else None
    if backend is not None:
        check_apart_from_dataset(config.dataset, backend)
    setup = _resolve(config, backend, observer)
    source = _open_source(config, observer)
    if backend is None:
        dataset = plan_new(config, setup.windows, source, observer)
    else:
        with Lease(backend, _new_run_id()) as lease:
            dataset = obtain_dataset(config, setup.windows, source, backend, observer)
            check_planned(setup, backend, dataset)
            if dataset.new_labels is None:
                save_dataset(backend, dataset, lease.check)
    layout = make_layout(setup, dataset.plan, backend)
    if backend is not None:
        n_committed = len(index_files.committed_units(backend))
        check_space(dataset.plan.n_units - n_committed, layout, backend)
    # Without a store the free space is that of the working directory.
    location = Path() if backend is None else backend
    with announced(observer, "reading the reasons why utterances cannot be read"):
        reasons = explain_unreadable(dataset.unreadable(), setup.geometry.sample_rate_hz)
    window_s = setup.description.window_limit_s
    found = estimate(dataset, layout, setup.windows, location, window_s)
    return replace(found, reasons=reasons, skipped=source.skipped)


def extract(
    config: Config,
    observer: Observer | None = None,
    stop: Stop | None = None,
    decode: Decode = decode_audio,
    backend: Backend | None = None,
    share: Share | None = None,
    encoder: Encoder | None = None,
) -> Status:
    """Extract what the store lacks.

    Args:
        config: What to extract, where to, and how.
        observer: Receives the events of the run.
        stop: Lets a signal handler stop the run.
        decode: Decodes audio in the workers; must be picklable.
        backend: The store to write; None opens `config.store`.
        share: The units that this driver extracts, of those that several drivers share; None
            extracts all.
        encoder: The encoder of the configuration, loaded; None loads it, and checks it in a new
            store.

    Returns:
        The state of the store at the end.

    Raises:
        ConfigError: A setting is wrong, no store is given, or the resources do not exist.
        SourceError: The dataset cannot be opened, or planned utterances are missing or changed.
        WeightsError: The weights cannot be found or read, or do not fit the model.
        IdentityError: The store holds other features.
        StoreBusyError: Another driver is using the store.
        StoreError: The store cannot be written.
        NoSpaceError: The missing features do not fit on the disk.
        RunError: Units failed in every attempt, or the run was stopped; committed units are safe.
    """
    observer = observer or Observer()
    config = _with_absolute_paths(config)
    backend = _open_store(config) if backend is None else backend
    check_apart_from_dataset(config.dataset, backend)
    setup = _resolve(config, backend, observer)
    with announced(observer, "looking for the workers' resources"):  # a cluster is connected to
        find_resources(config.engine)  # refuse missing resources before a long scan
    run_id, share = _new_run_id(), share or Share()
    with ExitStack() as stack:
        try:
            lease = stack.enter_context(share.lease(backend, run_id))
        except StoreError as error:
            if not is_read_only(error):
                raise
            _check_finished(setup, backend, observer, decode, error)
            return read_status(backend)
        if lease.warning:
            observer.note(lease.warning)
        source = _open_source(config, observer)
        dataset = obtain_dataset(config, setup.windows, source, backend, observer)
        if not share.leads:
            dataset = _as_planned(dataset, backend)
        elif not is_created(backend):
            save_dataset(backend, dataset, lease.check)
        resources = find_resources(
            config.engine,
            dataset.plan.n_units,
            cpu_threads_of(backend),
            make_layout(setup, dataset.plan),
            backend.writes_in_memory,
            setup.geometry.hop_samples,
        )
        layout, make_worker = _prepare(
            setup, backend, dataset, resources, observer, decode, encoder
        )
        generation = save_dataset(backend, dataset, lease.check)
        if generation is not None:
            observer.note(
                f"readers show labels={generation} from now on; labels={generation - 1} has those "
                "from before"
            )
        driver = Driver(
            config,
            LeasedStore(backend, layout, setup.geometry, lease, run_id),
            dataset.plan,
            ObserverGroup(RunLogObserver(RunLog(backend, run_id)), observer),
            partial(open_executor, config.engine, resources, make_worker),
            stop or Stop(),
            dataset.places,
            dataset.metadata,
            share,
        )
        stack.callback(share.end)
        share.begin(run_id)
        driver.run()
        if share.leads:
            with announced(observer, "removing leftovers and compacting the index"):
                _finalise(backend, layout)
        if driver.failures:
            raise RunError(failure_message(driver.failures, backend))
    with announced(observer, "reading the index"):
        return read_status(backend)


def _resolve(config: Config, backend: Backend | None, observer: Observer) -> EncoderSetup:
    """Resolve the encoder's settings; a store that exists states the commit of the weights."""
    stored = read_attributes(backend) if backend is not None and is_created(backend) else None
    commit = revision_of(config, stored)
    if commit != config.model.revision:
        observer.note(
            f"the store was created with commit {commit} of {config.model.name}, which is used "
            "again; model.revision chooses another one"
        )
    return resolve_encoder_setup(config, stored)


def _with_absolute_paths(config: Config) -> Config:
    """Make paths absolute, so that workers with another working directory open the same files."""
    dataset = config.dataset
    path, root, tars = (
        p and (p if is_remote(p) else str(Path(p).expanduser().absolute()))
        for p in (dataset.path, dataset.root, dataset.tars)
    )
    dataset = replace(dataset, path=path, root=root, tars=tars)
    store = config.store
    if store is not None:
        store = absolute_location(store)
    model = config.model
    weights = Path(model.weights).expanduser()
    if model.weights not in ("pretrained", "random") and weights.exists():
        model = replace(model, weights=str(weights.absolute()))
    if model.source == "checkpoint" and model.name is not None:
        model = replace(model, name=str(Path(model.name).expanduser().absolute()))
    return replace(config, dataset=dataset, model=model, store=store)


def _open_store(config: Config) -> Backend:
    if config.store is None:
        raise ConfigError("no store is given; set store=PATH")
    return open_backend(config.store)


def _open_source(config: Config, observer: Observer) -> Source:
    """Open the dataset; report skipped files and columns."""
    with announced(observer, "opening the dataset"):
        source = open_source(config.dataset, count_channels)
    for note in source.notes:
        observer.note(note)
    for names, kind in ((source.skipped, "file"), (source.skipped_columns, "column")):
        hint = "; `strata plan ... --all` lists all" if kind == "file" and len(names) > 5 else ""
        if kind == "column" and "id" in names and _takes_ids(config.dataset):
            hint = "; to use the column id as the ids, set dataset.id_column=id"
        if names:
            observer.note(
                f"skipped: {counted(len(names), kind)} of the dataset: {first_few(names)}{hint}"
            )
    return source


def _takes_ids(dataset: DatasetConfig) -> bool:
    return dataset.id_column is None and dataset.kind not in ("kaldi", "lhotse")


def _check_finished(
    setup: EncoderSetup, backend: Backend, observer: Observer, decode: Decode, error: StoreError
) -> None:
    """Check that a store that cannot be written needs nothing from this run.

    The dataset is scanned and the encoder compared with the store's, as in any other run.

    Raises:
        StoreError: `error`: there is something to write.
        IdentityError: The store holds other features.
    """

    def refuse() -> None:
        raise error

    stored = read_plan(backend)
    if stored is None or not is_created(backend):
        refuse()
    source = _open_source(setup.config, observer)
    dataset = obtain_dataset(setup.config, setup.windows, source, backend, observer)
    if dataset.is_changed or dataset.new_labels is not None:
        refuse()
    current_plan = dataset.plan
    committed = index_files.committed_units(backend)
    layout = make_layout(setup, current_plan)
    resources = find_resources(
        setup.config.engine,
        current_plan.n_units,
        cpu_threads_of(backend),
        layout,
        backend.writes_in_memory,
        setup.geometry.hop_samples,
    )
    _prepare(setup, backend, dataset, resources, observer, decode)
    is_extended = len(deferred_rows(backend, current_plan, setup.geometry)) > 0
    if is_extended or not set(range(current_plan.n_units)).issubset(committed):
        refuse()
    audio_s = current_plan.audio_seconds(setup.geometry.sample_rate_hz)
    observer.planned(current_plan, len(committed), audio_s)


def _prepare(
    setup: EncoderSetup,
    backend: Backend,
    dataset: PlannedDataset,
    resources: Resources,
    observer: Observer,
    decode: Decode,
    encoder: Encoder | None = None,
) -> tuple[Layout, Callable[[], Worker]]:
    """Load the encoder, set up the store, and return its layout and a worker's constructor.

    The driver needs the encoder for the identity and the self-check of the store. An inline worker
    shares this encoder. For other workers it is freed, because a GPU has no room for two.
    """
    config = setup.config
    is_inline = config.engine.kind == "inline"
    if is_inline:
        torch.set_num_threads(resources.threads)  # before any computation: bits depend on it
    note_fixed_windows(setup, dataset.plan, backend, observer)
    is_given = encoder is not None
    if encoder is None:
        encoder = _load_encoder(setup, resources, observer)
    layout = set_up_store(
        setup, backend, dataset, encoder, resources, observer, checks=not is_given
    )
    one_by_one = encodes_one_by_one(backend)
    job = Job(
        backend=backend,
        layout=layout,
        dataset=config.dataset,
        load_encoder=setup.loader(resources.device),
        max_batch_frames=1 if one_by_one else setup.batch_frames(resources.device),
        threads=resources.threads,
        decode=decode,
        encoder_identity=encoder.identity,
        opens_source=not dataset.source.is_shared,
    )
    if is_inline:
        return layout, partial(Worker, job, encoder, dataset.source)
    del encoder
    if resources.device == "cuda" and torch.cuda.is_available():
        torch.cuda.empty_cache()
    return layout, partial(Worker, job)


def _load_encoder(setup: EncoderSetup, resources: Resources, observer: Observer) -> Encoder:
    """Load the encoder on the workers' device, or on the CPU if the driver lacks that device."""
    is_available = resources.device == "cpu" or torch.cuda.is_available()
    local_device = resources.device if is_available else "cpu"
    with announced(observer, "loading the encoder and hashing its weights"):
        encoder = setup.loader(resources.device, local_device)()
    if encoder.is_random:
        observer.note(
            "WARNING: the encoder's weights are RANDOM; the features mean nothing. "
            "For real features set model.weights=pretrained, or see docs/models.md"
        )
    savings = setup.describe_savings()
    for line in (*encoder.notes, *([savings] if savings else [])):
        observer.note(line)
    return encoder


def _finalise(backend: Backend, layout: Layout) -> None:
    """Remove the data of failed attempts and compact the index."""
    remove_leftovers(backend, layout)
    if not index_files.is_compact(backend):
        index_files.refresh_cache(backend)


def _as_planned(dataset: PlannedDataset, backend: Backend) -> PlannedDataset:
    """Return the dataset of a driver that extracts a share: plan and labels are the leader's.

    Raises:
        SourceError: This driver sees another dataset than the leader.
    """
    if dataset.is_changed:
        raise SourceError(
            f"{dataset.source.origin} is not the dataset that rank 0 has planned: it differs on "
            "this host, or has changed since the job began; give every host the same data"
        )
    has_labels = read_labels(backend) is not None
    return replace(dataset, has_labels=has_labels, new_labels=None)


def _new_run_id() -> str:
    return uuid.uuid4().hex[:12]
