"""Table of the architectures of the general path, by the `model_type` of config.json."""

from __future__ import annotations

from typing import Any

from pipeline.encoders.general import parts
from pipeline.encoders.general.kinds import (
    Kind,
    attended_window,
    one_channel,
    only_states,
    whole_window,
)

_CONVOLUTIONS = (
    *("conv_dim", "conv_kernel", "conv_stride", "conv_bias", "feat_extract_norm"),
    *("feat_extract_activation", "num_conv_pos_embeddings", "num_conv_pos_embedding_groups"),
)
_BLOCKS = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
_WAVEFORM_OPTIONS = (*_BLOCKS, *_CONVOLUTIONS, "hidden_act", "layer_norm_eps")
_FAST_CONFORMER = (*_BLOCKS, "hidden_act", "attention_bias", "convolution_bias", "conv_kernel_size")
_ENCODER_BLOCKS = (
    *("d_model", "encoder_layers", "encoder_attention_heads", "encoder_ffn_dim"),
    "activation_function",
)
_POSITIONS = (
    *("position_embeddings_type", "rotary_embedding_base", "max_source_positions"),
    *("left_max_position_embeddings", "right_max_position_embeddings"),
)
_CONFORMER = (*_POSITIONS, "conv_depthwise_kernel_size", "layer_norm_eps")
_WAVEFORM_EXTRACTOR = "Wav2Vec2FeatureExtractor"


def _whisper_kind(package: str, encoder_class: str, **others: Any) -> Kind:
    settings: dict[str, Any] = {
        "prefix": r"^(model\.)?audio_tower\.",
        "inner": "audio_config",
        "n_layers": "encoder_layers",
        "dim": "d_model",
        "options": (*_ENCODER_BLOCKS, "num_mel_bins", "max_source_positions"),
        "arguments": whole_window,
    }
    return Kind(
        package,
        encoder_class,
        "WhisperFeatureExtractor",
        blocks="layers",
        parts=parts.whisper,
        can_pad=False,
        **settings | others,
    )


def _seamless_kind(package: str, encoder_class: str, *more_options: str) -> Kind:
    return Kind(
        package,
        encoder_class,
        "SeamlessM4TFeatureExtractor",
        prefix=r"^speech_encoder\.",
        blocks="encoder.layers",
        parts=parts.seamless,
        options=(
            *("hidden_size", "speech_encoder_layers", "speech_encoder_attention_heads"),
            *("speech_encoder_intermediate_size", "speech_encoder_hidden_act"),
            *("feature_projection_input_dim", *_CONFORMER, *more_options),
        ),
        n_layers="speech_encoder_layers",
        final_norm="encoder.layer_norm",
    )


def _waveform_kind(package: str, encoder_class: str, prefix: str, **others: Any) -> Kind:
    settings: dict[str, Any] = {
        "extractor_class": _WAVEFORM_EXTRACTOR,
        "blocks": "encoder.layers",
        "parts": parts.waveforms,
        "options": _WAVEFORM_OPTIONS,
    }
    return Kind(package, encoder_class, prefix=rf"^{prefix}\.", **settings | others)


def _wav2vec2_kind(package: str, encoder_class: str, prefix: str, file: str | None = None) -> Kind:
    """Return a kind for options that the packed encoder does not compute."""
    options = (
        *("do_stable_layer_norm", "adapter_attn_dim", "feat_proj_layer_norm"),
        *("conv_pos_batch_norm", "conv_pos_kernel_size", "num_buckets", "max_bucket_distance"),
    )
    return _waveform_kind(
        package,
        encoder_class,
        prefix,
        options=(*_WAVEFORM_OPTIONS, *options),
        final_norm="encoder.layer_norm",
        norm_if="do_stable_layer_norm",
        file=file,
    )


_PARAKEET = Kind(
    "parakeet",
    "ParakeetEncoder",
    "ParakeetFeatureExtractor",
    prefix=r"^encoder\.",
    blocks="layers",
    parts=parts.parakeet,
    options=(
        *_FAST_CONFORMER,
        *("subsampling_factor", "subsampling_conv_channels", "subsampling_conv_kernel_size"),
        *("subsampling_conv_stride", "num_mel_bins", "scale_input"),
    ),
    inner="encoder_config",
)
_LASR = Kind(
    "lasr",
    "LasrEncoder",
    "LasrFeatureExtractor",
    prefix=r"^encoder\.",
    blocks="layers",
    parts=parts.lasr,
    options=(
        *_FAST_CONFORMER,
        *("subsampling_conv_channels", "subsampling_conv_kernel_size", "subsampling_conv_stride"),
        *("num_mel_bins", "layer_norm_eps", "feed_forward_residual_weights"),
        *("conv_residual_weights", "rope_parameters"),
    ),
    inner="encoder_config",
    final_norm="out_norm",
)
_OMNIASR = _waveform_kind(
    "omniasr",
    "OmniASRAudioModel",
    r"(model\.)?audio_tower",
    extractor_class="OmniASRFeatureExtractor",
    blocks="layers",
    arguments=one_channel,
    parts=parts.omniasr,
    inner="audio_config",
    final_norm="layer_norm",
)

KINDS: dict[str, Kind] = {
    "wav2vec2": _wav2vec2_kind("wav2vec2", "Wav2Vec2Model", "wav2vec2"),
    "hubert": _wav2vec2_kind("hubert", "HubertModel", "hubert"),
    "wavlm": _wav2vec2_kind("wavlm", "WavLMModel", "wavlm"),
    "unispeech": _wav2vec2_kind("unispeech", "UniSpeechModel", "unispeech"),
    "unispeech-sat": _wav2vec2_kind("unispeech_sat", "UniSpeechSatModel", "unispeech_sat"),
    "data2vec-audio": _wav2vec2_kind(
        "data2vec", "Data2VecAudioModel", "data2vec_audio", "data2vec_audio"
    ),
    "whisper": _whisper_kind(
        "whisper",
        "WhisperEncoder",
        prefix=r"^(model\.)?encoder\.",
        inner=None,
        final_norm="layer_norm",
    ),
    "voxtral": _whisper_kind(
        "voxtral",
        "VoxtralEncoder",
        n_layers="num_hidden_layers",
        dim="hidden_size",
        options=(*_BLOCKS, "activation_function", "num_mel_bins", "max_source_positions"),
        final_norm="layer_norm",
    ),
    "qwen2_audio": _whisper_kind("qwen2_audio", "Qwen2AudioEncoder", arguments=attended_window),
    "wav2vec2-bert": Kind(
        "wav2vec2_bert",
        "Wav2Vec2BertModel",
        "SeamlessM4TFeatureExtractor",
        prefix=r"^wav2vec2_bert\.",
        blocks="encoder.layers",
        parts=parts.seamless,
        options=(*_BLOCKS, "hidden_act", "feature_projection_input_dim", *_CONFORMER),
    ),
    "seamless_m4t": _seamless_kind("seamless_m4t", "SeamlessM4TSpeechEncoder"),
    "seamless_m4t_v2": _seamless_kind(
        "seamless_m4t_v2",
        "SeamlessM4Tv2SpeechEncoder",
        "speech_encoder_chunk_size",
        "speech_encoder_left_chunk_num",
    ),
    "sew": _waveform_kind(
        "sew",
        "SEWModel",
        "sew",
        parts=parts.squeezed_waveforms,
        options=(*_WAVEFORM_OPTIONS, "squeeze_factor"),
    ),
    "sew-d": _waveform_kind(
        "sew_d",
        "SEWDModel",
        "sew_d",
        blocks="encoder.encoder.layer",
        parts=parts.squeezed_waveforms,
        options=(
            *(*_WAVEFORM_OPTIONS, "squeeze_factor"),
            *("feature_layer_norm_eps", "max_position_embeddings", "position_buckets"),
            *("share_att_key", "relative_attention", "pos_att_type", "norm_rel_ebd"),
        ),
    ),
    "wav2vec2-conformer": _waveform_kind(
        "wav2vec2_conformer",
        "Wav2Vec2ConformerModel",
        "wav2vec2_conformer",
        options=(*_BLOCKS, *_CONVOLUTIONS, "hidden_act", *_CONFORMER),
        final_norm="encoder.layer_norm",
    ),
    "moonshine": Kind(
        "moonshine",
        "MoonshineEncoder",
        _WAVEFORM_EXTRACTOR,
        prefix=r"^(model\.)?encoder\.",
        blocks="layers",
        parts=parts.moonshine,
        options=(
            *("hidden_size", "intermediate_size", "encoder_num_hidden_layers"),
            *("encoder_num_attention_heads", "encoder_num_key_value_heads", "encoder_hidden_act"),
            *("pad_head_dim_to_multiple_of", "rope_parameters", "attention_bias"),
        ),
        n_layers="encoder_num_hidden_layers",
        final_norm="layer_norm",
    ),
    "parakeet_encoder": _PARAKEET,
    "parakeet_ctc": _PARAKEET,
    "parakeet_tdt": _PARAKEET,
    "parakeet_rnnt": _PARAKEET,
    "lasr_encoder": _LASR,
    "lasr_ctc": _LASR,
    "omniasr": _OMNIASR,
    "omniasr_ctc": _OMNIASR,
    "granite_speech": Kind(
        "granite_speech",
        "GraniteSpeechCTCEncoder",
        "GraniteSpeechFeatureExtractor",
        prefix=r"^(model\.)?encoder\.",
        blocks="layers",
        parts=parts.granite,
        options=(
            *("input_dim", "num_layers", "hidden_dim", "feedforward_mult", "num_heads"),
            *("dim_head", "output_dim", "context_size", "max_pos_emb", "conv_kernel_size"),
            "conv_expansion_factor",
        ),
        arguments=only_states,
        can_pad=False,
        inner="encoder_config",
        n_layers="num_layers",
        dim="hidden_dim",
    ),
    "speech_to_text": Kind(
        "speech_to_text",
        "Speech2TextEncoder",
        "Speech2TextFeatureExtractor",
        prefix=r"^(model\.)?encoder\.",
        blocks="layers",
        parts=parts.speech_to_text,
        options=(
            *(*_ENCODER_BLOCKS, "scale_embedding", "conv_kernel_sizes", "conv_channels"),
            *("input_feat_per_channel", "input_channels", "pad_token_id"),
        ),
        n_layers="encoder_layers",
        dim="d_model",
        final_norm="layer_norm",
    ),
}
"""Architectures by the `model_type` of config.json."""
