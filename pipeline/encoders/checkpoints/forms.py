"""Recognition of what wrote a file of weights, and where it keeps weights and settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from pipeline.encoders.checkpoints.files import SafeTensor, TensorFile, open_tensor_file
from pipeline.encoders.checkpoints.names import is_hugging_face, is_original, unwrapped
from pipeline.encoders.checkpoints.records import Inert, Named, plain, printable
from pipeline.encoders.checkpoints.tensors import StoredTensor
from pipeline.errors import WeightsError, first_few

# Settings that the configuration of an encoder states, and that of a fine-tuned model does not.
_STATED = ("encoder_layers", "extractor_mode")
_MAX_NAME = 200  # characters of a weight's name


@dataclass(frozen=True)
class Settings:
    """What a checkpoint states of its model, as plain values.

    Attributes:
        model: Settings of the model.
        task: Settings of the training task, with the normalisation and the sample rate.
        fallback: Further settings of the task, of the model before it was fine-tuned.
    """

    model: Mapping[str, Any]
    task: Mapping[str, Any]
    fallback: Mapping[str, Any]

    def task_value(self, key: str) -> Any:
        """Return a setting of the task, or of the model if the task does not state it."""
        for place in (self.task, self.fallback, self.model):
            value = place.get(key)
            if value is not None and not str(value).startswith("${"):
                return value
        return None


@dataclass(frozen=True)
class Checkpoint:
    """Weights in a file, not read yet.

    Attributes:
        file: The file.
        form: What wrote it: "fairseq", "s3prl", "distiller" or "torchaudio".
        tensors: Weights of the encoder, by the names in the file.
        settings: What it states of the model; None if it states nothing.
    """

    file: TensorFile
    form: str
    tensors: Mapping[str, StoredTensor | SafeTensor]
    settings: Settings | None

    @property
    def origin(self) -> str:
        """Words for messages: the path, and what wrote the file."""
        kind = {"fairseq": "fairseq", "s3prl": "s3prl", "distiller": "s3prl"}.get(self.form)
        return f"{self.file.path} (a checkpoint of {kind})" if kind else str(self.file.path)


def open_checkpoint(path: Path) -> Checkpoint:
    """Open a file of weights, and recognise its form. No tensor is read.

    Args:
        path: The file.

    Raises:
        WeightsError: The file cannot be read, is damaged, or holds no weights of an encoder.
    """
    file = _open_dict(path)
    try:
        return _recognise(file, file.content)
    except ValueError as error:
        raise WeightsError(f"cannot read the weights at {path}: {error}") from error


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Read a file of weights by the names that it has, whatever wrote it.

    Args:
        path: The file.

    Raises:
        WeightsError: The file cannot be read, is damaged, or holds something else than weights.
    """
    file = _open_dict(path)
    tensors = {str(name): tensor for name, tensor in file.content.items()}
    _check_tensors(file, tensors)
    return {name: file.read(tensor) for name, tensor in tensors.items()}


def _open_dict(path: Path) -> TensorFile:
    file = open_tensor_file(path)
    if not isinstance(file.content, dict):
        raise WeightsError(f"{path} {_describe(file.content)}")
    return file


def _recognise(file: TensorFile, content: dict[Any, Any]) -> Checkpoint:
    if isinstance(content.get("Distiller"), dict):
        config = plain(content.get("Config")) or {}
        model = config.get("distiller") if isinstance(config, dict) else None
        return _checkpoint(file, "distiller", content["Distiller"], _settings(model, None))
    if isinstance(content.get("model_weight"), dict):
        settings = _settings(plain(content.get("model_cfg")), plain(content.get("task_cfg")))
        return _checkpoint(file, "s3prl", content["model_weight"], settings)
    if isinstance(content.get("model"), dict):
        settings = _settings_of_fairseq(plain(content.get("cfg")))
        settings = settings or _settings_of_fairseq(plain(content.get("args")))
        return _checkpoint(file, "fairseq", content["model"], settings)
    weights = {str(name): value for name, value in content.items()}
    settings = _settings_of_fairseq(file.settings.get("cfg") or file.settings.get("config"))
    form = "fairseq" if is_original(unwrapped(weights)) else "torchaudio"
    return _checkpoint(file, form, weights, settings)


def _checkpoint(
    file: TensorFile, form: str, weights: dict[Any, Any], settings: Settings | None
) -> Checkpoint:
    tensors = unwrapped({str(name): tensor for name, tensor in weights.items()})
    tensors.pop("_ema", None)  # the teacher of data2vec, itself a dict of tensors
    _check_tensors(file, tensors)
    if is_hugging_face(tensors):
        raise WeightsError(
            f"{file.path} has the names of Hugging Face transformers; use model=hf with "
            "model.name=DIR, the folder that has it and its config.json"
        )
    return Checkpoint(file, form, tensors, settings)


def _check_tensors(file: TensorFile, tensors: Mapping[str, Any]) -> None:
    """Check that all are tensors, with names that can be shown."""
    others = [
        name for name, one in tensors.items() if not isinstance(one, StoredTensor | SafeTensor)
    ]
    strange = [name for name in tensors if not name.isprintable() or len(name) > _MAX_NAME]
    if strange:
        raise WeightsError(
            f"cannot read the weights at {file.path}: the name of a weight is {strange[0]!r:.60}"
        )
    if others or not tensors:
        shown = f"; {others[0]} {_describe(tensors[others[0]])}" if others else ""
        entries = printable(first_few(list(tensors))) or "of none"
        raise WeightsError(
            f"cannot read the weights at {file.path}: it does not hold a state dict (a mapping of "
            f"names to tensors), but the entries {entries}{shown}"
        )


def _settings_of_fairseq(root: Any) -> Settings | None:
    """Find the settings of the encoder in a configuration of fairseq or unilm.

    That of fairseq has the sections model and task, or before 2021, as that of unilm, one level. A
    fine-tuned model keeps the configuration of its encoder as `w2v_args`.
    """
    if not isinstance(root, dict):
        return None
    model: dict[str, Any] = root["model"] if isinstance(root.get("model"), dict) else root
    task: dict[str, Any] = root["task"] if isinstance(root.get("task"), dict) else root
    inner = model.get("w2v_args")
    if isinstance(inner, dict):
        found = _settings_of_fairseq(inner)
        return found and Settings(found.model, task, {**found.fallback, **found.task})
    return _settings(model, task)


def _settings(model: Any, task: Any) -> Settings | None:
    if not isinstance(model, dict) or not any(model.get(key) is not None for key in _STATED):
        return None
    return Settings(model, task if isinstance(task, dict) else {}, {})


def _describe(value: Any) -> str:
    """Describe a value that is no tensor, for a message."""
    if isinstance(value, Inert):
        return f"is an object of {printable(value.kind)}, which is not loaded"
    if isinstance(value, Named):
        return f"is a reference to {printable(value.kind)}, which is not loaded"
    return f"is a {type(value).__name__}, not a tensor"
