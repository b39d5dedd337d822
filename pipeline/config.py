"""The configuration: Hydra's YAML groups in conf/, merged and checked into frozen dataclasses.

`load_config(["dataset=audiofolder", "dataset.path=clips", ...])` composes conf/config.yaml with
the overrides of the command line. A misspelt key, an unknown group or a value of the wrong type is
a ConfigError that names the nearest right one. Nothing here touches the dataset or the store.
"""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from pipeline.errors import ConfigError

T = TypeVar("T")


@dataclass(frozen=True)
class DatasetConfig:
    """Where the audio comes from.

    Attributes:
        kind: audiofolder, hub, disk (saved by `save_to_disk`) or manifest (csv, json, parquet).
        path: Folder, saved dataset or manifest.
        name: Hub dataset.
        config: Configuration of a hub dataset.
        split: Split to read; None where there is only one.
        revision: Revision of a hub dataset.
        audio_column: Column with the audio, or with its path in a manifest.
        id_column: Column with the utterance's id; None takes the file's path or name, or the row.
        columns: Columns to carry into the index; None carries every plain one.
        limit: Only the first rows; None takes all.
    """

    kind: str
    path: str | None = None
    name: str | None = None
    config: str | None = None
    split: str | None = None
    revision: str | None = None
    audio_column: str = "audio"
    id_column: str | None = None
    columns: tuple[str, ...] | None = None
    limit: int | None = None


@dataclass(frozen=True)
class ModelConfig:
    """Which encoder.

    Attributes:
        name: Short name in the registry, e.g. hubert_base; a hub id or directory for huggingface.
        source: torchaudio (the registry) or huggingface.
        weights: pretrained, random, or the path of a state dict; of the registry's models.
        seed: Of random weights.
        revision: Branch, tag or commit of a hub checkpoint.
        allow_pickle: Whether a hub checkpoint without safetensors may be read from a pickle.
    """

    name: str | None = None
    source: str = "torchaudio"
    weights: str = "pretrained"
    seed: int = 0
    revision: str | None = None
    allow_pickle: bool = False


@dataclass(frozen=True)
class ExtractConfig:
    """What is extracted, and in which batches.

    Attributes:
        layers: all, superb (0 and all), or a list of layers.
        precision: fp32, bf16, fp16, or auto (fp32 on CPU, fp16 on CUDA).
        max_batch_s: Audio seconds of one padded batch; None fits it to the device.
        max_window_s: Longer utterances are encoded in overlapped windows; None takes the encoder's
            default.
        context_s: Context on each side of a window, encoded and thrown away; None likewise.
    """

    layers: str | tuple[int, ...] = "all"
    precision: str = "auto"
    max_batch_s: float | None = None
    max_window_s: float | None = None
    context_s: float | None = None


@dataclass(frozen=True)
class PlanConfig:
    """How the corpus is cut into units.

    Attributes:
        frames_per_unit: Frames per unit; None fits it to the corpus, 20 minutes at most.
    """

    frames_per_unit: int | None = None


@dataclass(frozen=True)
class EngineConfig:
    """What runs the workers.

    Attributes:
        kind: inline (this process) or ray.
        workers: Number of workers; None takes one per GPU, or fills the CPUs.
        threads: CPU threads per worker; None divides the CPUs among the workers.
        device: auto, cpu or cuda.
        address: Ray cluster; None takes RAY_ADDRESS, else starts a local one.
    """

    kind: str
    workers: int | None = None
    threads: int | None = None
    device: str = "auto"
    address: str | None = None


@dataclass(frozen=True)
class RunConfig:
    """How a run behaves.

    Attributes:
        max_quarantined: Share of quarantined utterances above which the exit code is 3.
        max_attempts: Attempts at a unit, in one run, before it is given up; one that shows which
            utterance is to blame does not count.
        unit_timeout_s: After how long a unit counts as hung; None fits it to its audio.
    """

    max_quarantined: float = 0.01
    max_attempts: int = 3
    unit_timeout_s: float | None = None


@dataclass(frozen=True)
class Config:
    """Everything that a verb may need."""

    dataset: DatasetConfig
    model: ModelConfig
    engine: EngineConfig
    store: str | None = None
    retry_quarantined: bool = False
    extract: ExtractConfig = field(default_factory=ExtractConfig)
    plan: PlanConfig = field(default_factory=PlanConfig)
    run: RunConfig = field(default_factory=RunConfig)


_LEAST = {
    "dataset.limit": 1,
    "plan.frames_per_unit": 1,
    "engine.workers": 1,
    "engine.threads": 1,
    "run.max_attempts": 1,
}
"""Least values of whole numbers."""


def load_config(overrides: Sequence[str] = ()) -> Config:
    """Composes the configuration.

    A setting that is text (a path, a column, a split) is taken as it stands, whatever characters
    are in it; quotes around the whole are taken off. Anything else follows Hydra's grammar.

    Args:
        overrides: `group=option` and `key=value`, as on the command line.

    Returns:
        The checked configuration.

    Raises:
        ConfigError: An override is misspelt, malformed, of the wrong type or out of range.
    """
    from hydra import compose, initialize_config_dir
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    folder = config_folder()
    chosen = {"dataset": "audiofolder", "model": "hubert_base", "engine": "ray"}
    for override in overrides:
        key, _, value = override.partition("=")
        if key in chosen:
            chosen[key] = value
    _check_keys(overrides, folder, chosen)
    texts = [override for override in overrides if override.partition("=")[0] in _text_settings()]
    others = [override for override in overrides if override not in texts]
    try:
        with initialize_config_dir(str(folder), version_base="1.3"):
            composed = compose("config", others)
        merged = _plain(composed)
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(" ".join(str(error).split())) from error
    for override in texts:
        key, _, value = override.partition("=")
        _put_text(merged, key, value)
    config = build(Config, merged)
    _check_ranges(config)
    return config


def plain_overrides(overrides: Sequence[str], known: Iterable[str]) -> dict[str, str]:
    """`key=value` settings of a verb that needs no Hydra groups, as text.

    Raises:
        ConfigError: A key is not among `known`, or there is no value.
    """
    values = {}
    for override in overrides:
        key, equals, value = override.partition("=")
        if key not in known:
            raise ConfigError(f"unknown setting {key}{nearest(key, known)}")
        if not equals or not value:
            raise ConfigError(f"{override!r} is not an override; write KEY=VALUE")
        values[key] = value
    return values


def config_folder() -> Path:
    """The folder of the YAML groups: beside the package in a clone, inside it when installed."""
    here = Path(__file__).resolve().parent
    for folder in (here / "conf", here.parent / "conf"):
        if (folder / "config.yaml").is_file():
            return folder
    raise ConfigError(f"no conf/config.yaml in or beside {here}; the installation is incomplete")


def build(kind: type[T], values: Mapping[str, Any], prefix: str = "") -> T:
    """Checks plain values into a frozen dataclass, recursively.

    Raises:
        ConfigError: An unknown key, a missing one, or a value of the wrong type.
    """
    hints = _type_hints(typing.cast("Any", kind))
    for key in values:
        if key not in hints:
            raise ConfigError(f"unknown setting {prefix}{key}{nearest(key, hints)}")
    arguments = {
        key: _convert(hint, values[key], f"{prefix}{key}")
        for key, hint in hints.items()
        if key in values
    }
    try:
        return kind(**arguments)
    except TypeError as error:
        missing = [
            f"{prefix}{item.name}"
            for item in dataclasses.fields(typing.cast("Any", kind))
            if item.name not in values
            and item.default is dataclasses.MISSING
            and item.default_factory is dataclasses.MISSING
        ]
        raise ConfigError(f"missing setting {', '.join(missing)}") from error


def nearest(word: str, known: Iterable[str]) -> str:
    """A hint at the known words next to a misspelt one, to be put at the end of a message."""
    options = sorted(known)
    close = difflib.get_close_matches(word, options, n=2, cutoff=0.6)
    if close:
        return f"; did you mean {' or '.join(close)}?"
    return f"; there are {', '.join(options)}" if options else ""


@cache
def _type_hints(kind: Any) -> dict[str, Any]:
    return typing.get_type_hints(kind)


def _convert(hint: Any, value: Any, name: str) -> Any:
    if dataclasses.is_dataclass(hint):
        if not isinstance(value, Mapping):
            raise ConfigError(f"{name} is {value!r}; expected a group of settings")
        return build(typing.cast("type[Any]", hint), value, f"{name}.")
    options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    for option in options:
        converted = _try_convert(option, value)
        if converted is not _MISFIT:
            return converted
    expected = " or ".join(_type_name(option) for option in options)
    raise ConfigError(f"{name} is {value!r}; expected {expected}")


_MISFIT = object()


def _try_convert(option: Any, value: Any) -> Any:
    if option is types.NoneType:
        return None if value is None else _MISFIT
    if typing.get_origin(option) is tuple:
        item = typing.get_args(option)[0]
        if not isinstance(value, list | tuple):
            return _MISFIT
        items = tuple(_try_convert(item, part) for part in value)
        return _MISFIT if _MISFIT in items else items
    if option is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if option is str and isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)  # a folder or a label may be called 2024
    return value if type(value) is option else _MISFIT


def _type_name(option: Any) -> str:
    if option is types.NoneType:
        return "null"
    if typing.get_origin(option) is tuple:
        item = typing.get_args(option)[0]
        return "a list of whole numbers" if item is int else "a list of names"
    names = {"str": "text", "int": "a whole number", "float": "a number", "bool": "true or false"}
    return names[option.__name__]


def _check_keys(overrides: Sequence[str], folder: Path, chosen: Mapping[str, str]) -> None:
    """Refuses what Hydra would refuse too, in words of our own."""
    for override in overrides:
        key, equals, value = override.partition("=")
        key = key.lstrip("+~")
        if not key or (not equals and not override.startswith("~")):
            raise ConfigError(f"{override!r} is not an override; write KEY=VALUE")
        if key in chosen:
            options = [path.stem for path in (folder / key).glob("*.yaml")]
            if value not in options:
                raise ConfigError(f"no {key} is called {value!r}{nearest(value, options)}")
        elif key not in (known := _known_keys(folder, chosen)):
            raise ConfigError(f"unknown setting {key}{nearest(key, known)}")


def _known_keys(folder: Path, chosen: Mapping[str, str]) -> list[str]:
    from omegaconf import OmegaConf

    keys = list(chosen)
    documents = {group: folder / group / f"{name}.yaml" for group, name in chosen.items()}
    for prefix, path in {"": folder / "config.yaml", **documents}.items():
        if not path.is_file():
            continue
        for key, value in _plain(OmegaConf.load(path)).items():
            name = f"{prefix}.{key}" if prefix else key
            if key in ("defaults", "hydra"):
                continue
            if isinstance(value, dict):
                keys += [f"{name}.{part}" for part in value]
            else:
                keys.append(name)
    return keys


def _plain(document: Any) -> dict[str, Any]:
    from omegaconf import OmegaConf

    return typing.cast("dict[str, Any]", OmegaConf.to_container(document, resolve=True))


@cache
def _text_settings() -> frozenset[str]:
    """Names of the settings whose value is text, or nothing."""
    names = {"store"}
    for group, kind in _type_hints(Config).items():
        if dataclasses.is_dataclass(kind):
            hints = _type_hints(typing.cast("Any", kind)).items()
            names |= {f"{group}.{key}" for key, hint in hints if hint in (str, str | None)}
    return frozenset(names)


def _put_text(merged: dict[str, Any], key: str, value: str) -> None:
    if not value:
        raise ConfigError(f"{key} is empty; write {key}=null to leave it unset")
    if len(value) > 1 and value[0] == value[-1] and value[0] in "'\"":
        value = value[1:-1]
    group, _, name = key.rpartition(".")
    place = merged[group] if group else merged
    place[name] = None if value == "null" else value


def _check_ranges(config: Config) -> None:
    for name, least in _LEAST.items():
        group, _, key = name.partition(".")
        value = getattr(getattr(config, group), key)
        if value is not None and value < least:
            raise ConfigError(f"{name} is {value}; expected at least {least}")
    limit_s = config.run.unit_timeout_s
    if limit_s is not None and limit_s <= 0:
        raise ConfigError(f"run.unit_timeout_s is {limit_s}; expected seconds, more than 0")
    batch_s, share = config.extract.max_batch_s, config.run.max_quarantined
    if batch_s is not None and not 0 < batch_s < float("inf"):
        raise ConfigError(f"extract.max_batch_s is {batch_s}; expected seconds, more than 0")
    if not 0 <= share <= 1:
        raise ConfigError(f"run.max_quarantined is {share}; expected a share from 0 to 1")
