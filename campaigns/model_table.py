"""Print the tables of docs/models.md: published models, as Strata describes them without weights.

    python -m campaigns.model_table

A row is described from the configuration of the published checkpoint: layers, size of a vector,
frames a second, hop and receptive field in samples, whether there is a layer `final_norm`, and the
gigabytes of an hour of audio at float16 with all layers. The error is that of docs/encoder.md
against transformers, measured at this size; "small" is a size that was not measured: the tests
compare the architecture at small widths, within the bound of its path.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import transformers

from benchmarks.published_models import Published
from pipeline.config import ModelConfig
from pipeline.encoders.base import EncoderDescription
from pipeline.encoders.registry import find_family
from pipeline.encoders.wav2vec2.bundles import registry
from pipeline.encoders.wav2vec2.conversion.configs import misfit

ENCODER_PAGE = Path(__file__).parents[1] / "docs" / "encoder.md"
_COLUMNS = "layers × dim | frames/s | hop, field | final norm | GB/h"
_BYTES_PER_VALUE = 2  # float16


@dataclass(frozen=True)
class Row:
    """Checkpoints of one architecture and size.

    Attributes:
        ids: Their ids on the hub.
        model: Configuration and feature extractor.
        measured: Name of this size in the tables of errors; None if it was not measured.
    """

    ids: tuple[str, ...]
    model: Published
    measured: str | None = None


def _row(ids: str, *model: Any, measured: str | None = None, **settings: Any) -> Row:
    return Row(tuple(ids.split()), Published(*model, settings=settings), measured)


def _size(layers: int, dim: int, heads: int = 16) -> dict[str, Any]:
    return {
        "num_hidden_layers": layers,
        "hidden_size": dim,
        "num_attention_heads": heads,
        "intermediate_size": 4 * dim,
    }


def _whisper(layers: int, dim: int, mels: int = 80) -> dict[str, Any]:
    return {
        "encoder_layers": layers,
        "d_model": dim,
        "encoder_attention_heads": dim // 64,
        "encoder_ffn_dim": 4 * dim,
        "num_mel_bins": mels,
    }


def _parakeet(layers: int, mels: int = 80) -> dict[str, Any]:
    return {"encoder_config": {"num_hidden_layers": layers, "num_mel_bins": mels}}


_PRE_NORM = {"feat_extract_norm": "layer", "conv_bias": True, "do_stable_layer_norm": True}
_LARGE = _size(24, 1024) | _PRE_NORM
_CONFORMER = _size(24, 1024) | {"feat_extract_norm": "layer", "conv_bias": True}
_CONFORMER |= {"hidden_act": "swish"}
_LOG_MEL, _FILTER_BANK = "WhisperFeatureExtractor", "SeamlessM4TFeatureExtractor"


PACKED = [
    _row(
        "facebook/wav2vec2-base facebook/wav2vec2-base-960h",
        "Wav2Vec2Config",
        measured="wav2vec2_base",
    ),
    _row(
        "facebook/wav2vec2-large-lv60 facebook/wav2vec2-large-960h-lv60-self",
        "Wav2Vec2Config",
        _LARGE,
        measured="wav2vec2_large_lv60k",
    ),
    _row(
        "facebook/wav2vec2-xls-r-300m facebook/mms-300m",
        "Wav2Vec2Config",
        _LARGE,
        measured="wav2vec2_large_lv60k",
    ),
    _row(
        "facebook/wav2vec2-xls-r-1b facebook/mms-1b", "Wav2Vec2Config", _size(48, 1280) | _PRE_NORM
    ),
    _row("facebook/wav2vec2-xls-r-2b", "Wav2Vec2Config", _size(48, 1920) | _PRE_NORM),
    _row(
        "facebook/mms-1b-all facebook/mms-1b-fl102",
        "Wav2Vec2Config",
        _size(48, 1280) | _PRE_NORM | {"adapter_attn_dim": 16},
    ),
    _row(
        "facebook/hubert-base-ls960 TencentGameMate/chinese-hubert-base "
        "lengyue233/content-vec-best utter-project/mHuBERT-147",
        "HubertConfig",
        measured="hubert_base",
    ),
    _row(
        "facebook/hubert-large-ll60k TencentGameMate/chinese-hubert-large",
        "HubertConfig",
        _LARGE,
        measured="hubert_large",
    ),
    _row("facebook/hubert-xlarge-ll60k", "HubertConfig", _size(48, 1280) | _PRE_NORM),
    _row(
        "ntu-spml/distilhubert",
        "HubertConfig",
        {"num_hidden_layers": 2, "feat_proj_layer_norm": False},
        measured="DistilHuBERT",
    ),
    _row(
        "microsoft/wavlm-base microsoft/wavlm-base-plus", "WavLMConfig", measured="wavlm_base_plus"
    ),
    _row(
        "microsoft/wavlm-large",
        "WavLMConfig",
        _LARGE | {"conv_bias": False},
        measured="wavlm_large",
    ),
    _row("microsoft/unispeech-large-1500h-cv", "UniSpeechConfig", _LARGE),
    _row(
        "microsoft/unispeech-sat-base microsoft/unispeech-sat-base-plus",
        "UniSpeechSatConfig",
        measured="UniSpeech-SAT base",
    ),
    _row("microsoft/unispeech-sat-large", "UniSpeechSatConfig", _LARGE | {"conv_bias": False}),
    _row("facebook/data2vec-audio-base", "Data2VecAudioConfig", measured="data2vec-audio base"),
    _row("facebook/data2vec-audio-large", "Data2VecAudioConfig", _size(24, 1024)),
    _row("facebook/wav2vec2-conformer-rel-pos-large", "Wav2Vec2ConformerConfig", _CONFORMER),
    _row(
        "facebook/wav2vec2-conformer-rope-large",
        "Wav2Vec2ConformerConfig",
        _CONFORMER | {"position_embeddings_type": "rotary"},
    ),
]
"""Checkpoints of the packed path."""
GENERAL = [
    _row("openai/whisper-tiny", "WhisperConfig", _whisper(4, 384), _LOG_MEL),
    _row(
        "openai/whisper-base", "WhisperConfig", _whisper(6, 512), _LOG_MEL, measured="whisper-base"
    ),
    _row(
        "openai/whisper-small distil-whisper/distil-small.en",
        "WhisperConfig",
        _whisper(12, 768),
        _LOG_MEL,
        measured="whisper-small",
    ),
    _row("openai/whisper-medium", "WhisperConfig", _whisper(24, 1024), _LOG_MEL),
    _row("openai/whisper-large-v2", "WhisperConfig", _whisper(32, 1280), _LOG_MEL),
    _row(
        "openai/whisper-large-v3 openai/whisper-large-v3-turbo distil-whisper/distil-large-v3",
        "WhisperConfig",
        _whisper(32, 1280, 128),
        _LOG_MEL,
        feature_size=128,
    ),
    _row("mistralai/Voxtral-Mini-3B-2507", "VoxtralConfig", {}, _LOG_MEL, feature_size=128),
    _row("Qwen/Qwen2-Audio-7B", "Qwen2AudioConfig", {}, _LOG_MEL, feature_size=128),
    _row(
        "facebook/w2v-bert-2.0",
        "Wav2Vec2BertConfig",
        _size(24, 1024),
        _FILTER_BANK,
        measured="w2v-bert-2.0",
    ),
    _row(
        "facebook/hf-seamless-m4t-medium",
        "SeamlessM4TConfig",
        {"speech_encoder_layers": 12},
        _FILTER_BANK,
    ),
    _row("facebook/hf-seamless-m4t-large", "SeamlessM4TConfig", {}, _FILTER_BANK),
    _row(
        "facebook/seamless-m4t-v2-large",
        "SeamlessM4Tv2Config",
        {},
        _FILTER_BANK,
        measured="seamless-m4t-v2-large",
    ),
    _row("asapp/sew-tiny-100k", "SEWConfig", _size(12, 512, 8), measured="sew-tiny"),
    _row("asapp/sew-mid-100k", "SEWConfig", _size(24, 768, 12)),
    _row("asapp/sew-d-tiny-100k", "SEWDConfig", _size(12, 384, 6), measured="sew-d-tiny"),
    _row("asapp/sew-d-small-100k", "SEWDConfig", _size(12, 512, 8)),
    _row("asapp/sew-d-mid-400k", "SEWDConfig", _size(24, 512, 8)),
    _row(
        "UsefulSensors/moonshine-tiny",
        "MoonshineConfig",
        {"hidden_size": 288, "intermediate_size": 1152, "encoder_num_hidden_layers": 6},
    ),
    _row(
        "UsefulSensors/moonshine-base",
        "MoonshineConfig",
        {"hidden_size": 416, "intermediate_size": 1664, "encoder_num_hidden_layers": 8},
        measured="moonshine-base",
    ),
    _row(
        "nvidia/parakeet-ctc-0.6b",
        "ParakeetCTCConfig",
        _parakeet(24),
        "ParakeetFeatureExtractor",
        measured="parakeet-ctc-0.6b",
    ),
    _row(
        "nvidia/parakeet-ctc-1.1b", "ParakeetCTCConfig", _parakeet(42), "ParakeetFeatureExtractor"
    ),
    _row(
        "nvidia/parakeet-tdt-0.6b-v3",
        "ParakeetTDTConfig",
        _parakeet(24, 128),
        "ParakeetFeatureExtractor",
        feature_size=128,
    ),
    _row("google/medasr", "LasrCTCConfig", {}, "LasrFeatureExtractor", measured="medasr"),
    _row("hf-audio/omniasr-ctc-300m-v2", "OmniASRCTCConfig", {}, "OmniASRFeatureExtractor"),
    _row(
        "ibm-granite/granite-speech-3.3-2b",
        "GraniteSpeechConfig",
        {"encoder_config": {"num_layers": 16, "hidden_dim": 1024}},
        "GraniteSpeechFeatureExtractor",
    ),
    _row(
        "facebook/s2t-small-librispeech-asr",
        "Speech2TextConfig",
        {},
        "Speech2TextFeatureExtractor",
        measured="s2t-small-librispeech",
    ),
]
"""Checkpoints of the general path."""


def config_of(row: Row) -> Any:
    """Return the configuration of a row, an object of transformers."""
    return getattr(transformers, row.model.config)(**row.model.options)


def describe(row: Row) -> tuple[EncoderDescription, str]:
    """Describe a row without weights, and return its path: packed or general."""
    with tempfile.TemporaryDirectory() as folder:
        row.model.save(folder)
        model = ModelConfig(source="huggingface", name=folder, weights="random")
        description = find_family("huggingface").describe(model)
    return description, "packed" if misfit(config_of(row)) is None else "general"


def cells(description: EncoderDescription) -> list[str]:
    """Return what follows from a description."""
    geometry = description.geometry
    values = description.n_layers * description.dim
    gigabytes = values * _BYTES_PER_VALUE * geometry.frame_rate_hz * 3600 / 1e9
    window = description.window_limit_s
    return [
        f"{description.n_layers} × {description.dim}",
        f"{geometry.frame_rate_hz:g}"
        if geometry.frame_rate_hz % 1 == 0
        else f"{geometry.frame_rate_hz:.1f}",
        f"{geometry.hop_samples:,}, {geometry.receptive_field_samples:,}"
        + (f"; windows of {window:g} s" if window else ""),
        "yes" if description.n_layers + 1 in description.names else "no",
        f"{gigabytes:.2f}",
    ]


def measured_errors(page: Path = ENCODER_PAGE) -> dict[str, str]:
    """Read the errors against transformers of docs/encoder.md, by the name of the model."""
    errors, column = {}, None
    for line in page.read_text().splitlines():
        if not line.startswith("|"):
            column = None
            continue
        row = [cell.strip() for cell in line.strip("|").split("|")]
        if "ours vs transformers" in row:
            column = row.index("ours vs transformers")
        elif column is not None and re.fullmatch(r"\d\.?\d*(e-\d+)?", row[column]):
            errors[row[0]] = row[column]
    return errors


def table(rows: list[Row], path: str) -> Iterator[str]:
    """Return the lines of the table of one path.

    Raises:
        ValueError: A model runs on the other path, or its error is not in docs/encoder.md.
    """
    errors = measured_errors()
    yield f"| `model=hf model.name=…` | {_COLUMNS} | error |"
    yield "|---|---|---|---|---|---|---|"
    for row in rows:
        description, found = describe(row)
        if found != path:
            raise ValueError(f"{row.ids[0]} runs on the {found} path, not on the {path} one")
        error = "small" if row.measured is None else errors.get(row.measured)
        if error is None:
            raise ValueError(f"docs/encoder.md has no error of {row.measured}")
        ids = "<br>".join(f"`{name}`" for name in row.ids)
        yield f"| {ids} | {' | '.join([*cells(description), error])} |"


def short_names() -> Iterator[str]:
    """Return the lines of the table of models with a short name, one line a size."""
    yield f"| `model=…` | {_COLUMNS} |"
    yield "|---|---|---|---|---|---|"
    by_size: dict[tuple[str, ...], list[str]] = {}
    for name, spec in registry().items():
        by_size.setdefault(tuple(cells(spec.describe())), []).append(name)
    for size, names in by_size.items():
        yield f"| {', '.join(f'`{name}`' for name in names)} | {' | '.join(size)} |"


def tables() -> list[str]:
    """Return the three tables of docs/models.md."""
    every = (short_names(), table(PACKED, "packed"), table(GENERAL, "general"))
    return ["\n".join(lines) for lines in every]


if __name__ == "__main__":
    print("\n\n".join(tables()))
