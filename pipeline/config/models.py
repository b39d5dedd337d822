"""Encoders that are no option of conf/model: those that a program registers, and code of a user."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.config.hints import option_hint
from pipeline.config.schema import ModelConfig
from pipeline.errors import ConfigError

OWN_CODE = "module"
"""Option of the group `model`, and value of `model.source`, for code of the user."""
_GROUP = "model="
_CHECKPOINTS = (".pt", ".pth", ".ckpt")
FAMILIES = {
    "data2vec_audio": "facebook/data2vec-audio-base",
    "distilhubert": "ntu-spml/distilhubert",
    "granite_speech": "ibm-granite/granite-speech-3.3-2b",
    "hubert": "facebook/hubert-base-ls960",
    "lasr_ctc": "google/medasr",
    "lasr_encoder": "google/medasr",
    "mhubert": "utter-project/mHuBERT-147",
    "moonshine": "UsefulSensors/moonshine-base",
    "omniasr": "hf-audio/omniasr-ctc-300m-v2",
    "omniasr_ctc": "hf-audio/omniasr-ctc-300m-v2",
    "parakeet": "nvidia/parakeet-ctc-0.6b",
    "parakeet_ctc": "nvidia/parakeet-ctc-0.6b",
    "parakeet_encoder": "nvidia/parakeet-ctc-0.6b",
    "parakeet_rnnt": "nvidia/parakeet-ctc-0.6b",
    "parakeet_tdt": "nvidia/parakeet-tdt-0.6b-v3",
    "qwen2_audio": "Qwen/Qwen2-Audio-7B",
    "seamless_m4t": "facebook/hf-seamless-m4t-medium",
    "seamless_m4t_v2": "facebook/seamless-m4t-v2-large",
    "sew": "asapp/sew-tiny-100k",
    "sew_d": "asapp/sew-d-tiny-100k",
    "speech_to_text": "facebook/s2t-small-librispeech-asr",
    "unispeech": "microsoft/unispeech-large-1500h-cv",
    "unispeech_sat": "microsoft/unispeech-sat-base",
    "voxtral": "mistralai/Voxtral-Mini-3B-2507",
    "w2v_bert": "facebook/w2v-bert-2.0",
    "wav2vec2": "facebook/wav2vec2-base",
    "wav2vec2_bert": "facebook/w2v-bert-2.0",
    "wav2vec2_conformer": "facebook/wav2vec2-conformer-rel-pos-large",
    "wavlm": "microsoft/wavlm-base",
    "whisper": "openai/whisper-base",
}
"""Names of families of models, with underscores, and a checkpoint of each, for messages."""
_REGISTERED: dict[str, Mapping[str, str]] = {}


def register_model(name: str, settings: Mapping[str, str]) -> None:
    """Let `model=NAME` stand for settings of the option `module`, in this process.

    Args:
        name: Name of the encoder.
        settings: Settings `model.*` without that prefix, as texts.
    """
    _REGISTERED[name] = dict(settings)


def is_registered_model(name: str) -> bool:
    """Whether `model=NAME` stands for an encoder that this process has registered."""
    return name in _REGISTERED


def is_own_code(settings: Mapping[str, Any]) -> bool:
    """Whether settings of a model, without the prefix `model.`, are those of code of the user."""
    return settings.get("source") == OWN_CODE or settings.get("target") is not None


def source_of(name: str, short_names: Container[str]) -> str:
    """Return the value of `model.source` that a name stands for, if none is given.

    Args:
        name: Name of a registered encoder, a short name, the path of a file or a directory, or a
            hub id.
        short_names: Models with a short name.
    """
    if is_registered_model(name):
        return OWN_CODE
    if name in short_names:
        return "torchaudio"
    if name.endswith(_CHECKPOINTS):
        return "checkpoint"
    return "huggingface" if "/" in name or Path(name).expanduser().is_dir() else "torchaudio"


def expand_models(overrides: Sequence[str]) -> list[str]:
    """Return overrides in which a registered name is written out as its settings."""
    expanded: list[str] = []
    for override in overrides:
        settings = _REGISTERED.get(override.removeprefix(_GROUP))
        if not override.startswith(_GROUP) or settings is None:
            expanded.append(override)
            continue
        expanded += [f"{_GROUP}{OWN_CODE}", *(f"model.{k}={v}" for k, v in settings.items())]
    return expanded


def model_hint(value: str, options: Sequence[str]) -> str:
    """Return a hint at the model that a value of `model=` means, and at how others are named."""
    if value.endswith(_CHECKPOINTS):
        return (
            f"; a file of fairseq, unilm or s3prl is model=checkpoint model.name={value}, a state "
            f"dict of a model with a short name model=NAME model.weights={value}"
        )
    if "/" in value:
        return (
            f"; a hub id or a folder of a checkpoint is model=hf model.name={value}. `strata "
            "models` lists the models with a short name"
        )
    name = value.lower().replace("-", "_")
    near = option_hint("model", name, [*options, *_REGISTERED])
    near = near if "did you mean" in near else ""
    family = name if name in FAMILIES else _family_of(name)
    has_short_names = any(option.startswith(f"{family}_") for option in options)
    if family is not None and (name == family or not has_short_names):
        return (
            f"{near if has_short_names else ';'} {family} is a family of models, and one of them "
            f"is named by its id or folder: model=hf model.name={FAMILIES[family]}. All are in "
            "docs/models.md"
        )
    return (
        f"{near or '; `strata models` lists all.'} A checkpoint of Hugging Face is model=hf "
        "model.name=ID_OR_DIR (docs/models.md), any other torch module model=module: "
        "docs/add_an_encoder.md"
    )


def _family_of(name: str) -> str | None:
    """Return the family with the longest name that a name begins with."""
    found = [family for family in FAMILIES if name.startswith(f"{family}_")]
    return max(found, key=len, default=None)


def code_problem(target: str) -> str:
    """Return why the code that `model.target` names is not run, and what to do, as a message."""
    return (
        f"model.target={target} imports {target.partition(':')[0]} and calls its code, which needs "
        "your permission: add --allow-code if you trust it (in Python allow_code=True, or "
        "pipeline.register_encoder)"
    )


def check_code(model: ModelConfig, allow_code: bool) -> None:
    """Check that a model runs no code of its own, or that the user has allowed it.

    Raises:
        ConfigError: It names code, and the user has not.
    """
    if model.target is not None and not allow_code:
        raise ConfigError(code_problem(model.target))
