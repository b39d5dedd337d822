"""`open_or_extract`: a store as it will be when it is complete."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from os import PathLike, fspath
from typing import Any

from pipeline.config import Config, check_code, compose_config
from pipeline.encoders.modules.registration import allow_target
from pipeline.errors import ConfigError
from pipeline.online.code_transfer import pack_code
from pipeline.online.completeness import check_settings, is_complete
from pipeline.online.dataset import OnlineDataset, View
from pipeline.online.extraction import Extraction, wait_s
from pipeline.store import index as index_files
from pipeline.store.backend.base import Backend
from pipeline.store.backend.opening import absolute_location, open_backend
from pipeline.store.read.opening import open_store


def open_or_extract(
    store_uri: str | PathLike[str],
    *overrides: str,
    config: Config | None = None,
    layers: Sequence[int | str] | None = None,
    columns: Sequence[str] = (),
    classes: Sequence[str] | Mapping[str, Sequence[str]] = (),
    max_frames: int | None = None,
    final_norm: bool = False,
    where: str | None = None,
    rank: int = 0,
    world_size: int = 1,
    recheck: bool = False,
    allow_code: bool = False,
    **settings: Any,
) -> OnlineDataset:
    """Open the features of a dataset; extract what is missing while training on the rest.

    A complete store is opened, and nothing else happens: neither dataset nor encoder is loaded. If
    units are missing, a process beside this one extracts them as `strata extract` does, and prints
    its progress. In epoch 0, the loader of `make_loader` yields the units that are committed, and
    then each new one. From epoch 1 on, it shuffles over the whole store.

    Returns when the first unit is committed. When the loop over epoch 0 is left early, or this
    process ends in any way, the extraction stops, and loses at most the unit in hand. The next call
    continues it, as does iterating over the loader again. If another job is extracting into the
    store, its units are read, and it is continued if it ends too early.

    Args:
        store_uri: Path of the store.
        *overrides: Settings as on the command line: "extract.layers=[9]".
        config: All settings, instead of `overrides` and `settings`.
        layers: Layers to read; this and the following are as for `FeatureDataset`.
        columns: Metadata columns to return with every utterance.
        classes: Columns to return as class numbers. While units are missing, the names of the
            classes must be given, except for columns that the dataset has as classes.
        max_frames: Maximum number of frames of an utterance; a longer one is cropped.
        final_norm: Apply the model's final LayerNorm to its last layer.
        where: Condition on the columns, as for `FeatureStore.select`. All utterances are extracted.
        rank: Rank of this process, from 0. Each rank of a distributed job extracts a share of the
            units, on the device that it trains on; with "ray", rank 0 extracts all.
        world_size: Number of ranks; give both to `make_loader`, too.
        recheck: Whether to compare a complete store with the dataset, its audio and the weights,
            and to extract what is new, as `strata extract` does. The settings `retry_quarantined`
            and `restore_dropped` imply it.
        allow_code: Whether code may run that `model.target` names; encoders from
            `register_encoder` need no permission.
        **settings: Settings by group: `dataset`, `model`, `engine`, `extract`, `plan` and `run`.
            A group is the name of an option ("hubert_base"), a mapping ({"path": "clips"}), or its
            dataclass. Defaults are those of `strata extract`, except for `engine`, which is
            "inline": one worker, in the process beside this one. "ray" has several. `model` may
            also be a hub id or a path, as for `load_encoder`.

    Raises:
        ConfigError: A setting is wrong.
        IdentityError: The store holds other features.
        StrataError: The extraction fails before its first unit, as `strata extract` would. Later
            errors are raised by the loader, as is a RunError if more than `run.max_quarantined`
            of the utterances are quarantined.

    Example:
        >>> train = open_or_extract(
        ...     "features", dataset={"path": "clips"}, model="hubert_base", layers=[9]
        ... )                                                                  # doctest: +SKIP
        >>> for batch in make_loader(train, max_frames_per_batch=20_000):      # doctest: +SKIP
        ...     batch.features, batch.lengths
    """
    if config is None:
        config = compose_config(overrides, _with_engine(overrides, settings))
    elif overrides or settings:
        given = [*overrides, *settings]
        raise ConfigError(f"config and {given[0]} are both given; put all settings into config")
    check_code(config.model, allow_code)
    allow_target(config.model)
    if not 0 <= rank < world_size:
        raise ConfigError(f"rank is {rank}; expected 0 to {world_size - 1}")
    config = replace(config, store=_path_of(store_uri))
    view = View(
        where,
        config.run.max_quarantined,
        {
            "layers": layers,
            "columns": columns,
            "classes": classes,
            "max_frames": max_frames,
            "final_norm": final_norm,
        },
    )
    backend = open_backend(str(config.store))
    recheck = recheck or config.retry_quarantined or config.restore_dropped
    if is_complete(backend) and not recheck:
        check_settings(config, backend)
        return OnlineDataset(open_store(backend), view, None)
    request: dict[str, Any] = {"rank": rank, "world_size": world_size, "recheck": recheck}
    code = pack_code(config.model)
    if code is not None:
        request["code"] = code
    extraction = Extraction({"config": asdict(config), **request})
    try:
        _await_unit(extraction, backend)
        check_settings(config, backend)
        return OnlineDataset(open_store(backend), view, extraction)
    except BaseException:
        extraction.stop()
        raise


def _with_engine(overrides: Sequence[str], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings with the engine `inline`, unless another one is chosen."""
    engine = settings.get("engine", {})
    is_open = isinstance(engine, Mapping) and "kind" not in engine
    if not is_open or any(item.startswith("engine=") for item in overrides):
        return dict(settings)
    return {**settings, "engine": {"kind": "inline", **engine}}


def _path_of(store_uri: str | PathLike[str]) -> str:
    """Return the absolute path of a store, or its URI.

    Raises:
        ConfigError: It is neither.
    """
    if not isinstance(store_uri, str | PathLike):
        raise ConfigError(f"the store is {store_uri!r:.80}; expected its path or URI")
    return absolute_location(str(fspath(store_uri)))


def _await_unit(extraction: Extraction, backend: Backend) -> None:
    """Start an extraction; wait until it is known to fit to the store, which has a unit.

    Raises:
        StrataError: The extraction has failed.
    """
    extraction.start()
    while not extraction.is_ready() or not index_files.committed_units(backend):
        if extraction.is_ready() and extraction.is_done():
            return  # nothing is planned
        wait_s()
