"""Architectures of published checkpoints in Hugging Face form, without their weights.

`bench_models.py` measures them, and `campaigns/general_table.py` compares their features with those
of transformers.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import transformers

transformers.utils.logging.disable_progress_bar()
_LARGE = {
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "intermediate_size": 4096,
}
_PRE_NORM = {"feat_extract_norm": "layer", "conv_bias": True, "do_stable_layer_norm": True}


@dataclass(frozen=True)
class Published:
    """Architecture of a published checkpoint.

    Attributes:
        config: Class of its configuration in transformers.
        options: Entries of the configuration that are not transformers' defaults.
        extractor: Class of its feature extractor.
        settings: Settings of the feature extractor that are not defaults.
    """

    config: str
    options: dict[str, Any] = field(default_factory=dict)
    extractor: str = "Wav2Vec2FeatureExtractor"
    settings: dict[str, Any] = field(default_factory=dict)

    def save(self, folder: str | Path) -> Any:
        """Save configuration and feature extractor; return the extractor."""
        getattr(transformers, self.config)(**self.options).save_pretrained(folder)
        extractor = getattr(transformers, self.extractor)(**self.settings)
        extractor.save_pretrained(folder)
        return extractor


PACKED = {
    "hubert-base-ls960": Published("HubertConfig", settings={"do_normalize": False}),
    "wav2vec2-large-lv60": Published("Wav2Vec2Config", {**_LARGE, **_PRE_NORM}),
    "wavlm-base-plus": Published("WavLMConfig", settings={"do_normalize": False}),
    "unispeech-sat-base": Published("UniSpeechSatConfig", settings={"do_normalize": False}),
    "data2vec-audio-base": Published("Data2VecAudioConfig"),
    "wav2vec2-conformer-rel-pos-large": Published(
        "Wav2Vec2ConformerConfig",
        {**_LARGE, "feat_extract_norm": "layer", "conv_bias": True, "hidden_act": "swish"},
    ),
}
"""Models of the packed path."""
GENERAL = {
    "whisper-base": Published(
        "WhisperConfig",
        {
            "d_model": 512,
            "encoder_layers": 6,
            "encoder_attention_heads": 8,
            "encoder_ffn_dim": 2048,
        },
        "WhisperFeatureExtractor",
    ),
    "whisper-small": Published(
        "WhisperConfig",
        {
            "d_model": 768,
            "encoder_layers": 12,
            "encoder_attention_heads": 12,
            "encoder_ffn_dim": 3072,
        },
        "WhisperFeatureExtractor",
    ),
    "moonshine-base": Published(
        "MoonshineConfig",
        {
            "hidden_size": 416,
            "intermediate_size": 1664,
            "encoder_num_hidden_layers": 8,
            "encoder_num_attention_heads": 8,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10000.0,
                "partial_rotary_factor": 0.62,
            },
        },
        settings={"do_normalize": False},
    ),
    "sew-tiny": Published(
        "SEWConfig",
        {"hidden_size": 512, "num_attention_heads": 8, "intermediate_size": 2048},
        settings={"do_normalize": False},
    ),
    "sew-d-tiny": Published(
        "SEWDConfig",
        {"hidden_size": 384, "num_attention_heads": 6, "intermediate_size": 1536},
        settings={"do_normalize": False},
    ),
    "s2t-small-librispeech": Published(
        "Speech2TextConfig", extractor="Speech2TextFeatureExtractor"
    ),
    "medasr": Published("LasrEncoderConfig", extractor="LasrFeatureExtractor"),
    "w2v-bert-2.0": Published("Wav2Vec2BertConfig", extractor="SeamlessM4TFeatureExtractor"),
    "parakeet-ctc-0.6b": Published("ParakeetEncoderConfig", extractor="ParakeetFeatureExtractor"),
    "seamless-m4t-v2-large": Published(
        "SeamlessM4Tv2Config", extractor="SeamlessM4TFeatureExtractor"
    ),
}
"""Models of the general path."""
