"""Names of weights: those of fairseq, unilm and s3prl, in torchaudio's words.

All three name the weights alike, since unilm and s3prl started from fairseq's code. What only
training or a decoder uses is dropped by an explicit list; any other name is an error.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TypeVar

T = TypeVar("T")

# What a fine-tuned model puts before the names of the encoder, e.g. "w2v_encoder.w2v_model.".
_WRAPPED = re.compile(r"^(?:[a-z0-9_]+\.)*w2v_model\.")
# Of some HuBERTs: the positional convolution after a batch norm, both in one sequence.
_NORMED = "encoder.pos_conv."
_NORMED_PARTS = {
    "0.weight": "batch_norm.weight",
    "0.bias": "batch_norm.bias",
    "0.running_mean": "batch_norm.running_mean",
    "0.running_var": "batch_norm.running_var",
    "1.weight": "conv.weight",
    "1.bias": "conv.bias",
}
_PARTS = {
    "self_attn.q_proj": "attention.q_proj",
    "self_attn.k_proj": "attention.k_proj",
    "self_attn.v_proj": "attention.v_proj",
    "self_attn.out_proj": "attention.out_proj",
    "self_attn.grep_linear": "attention.gru_rel_pos_linear",
    "self_attn.relative_attention_bias": "attention.rel_attn_embed",
    "self_attn_layer_norm": "layer_norm",
    "fc1": "feed_forward.intermediate_dense",
    "fc2": "feed_forward.output_dense",
    "final_layer_norm": "final_layer_norm",
}
_CONV = "feature_extractor.conv_layers"
_BLOCK = "encoder.transformer.layers"
_EMBEDDING = "encoder.transformer.pos_conv_embed"
_STACK = f"{_EMBEDDING}.layers"
POSITION = f"{_EMBEDDING}.conv"
"""Name of the positional convolution."""
NEW_NAMES = {
    f"{POSITION}.weight_g": f"{POSITION}.parametrizations.weight.original0",
    f"{POSITION}.weight_v": f"{POSITION}.parametrizations.weight.original1",
}
"""Names of weight_norm's two tensors, by their names before torch 2.0."""
_PATTERNS = [
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"feature_extractor\.conv_layers\.(\d+)\.0\.(weight|bias)", rf"{_CONV}.\1.conv.\2"),
        (
            r"feature_extractor\.conv_layers\.(\d+)\.2(?:\.1)?\.(weight|bias)",
            rf"{_CONV}.\1.layer_norm.\2",
        ),
        (r"layer_norm\.(weight|bias)", r"encoder.feature_projection.layer_norm.\1"),
        (r"post_extract_proj\.(weight|bias)", r"encoder.feature_projection.projection.\1"),
        (r"encoder\.pos_conv\.0\.(bias|weight_g|weight_v)", rf"{POSITION}.\1"),
        (r"encoder\.pos_conv\.0\.(parametrizations\.weight\.original[01])", rf"{POSITION}.\1"),
        (r"encoder\.pos_conv\.0\.weight", rf"{POSITION}.weight"),  # weight_norm was removed
        (r"encoder\.pos_conv\.(\d+)\.0\.(weight|bias)", rf"{_STACK}.\1.conv.\2"),  # data2vec
        (r"encoder\.layer_norm\.(weight|bias)", r"encoder.transformer.layer_norm.\1"),
        (r"encoder\.layers\.(\d+)\.self_attn\.grep_a", rf"{_BLOCK}.\1.attention.gru_rel_pos_const"),
        *(
            (rf"encoder\.layers\.(\d+)\.{re.escape(old)}\.(weight|bias)", rf"{_BLOCK}.\1.{new}.\2")
            for old, new in _PARTS.items()
        ),
    )
]
_TRAINING = (
    "mask_emb",
    "label_embs_concat",
    "_ema",  # the teacher of data2vec
    "quantizer.",
    "input_quantizer.",
    "project_q.",
    "final_proj.",
    "target_glu.",
    "spk_proj.",  # of UniSpeech-SAT, and the next
    "encoder.layer_norm_for_extract.",
    "output_layer.",  # predictions of DistilHuBERT, and the next
    "task_embedding.",
    f"{_NORMED}0.num_batches_tracked",
)
"""Names, and beginnings of names, of what only training uses."""
_HEADS = ("proj.", "decoder.")
"""What a fine-tuned model has beside its encoder."""
_ORIGINAL = re.compile(r"encoder\.layers\.\d+\.(?:self_attn|fc[12])|post_extract_proj\.")
_HUGGING_FACE = re.compile(r"(?:[a-z0-9_]+\.)?encoder\.layers\.\d+\.attention\.")
_QKV = re.compile(r"(.*\.attention)\.q_proj\.(weight|bias)$")


def unwrapped(tensors: Mapping[str, T]) -> dict[str, T]:
    """Return the weights of the encoder within a fine-tuned model, by their names in the encoder.

    Args:
        tensors: Weights by name; returned as they are if no name has the wrapper's prefix.
    """
    if not any(_WRAPPED.match(name) for name in tensors):
        return dict(tensors)
    return {
        _WRAPPED.sub("", name): tensor
        for name, tensor in tensors.items()
        if _WRAPPED.match(name) or not name.rpartition("encoder.")[2].startswith(_HEADS)
    }


def is_original(tensors: Mapping[str, T]) -> bool:
    """Return whether the names are those of fairseq, and not torchaudio's."""
    return any(_ORIGINAL.match(name) for name in tensors)


def is_hugging_face(tensors: Mapping[str, T]) -> bool:
    """Return whether the names are those of transformers."""
    return any(_HUGGING_FACE.match(name) for name in tensors)


def own_names(tensors: Mapping[str, T]) -> dict[str, T]:
    """Return the weights of a torchaudio model by its present names, without the output head.

    Args:
        tensors: Weights by torchaudio's names, all with the prefix `model.` if they are a bundle's.
    """
    prefix = "model." if all(name.startswith("model.") for name in tensors) else ""
    names = {name: name.removeprefix(prefix) for name in tensors}
    return {
        NEW_NAMES.get(new, new): tensors[name]
        for name, new in names.items()
        if not new.startswith("aux.")
    }


def torchaudio_parts(tensors: Mapping[str, T]) -> tuple[dict[str, tuple[T, ...]], list[str]]:
    """Rename weights to torchaudio's names.

    Args:
        tensors: Weights of an encoder by the names of fairseq.

    Returns:
        By new name the tensors that make up a weight: one, or for the projections of WavLM, which
        torchaudio keeps in one tensor, the three to be concatenated. Then the unknown names.
    """
    parts: dict[str, tuple[T, ...]] = {}
    unknown = []
    has_norm = f"{_NORMED}0.running_mean" in tensors
    for name, tensor in tensors.items():
        normed = _NORMED_PARTS.get(name.removeprefix(_NORMED)) if has_norm else None
        if new := f"{_EMBEDDING}.{normed}" if normed else _new_name(name):
            parts[new] = (tensor,)
        elif not name.startswith(_TRAINING):
            unknown.append(name)
    if has_position_bias(parts):
        parts = _stacked(parts)
    return parts, unknown


def has_position_bias(names: Mapping[str, object]) -> bool:
    """Return whether torchaudio's names are those of a WavLM."""
    return any(name.endswith((".gru_rel_pos_const", ".rel_attn_embed.weight")) for name in names)


def _new_name(name: str) -> str | None:
    for pattern, replacement in _PATTERNS:
        if match := pattern.fullmatch(name):
            new = match.expand(replacement)
            return NEW_NAMES.get(new, new)
    return None


def _stacked(parts: dict[str, tuple[T, ...]]) -> dict[str, tuple[T, ...]]:
    stacked = dict(parts)
    for name in parts:
        if match := _QKV.fullmatch(name):
            block, end = match.groups()
            three = [f"{block}.{letter}_proj.{end}" for letter in "qkv"]
            if all(one in stacked for one in three):
                stacked[f"{block}.attention.in_proj_{end}"] = tuple(
                    part for one in three for part in stacked.pop(one)
                )
        elif ".attention.out_proj." in name:
            stacked[name.replace(".attention.", ".attention.attention.")] = stacked.pop(name)
    return stacked
