"""The folder of a sweep's results: no sweep overwrites those of another one."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Any

from pipeline.config import SweepConfig
from pipeline.config.sweep_schema import HEADS
from pipeline.errors import ConfigError
from pipeline.exclusive import create_exclusive
from pipeline.files import local_folder
from pipeline.probing.labels import Fold, Labels
from pipeline.store.backend.folders import absolute_name, folder_of, name_of
from pipeline.store.read.features import FeatureStore
from pipeline.store.serialization import json_bytes

SETTINGS = "settings.json"
"""What the results in a folder are of. Its exclusive creation claims the folder."""
_MAX_NAMES = 3  # of stores, in the name of a folder
_CONTENT = {
    "features": "features",
    "values": "label values",
    "parts": "parts of the split",
    "fingerprint": "content of its files",
}
"""Hashes of what a sweep reads, and their names in a note."""
_RESULTS = ("sweep.json", "layers.json", "comparison.json", "report.html", "weights.json")


def claim_folder(folder: Path, settings: Mapping[str, Any]) -> tuple[Path, str]:
    """Claim a folder for the results of a sweep.

    The same settings get the same folder again. A folder with other results is left alone, and
    `folder-2`, `folder-3`, ... are tried.

    Args:
        folder: The folder that is asked for.
        settings: All that distinguishes the sweep from others, as JSON values.

    Returns:
        The folder, and a note that says why it is another one; empty if it is not.

    Raises:
        StoreError: The folder cannot be written.
    """
    settings = json.loads(json.dumps(settings))
    for candidate in _candidates(folder):
        path = candidate / SETTINGS
        if not path.exists() and not any((candidate / name).exists() for name in _RESULTS):
            create_exclusive(path, [json_bytes(settings)])
        if _read(path) == settings:
            return candidate, "" if candidate == folder else _note(folder, candidate, settings)
    raise AssertionError  # the candidates do not end


def source_of(store: FeatureStore) -> dict[str, Any]:
    """Return the settings that name the features: the store's path, and hashes of its content.

    These are of its identity, and of the ids with the checksums of their features. Several stores
    have a list of paths. A selection has the number of its utterances and a hash of their ids.
    """
    identity = json.dumps(store.attributes["identity"], sort_keys=True)
    paths = [absolute_name(backend) for backend in store.backends]
    source: dict[str, Any] = {
        "store": paths[0] if len(paths) == 1 else paths,
        "identity": _hash(identity),
        "features": _hash(json.dumps([store.ids, store.checksums()])),
    }
    if digest := _selection(store):
        source["selection"] = {"utterances": len(store), "sha256": digest}
    return source


def learned_from(labels: Labels, folds: Sequence[Fold], fingerprint: str) -> dict[str, str]:
    """Return the settings that name what heads learn beside the features: hashes.

    Args:
        labels: Labels of every utterance.
        folds: The folds.
        fingerprint: `Task.fingerprint`.
    """
    parts = [
        [hashlib.sha256(part.tobytes()).hexdigest() for part in (fold.train, fold.dev, fold.test)]
        for fold in folds
    ]
    return {
        "values": _hash(json.dumps(labels.texts)),
        "parts": _hash(json.dumps(parts)),
        "fingerprint": fingerprint,
    }


def _selection(store: FeatureStore) -> str:
    """Return a hash of the ids of a selection; empty for all utterances of a store."""
    ids = store.ids
    return "" if ids == store.whole().ids else _hash(json.dumps(ids))


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def given_paths(source: FeatureStore | str | Path | Sequence[str | Path]) -> tuple[str, ...]:
    """Return the path of a store, or those of several, as given."""
    if isinstance(source, FeatureStore):
        return tuple(str(backend) for backend in source.backends)
    given = [source] if isinstance(source, str | Path) else source
    return tuple(str(path) for path in given)


def output_folder(store: FeatureStore, config: SweepConfig, labels: Labels) -> Path:
    """Return the output folder that is asked for.

    Raises:
        ConfigError: The folder is inside the store.
    """
    names = label_names(labels.columns)
    default = default_folder(store) / f"{config.task.name}-{names}{_suffix(config)}"
    folder = default if config.out is None else local_folder("out", config.out)
    check_outside(folder, store)
    return folder


def check_outside(folder: Path, store: FeatureStore) -> None:
    """Check that a folder of results is not inside a store.

    Raises:
        ConfigError: It is.
    """
    for root in store_folders(store):
        if folder.resolve().is_relative_to(root.resolve()):
            raise ConfigError(f"out={folder} is inside the store {root}; give another out=FOLDER")


def label_names(columns: Sequence[str]) -> str:
    """Return label columns as a part of the name of a folder."""
    return re.sub(r"[^\w.+-]", "_", "+".join(columns))


def _suffix(config: SweepConfig) -> str:
    """Return what the default folder of another head, or of a share of train, is told apart by."""
    usual = HEADS.get(config.task.kind, (config.task.head,))[0]
    head = "" if config.task.head == usual else f"-{config.task.head}"
    return head if config.fraction == 1 else f"{head}-train{config.fraction:g}"


def store_folders(store: FeatureStore) -> list[Path]:
    """Return the folders of the stores, of those that are in a folder of this machine."""
    return [folder_of(b) for b in store.backends if b.local_path("") is not None]


def default_folder(store: FeatureStore) -> Path:
    """Return where the results of a store go: `sweeps/NAME`, or `sweeps/NAME+NAME` of several.

    Those of a selection go to `sweeps/NAME-selection-HASH`.
    """
    joined = joined_names([name_of(backend) for backend in store.backends])
    digest = _selection(store)
    return Path("sweeps", f"{joined}-selection-{digest[:8]}" if digest else joined)


def joined_names(stores: Sequence[str]) -> str:
    """Return names of stores for the name of a folder: the first ones, and how many more."""
    more = len(stores) - _MAX_NAMES
    return "+".join([*stores[:_MAX_NAMES], *([f"{more}-more"] if more > 0 else [])])


def _candidates(folder: Path) -> Iterator[Path]:
    yield folder
    named = folder if folder.name not in ("", "..") else folder.resolve()
    for number in count(2):
        yield named.with_name(f"{named.name}-{number}")


def _read(path: Path) -> Any:
    """Return the settings in a folder; None if there are none that can be read."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None


def _note(folder: Path, candidate: Path, settings: Mapping[str, Any]) -> str:
    """Return a note about results that go elsewhere, with the names of what differs.

    Other settings often mean that other data is read, too. So the data is named only if all
    settings are equal.
    """
    other = _read(folder / SETTINGS)
    differs = ""
    if isinstance(other, dict):
        ours, theirs = _flat(settings), _flat(other)
        names = sorted({*ours, *theirs}, key=str)
        unequal = [name for name in names if ours.get(name) != theirs.get(name)]
        read = [_CONTENT[name] for name in unequal if name in _CONTENT]
        named = [name for name in unequal if name not in _CONTENT] or read
        differs = f" (other {', '.join(named)})"
    return f"{folder} has the results of another sweep{differs}; these go to {candidate}"


def _flat(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return nested settings by dotted names."""
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, dict):
            flat |= {f"{key}.{name}": item for name, item in _flat(value).items()}
        else:
            flat[key] = value
    return flat
