"""The Parquet files that the hub makes of the datasets that it holds.

They are in a branch of the repository: `CONFIGURATION/SPLIT/0000.parquet` and so on. Of a large
dataset the hub converts only the first part of a split, to a folder `partial-SPLIT`; a split of
many files is spread over `SPLIT-part0`, `SPLIT-part1`, … Names of splits have no hyphen.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import huggingface_hub
from huggingface_hub import errors

from pipeline.errors import SourceError
from pipeline.sources.location import describe_location
from pipeline.sources.splits import ALL

if TYPE_CHECKING:
    from pipeline.config import DatasetConfig

REVISION = "refs/convert/parquet"
PARTIAL = "partial-"
_FILE = re.compile(r"([^/]+)/((?:partial-)?[^/-]+)(?:-part(\d+))?/([^/]+\.parquet)")


@dataclass(frozen=True)
class Conversion:
    """Files that the hub made of one configuration of a dataset.

    Attributes:
        config: Name of the configuration.
        commit: Commit of the branch.
        urls: Files of each split, in order; of a split of which only a part was converted, its name
            begins with `PARTIAL`.
        notes: What the user should know about them.
    """

    config: str
    commit: str
    urls: Mapping[str, Sequence[str]]
    notes: tuple[str, ...] = ()


def find_conversion(config: DatasetConfig, default: str | None = None) -> Conversion | str:
    """Find the files that the hub made of a dataset.

    Args:
        config: Configuration of the dataset.
        default: Configuration that `datasets` takes if none is named.

    Returns:
        The files; or why there are none that can be used, as a clause.

    Raises:
        SourceError: There are several configurations, and none is named.
    """
    api, name = huggingface_hub.HfApi(), str(config.name)
    try:
        info = api.dataset_info(name, revision=REVISION)
    except errors.RevisionNotFoundError:
        return "the hub has not converted it"
    files = [m for f in info.siblings or () if (m := _FILE.fullmatch(f.rfilename))]
    configs = sorted({file[1] for file in files})
    if not configs:
        return f"the hub's conversion ({REVISION}) has no Parquet files"
    chosen = config.config or default
    if chosen is None and len(configs) > 1:
        raise SourceError(
            f"{describe_location(config)} has {len(configs)} configurations: choose with "
            f"dataset.config={'|'.join(configs)}"
        )
    if chosen is not None and chosen not in configs:
        if len(configs) > 1 or chosen == config.config:
            return f"the hub's conversion lacks the configuration {chosen}: {', '.join(configs)}"
        chosen = None
    chosen = chosen or configs[0]
    of_config = [file for file in files if file[1] == chosen]
    urls: dict[str, list[str]] = {}
    for file in sorted(of_config, key=lambda file: (file[2], int(file[3] or 0), file[4])):
        urls.setdefault(file[2], []).append(f"hf://datasets/{name}@{info.sha}/{file[0]}")
    partial = _wanted_partial(config.split, urls)
    if partial:
        return (
            f"the hub has converted only the first part of the split {partial} "
            f"({REVISION}, {chosen}/{PARTIAL}{partial})"
        )
    return Conversion(chosen, str(info.sha), urls, _is_older(api, name, info.last_modified))


def _wanted_partial(split: str | None, urls: Mapping[str, Sequence[str]]) -> str | None:
    """Return a split that is wanted, and of which only a part was converted; None if none is."""
    wanted = None
    if split not in (None, ALL):
        wanted = {part.partition("[")[0] for part in str(split).split("+")}
    partial = [name.removeprefix(PARTIAL) for name in urls if name.startswith(PARTIAL)]
    return next((name for name in partial if wanted is None or name in wanted), None)


def _is_older(api: huggingface_hub.HfApi, name: str, converted: Any) -> tuple[str, ...]:
    """Return a note if the repository has a commit that is newer than the conversion."""
    newest = api.dataset_info(name).last_modified
    if newest is None or converted is None or not newest > converted:
        return ()
    return (
        f"the repository was changed on {newest:%Y-%m-%d}, after the hub converted it: if its "
        "audio was, dataset.revision=main takes the repository itself",
    )


def stated_rows(name: str, config: str) -> dict[str, int]:
    """Return the rows of each split of a configuration, as the dataset's card states them."""
    try:
        card = huggingface_hub.DatasetCard.load(name, ignore_metadata_errors=True)
    except errors.EntryNotFoundError as error:
        if isinstance(error, errors.LocalEntryNotFoundError):  # the hub did not answer
            raise
        return {}
    infos = card.data.to_dict().get("dataset_info") or []
    infos = infos if isinstance(infos, list) else [infos]
    named = [i for i in infos if isinstance(i, dict) and i.get("config_name", "default") == config]
    splits = named[0].get("splits") if named else None
    return {
        str(split["name"]): split["num_examples"]
        for split in splits or ()
        if isinstance(split, dict) and isinstance(split.get("num_examples"), int)
    }
