"""Which Parquet files a dataset of the hub has: its own, or those that the hub made of it.

What was found is recorded in the cache, so that a later run without a connection takes the same
files, and notices if some were never fetched.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import datasets
import huggingface_hub

from pipeline.errors import SourceError, StoreError, one_line
from pipeline.files import write_atomic
from pipeline.hub_errors import FETCH_ERRORS
from pipeline.sources import hub
from pipeline.sources.location import describe_location
from pipeline.sources.repository import converted
from pipeline.sources.repository.errors import HubUnreachableError, explained, explanation
from pipeline.sources.torchcodec_stand_in import importable_torchcodec

if TYPE_CHECKING:
    from pipeline.config import DatasetConfig

_NO_FILES = (
    RuntimeError,  # a program, which `datasets` does not run any more
    datasets.exceptions.DataFilesNotFoundError,
    FileNotFoundError,  # that of older versions
)
"""Errors of a repository in which `datasets` finds no files that it can read."""


@dataclass(frozen=True)
class Repository:
    """Parquet files of a dataset.

    Attributes:
        urls: Files of each split, in order: paths, or `hf://datasets/NAME@COMMIT/FILE`.
        features: Types of the columns, as `datasets` writes them; None = those of the first file.
        n_rows: Rows of each split, where the dataset's card (README.md) states them.
        notes: What the user should know about the choice.
        is_converted: Whether the hub made the files.
    """

    urls: Mapping[str, Sequence[str]]
    features: dict[str, Any] | None = None
    n_rows: Mapping[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    is_converted: bool = False


def find_repository(config: DatasetConfig) -> Repository:
    """Find the Parquet files of `dataset.name`: on the hub, in its cache, or in a local folder.

    Returns:
        The files; none if `load_dataset` is to load the dataset, or to give the reason why not.

    Raises:
        SourceError: The hub refuses the dataset.
        HubUnreachableError: The hub does not answer, and its cache has no such dataset.
    """
    if Path(str(config.name)).is_dir():
        try:
            return _described(_builder(config, str(config.name)))
        except hub.LOAD_ERRORS:
            return Repository({})
    try:
        repository = _on_the_hub(config)
    except HubUnreachableError as error:
        found = _recorded(config) or _of_snapshot(config)
        if found is None:
            where = describe_location(config)
            rest = str(error).removeprefix(f"{where} ")
            raise HubUnreachableError(f"{where} is not in the local cache, and {rest}") from error
        return _noted(found, f"the files in the cache are used, because {error}")
    if repository.urls:
        _record(config, repository)
    return repository


def _on_the_hub(config: DatasetConfig) -> Repository:
    """Return the files that a repository of the hub has, or that the hub made of it.

    Raises:
        SourceError: As for `find_repository`.
    """
    if config.revision == converted.REVISION:
        return _converted(config, None, None)
    try:
        builder = _builder(config, str(config.name))
    except (*hub.LOAD_ERRORS, *FETCH_ERRORS) as error:
        check_access(config, error)
        if config.revision is not None or not isinstance(error, _NO_FILES):
            return Repository({})
        return _converted(config, None, error)
    if type(builder).__name__ == "Cache":  # `datasets` got no answer, and has a copy
        try:
            check_access(config, None)
        except HubUnreachableError as error:
            found = _recorded(config) or _of_snapshot(config) or Repository({})
            what = "the files in the cache are" if found.urls else "the copy of `datasets` is"
            return _noted(found, f"{what} used, because {error}")
        return Repository({})
    repository = _described(builder)
    if repository.urls or config.revision is not None:
        return repository
    return _converted(config, builder, None)


def _noted(repository: Repository, note: str) -> Repository:
    """Add a note, unless the user has forbidden to ask the hub."""
    if huggingface_hub.constants.HF_HUB_OFFLINE:
        return repository
    return replace(repository, notes=(note, *repository.notes))


def _builder(config: DatasetConfig, name: str) -> Any:
    """Return what `datasets` knows of a dataset, whose rows it does not load."""
    local = Path(name)
    with importable_torchcodec():
        return datasets.load_dataset_builder(
            name,
            config.config,
            revision=None if local.is_dir() else config.revision,
            cache_dir=hub.cache_dir(local) if local.is_dir() else None,
        )


def check_access(config: DatasetConfig, error: BaseException | None) -> None:
    """Refuse a dataset that the hub refuses, or cannot be asked about.

    `datasets` hides some answers of the hub, so it is asked again.

    Args:
        config: Configuration of the dataset.
        error: Error of `datasets`; None = ask the hub.

    Raises:
        SourceError: The hub has no such dataset or revision, or it may not be read.
        HubUnreachableError: The hub does not answer.
    """
    where = describe_location(config)
    found = None if error is None else explanation(str(config.name), config.revision, error)
    if found is not None:
        kind, reason = found
        raise kind(f"{where} could not be fetched from the hub: {reason}") from error
    with explained(str(config.name), config.revision, where):
        huggingface_hub.HfApi().dataset_info(str(config.name), revision=config.revision)


def _described(builder: Any) -> Repository:
    """Return the files that a builder names; none if they are not all rows of Parquet files."""
    settings = ("columns", "filters")
    is_plain = (
        builder.name == "parquet"
        and bool(builder.config.data_files)
        and all(getattr(builder.config, name, None) is None for name in settings)
        and getattr(builder.config, "on_bad_files", "error") == "error"
    )
    if not is_plain:
        return Repository({})
    features = builder.info.features
    stated = {str(name): info.num_examples for name, info in (builder.info.splits or {}).items()}
    return Repository(
        {str(split): list(files) for split, files in builder.config.data_files.items()},
        None if features is None else features.to_dict(),
        {name: n for name, n in stated.items() if n is not None},
    )


def _converted(config: DatasetConfig, builder: Any, error: BaseException | None) -> Repository:
    """Return the files that the hub made of a repository.

    Args:
        config: Configuration of the dataset.
        builder: What `datasets` knows of it; None if it cannot load it.
        error: Why it cannot; None if the configuration names the branch of the hub's files.

    Returns:
        The files; none if `load_dataset` is to load the repository.

    Raises:
        SourceError: There are none, and `load_dataset` cannot load the repository.
    """
    name, where = str(config.name), describe_location(config)
    default = None if builder is None else builder.config.name
    what = f"the list of the Parquet files that the hub made of {name}"
    with explained(name, config.revision, what):
        found = converted.find_conversion(config, default)
        n_rows = {} if isinstance(found, str) else converted.stated_rows(name, found.config)
    if isinstance(found, str) and builder is None:
        if error is not None:
            raise SourceError(f"{where} cannot be loaded: {one_line(error)}; {found}")
        raise SourceError(
            f"{where}: {found}; leave out dataset.revision={config.revision} to load the "
            "repository itself"
        )
    kind = "" if builder is None else f" ({builder.name})"
    if isinstance(found, str):
        note = f"{name} has no Parquet files{kind}, and {found}: it is read as `datasets` loads it"
        return Repository({}, notes=(note,))
    note = (
        f"{name} has no Parquet files of its own{kind}: those that the hub made of it are read "
        f"({converted.REVISION}, commit {found.commit[:7]}). dataset.revision=main takes the "
        "repository itself"
    )
    notes = () if config.revision == converted.REVISION else (note, *found.notes)
    return Repository(found.urls, None, n_rows, notes, is_converted=True)


def _of_snapshot(config: DatasetConfig) -> Repository | None:
    """Return the files of the dataset in the cache of the hub; None if it is not there."""
    folder = _snapshot(config)
    if folder is None:
        return None
    try:
        repository = _described(_builder(config, str(folder)))
    except hub.LOAD_ERRORS:
        return None
    base = f"hf://datasets/{config.name}@{folder.name}"
    urls = {
        split: [f"{base}/{Path(file).relative_to(folder).as_posix()}" for file in files]
        for split, files in repository.urls.items()
    }
    return replace(repository, urls=urls) if urls else None


def _snapshot(config: DatasetConfig) -> Path | None:
    """Return the folder of the newest commit that is in the cache of the hub."""
    try:
        return Path(
            huggingface_hub.snapshot_download(
                str(config.name),
                repo_type="dataset",
                revision=config.revision,
                local_files_only=True,
            )
        )
    except (OSError, ValueError):  # LocalEntryNotFoundError, a name that no repository can have
        return None


def _record_path(config: DatasetConfig) -> Path:
    key = json.dumps([config.name, config.config, config.revision])
    name = hashlib.sha256(key.encode()).hexdigest()[:32]
    return Path(datasets.config.HF_DATASETS_CACHE) / "strata" / "hub" / f"{name}.json"


def _record(config: DatasetConfig, repository: Repository) -> None:
    """Record the files for a run without a connection; a cache that is read-only is left alone."""
    with suppress(StoreError, OSError):
        write_atomic(_record_path(config), [json.dumps(asdict(repository)).encode()])


def _recorded(config: DatasetConfig) -> Repository | None:
    """Return the files that were found at the last time; None if there are newer ones."""
    try:
        content = json.loads(_record_path(config).read_bytes())
        repository = Repository(**(content | {"notes": tuple(content["notes"])}))
    except (OSError, ValueError, TypeError, KeyError):
        return None
    snapshot = None if repository.is_converted else _snapshot(config)
    is_newest = snapshot is None or any(
        f"@{snapshot.name}/" in url for files in repository.urls.values() for url in files
    )
    return repository if is_newest else None
