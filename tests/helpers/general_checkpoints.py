"""Small random checkpoints of every architecture of the general path, and their hidden states.

A checkpoint is that of the whole model, with decoder or head, as published ones are.
"""

from __future__ import annotations

import contextlib
from functools import cache

import torch

from tests.helpers.encoder_kinds import randomize

_BLOCKS = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 48,
}
_CONVOLUTIONS = {"conv_dim": [16] * 7, "num_conv_pos_embedding_groups": 8}
_SEW = {**_BLOCKS, "vocab_size": 12, "conv_dim": [16] * 13, "num_conv_pos_embedding_groups": 8}
_TEXT = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "intermediate_size": 16,
    "vocab_size": 20,
    "pad_token_id": 1,
    "bos_token_id": 1,
    "eos_token_id": 1,
}
_SEQUENCES = {
    "vocab_size": 20,
    "pad_token_id": 1,
    "bos_token_id": 1,
    "eos_token_id": 1,
    "decoder_start_token_id": 1,
}
_DECODER = {
    "d_model": 32,
    "encoder_layers": 3,
    "decoder_layers": 1,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    **_SEQUENCES,
}
_AUDIO = {
    "d_model": 32,
    "encoder_layers": 3,
    "encoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "num_mel_bins": 40,
}
_SEAMLESS = {
    "hidden_size": 32,
    "speech_encoder_layers": 3,
    "speech_encoder_attention_heads": 4,
    "speech_encoder_intermediate_size": 48,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 16,
    "decoder_ffn_dim": 16,
    "t2u_encoder_layers": 1,
    "t2u_decoder_layers": 1,
    "t2u_encoder_attention_heads": 2,
    "t2u_decoder_attention_heads": 2,
    "t2u_encoder_ffn_dim": 16,
    "t2u_decoder_ffn_dim": 16,
    "vocab_size": 20,
    "t2u_vocab_size": 20,
    "max_source_positions": 200,
}
_FAST_CONFORMER = {**_BLOCKS, "subsampling_conv_channels": 8, "num_mel_bins": 40}

# name: class of the model, options of its configuration, path of the encoder in it, feature
# extractor and its options
_ALL = {
    "whisper": (
        "WhisperForConditionalGeneration",
        {**_DECODER, "num_mel_bins": 40, "max_source_positions": 200},
        "model.encoder",
        ("WhisperFeatureExtractor", {"feature_size": 40, "chunk_length": 4}),
    ),
    "voxtral": (
        "VoxtralForConditionalGeneration",
        {
            "audio_config": {**_BLOCKS, "num_mel_bins": 40, "max_source_positions": 200},
            "text_config": {**_TEXT, "head_dim": 8},
        },
        "model.audio_tower",
        ("WhisperFeatureExtractor", {"feature_size": 40, "chunk_length": 4}),
    ),
    "qwen2_audio": (
        "Qwen2AudioForConditionalGeneration",
        {"audio_config": {**_AUDIO, "max_source_positions": 200}, "text_config": _TEXT},
        "model.audio_tower",
        ("WhisperFeatureExtractor", {"feature_size": 40, "chunk_length": 4}),
    ),
    "wav2vec2-bert": (
        "Wav2Vec2BertForCTC",
        {**_BLOCKS, "vocab_size": 12, "feature_projection_input_dim": 80},
        "wav2vec2_bert",
        ("SeamlessM4TFeatureExtractor", {"feature_size": 40, "num_mel_bins": 40}),
    ),
    "seamless_m4t": (
        "SeamlessM4TForSpeechToText",
        {**_SEAMLESS, "feature_projection_input_dim": 160},
        "speech_encoder",
        ("SeamlessM4TFeatureExtractor", {}),
    ),
    "seamless_m4t_v2": (
        "SeamlessM4Tv2ForSpeechToText",
        {**_SEAMLESS, "feature_projection_input_dim": 160, "speech_encoder_chunk_size": 20},
        "speech_encoder",
        ("SeamlessM4TFeatureExtractor", {}),
    ),
    "sew": ("SEWForCTC", _SEW, "sew", ("Wav2Vec2FeatureExtractor", {"do_normalize": True})),
    "sew-d": ("SEWDForCTC", _SEW, "sew_d", ("Wav2Vec2FeatureExtractor", {"do_normalize": False})),
    "wav2vec2-conformer": (
        "Wav2Vec2ConformerForCTC",
        # With ReLU, which the packed path does not have.
        {
            **_BLOCKS,
            **_CONVOLUTIONS,
            "vocab_size": 12,
            "feat_extract_norm": "layer",
            "hidden_act": "relu",
        },
        "wav2vec2_conformer",
        ("Wav2Vec2FeatureExtractor", {"do_normalize": True}),
    ),
    "moonshine": (
        "MoonshineForConditionalGeneration",
        {
            "hidden_size": 32,
            "intermediate_size": 48,
            "encoder_num_hidden_layers": 3,
            "decoder_num_hidden_layers": 1,
            "encoder_num_attention_heads": 4,
            "decoder_num_attention_heads": 4,
            **_SEQUENCES,
        },
        "model.encoder",
        ("Wav2Vec2FeatureExtractor", {"do_normalize": False}),
    ),
    "parakeet_ctc": (
        "ParakeetForCTC",
        {"encoder_config": _FAST_CONFORMER, "vocab_size": 12, "pad_token_id": 1},
        "encoder",
        ("ParakeetFeatureExtractor", {"feature_size": 40}),
    ),
    "lasr_ctc": (
        "LasrForCTC",
        {"encoder_config": _FAST_CONFORMER, "vocab_size": 12},
        "encoder",
        ("LasrFeatureExtractor", {"feature_size": 40}),
    ),
    "omniasr_ctc": (
        "OmniASRForCTC",
        {"audio_config": {**_BLOCKS, **_CONVOLUTIONS}, "vocab_size": 12},
        "model.audio_tower",
        ("OmniASRFeatureExtractor", {}),
    ),
    "granite_speech": (
        "GraniteSpeechForConditionalGeneration",
        {
            "encoder_config": {
                "input_dim": 160,
                "num_layers": 3,
                "hidden_dim": 32,
                "num_heads": 4,
                "dim_head": 8,
                "output_dim": 12,
                "context_size": 40,
            },
            "text_config": {"model_type": "granite", **_TEXT},
            "projector_config": {
                "model_type": "blip_2_qformer",
                "hidden_size": 16,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "intermediate_size": 16,
                "encoder_hidden_size": 32,
            },
            "has_lora_adapter": False,
        },
        "model.encoder",
        ("GraniteSpeechFeatureExtractor", {}),
    ),
    "speech_to_text": (
        "Speech2TextForConditionalGeneration",
        {**_DECODER, "input_feat_per_channel": 40, "conv_channels": 16},
        "model.encoder",
        ("Speech2TextFeatureExtractor", {"feature_size": 40, "num_mel_bins": 40}),
    ),
}


@cache
def _transformers():
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    return transformers


CHECKPOINTS = {name: entry for name, entry in _ALL.items() if hasattr(_transformers(), entry[0])}
"""Those that the installed version of transformers has."""


def read_config(name, **changes):
    """Return the configuration of the whole model."""
    model_class, options, _, _ = CHECKPOINTS[name]
    return getattr(_transformers(), model_class).config_class(**options | changes)


def build(name, **changes):
    """Build the whole model with random weights that are nowhere the initial ones."""
    model_type = getattr(_transformers(), CHECKPOINTS[name][0])
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return randomize(model_type(read_config(name, **changes)).eval())


def extractor_of(name):
    """Return transformers' feature extractor."""
    extractor_class, options = CHECKPOINTS[name][3]
    return getattr(_transformers(), extractor_class)(**options)


def save_settings(name, folder):
    """Save a checkpoint without weights."""
    read_config(name).save_pretrained(folder)
    extractor_of(name).save_pretrained(folder)


def save(name, folder, **changes):
    """Save a checkpoint and return its encoder, a module of transformers."""
    model = build(name, **changes)
    model.save_pretrained(folder)
    extractor_of(name).save_pretrained(folder)
    return model.get_submodule(CHECKPOINTS[name][2])


def inputs_of(name, extractor, waveform):
    """Return what transformers gives its encoder for one clip."""
    if name == "granite_speech":
        features = extractor(waveform[None])["input_features"]
        return {"hidden_states": features}
    if name == "omniasr_ctc":
        found = extractor([waveform.numpy()], sampling_rate=16_000)
        return {"input_values": found["input_values"], "padding_mask": found["padding_mask"]}
    options = {"return_attention_mask": True} if name == "qwen2_audio" else {}
    found = dict(extractor(waveform.numpy(), sampling_rate=16_000, return_tensors="pt", **options))
    if name == "qwen2_audio":
        mask = found.pop("attention_mask")[:, ::2].bool()
        found["attention_mask"] = mask[:, None, None].expand(-1, 1, mask.shape[1], -1)
    return found


def hidden_states(name, encoder, waveform):
    """Run transformers on one clip: layers 0 to N, and the last one after the final norm, if any.

    The hooks are this function's own: the input of the first block and the outputs of all blocks.
    """
    blocks = next(
        module
        for key, module in encoder.named_modules()
        if key in ("layers", "encoder.layers", "encoder.encoder.layer")
    )
    states = []

    def before(module, args, kwargs):
        states.append((args[0] if args else kwargs["hidden_states"]).clone())

    def after(module, args, output):
        states.append((output[0] if isinstance(output, tuple) else output).clone())

    handles = [blocks[0].register_forward_pre_hook(before, with_kwargs=True)]
    handles += [block.register_forward_hook(after) for block in blocks]
    with contextlib.ExitStack() as stack, torch.inference_mode():
        for handle in handles:
            stack.callback(handle.remove)
        output = encoder(**inputs_of(name, extractor_of(name), waveform))
        normed = output.last_hidden_state
        if name.startswith("seamless"):  # more follows the norm
            normed = encoder.encoder.layer_norm(states[-1])
    return torch.stack(states)[:, 0], normed[0]
