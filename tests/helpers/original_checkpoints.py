"""Small checkpoints in the forms of fairseq, unilm and s3prl, made from models of transformers.

The names are written here by hand, in the other direction than in the code under test. The classes
of fairseq exist only while a file is written, so a reader that imports them fails.
"""

from __future__ import annotations

import argparse
import sys
import types
from contextlib import contextmanager
from enum import Enum

import torch
from omegaconf import OmegaConf
from safetensors.torch import save_file

from tests.helpers.encoder_kinds import randomize

CONVOLUTIONS = "[(24, 10, 5)] + [(24, 3, 2)] * 4 + [(24,2,2)] + [(24,2,2)]"
LARGE = {"do_stable_layer_norm": True, "feat_extract_norm": "layer", "conv_bias": True}

# From the names of transformers to those of fairseq's modules.
FAIRSEQ = [
    ("encoder.pos_conv_embed.batch_norm.", "encoder.pos_conv.0."),
    ("feature_projection.layer_norm.", "layer_norm."),
    ("feature_projection.projection.", "post_extract_proj."),
    (
        "encoder.pos_conv_embed.conv.parametrizations.weight.original0",
        "encoder.pos_conv.0.weight_g",
    ),
    (
        "encoder.pos_conv_embed.conv.parametrizations.weight.original1",
        "encoder.pos_conv.0.weight_v",
    ),
    ("encoder.pos_conv_embed.conv.bias", "encoder.pos_conv.0.bias"),
    (".attention.gru_rel_pos_const", ".self_attn.grep_a"),
    (".attention.gru_rel_pos_linear.", ".self_attn.grep_linear."),
    (".attention.rel_attn_embed.", ".self_attn.relative_attention_bias."),
    (".attention.", ".self_attn."),
    (".feed_forward.intermediate_dense.", ".fc1."),
    (".feed_forward.output_dense.", ".fc2."),
    ("masked_spec_embed", "mask_emb"),
]


def small_model(model_class, **options):
    """Build a model of transformers with 3 blocks of 32 channels, and random weights."""
    import transformers

    model_type = getattr(transformers, model_class)
    torch.manual_seed(0)
    config = model_type.config_class(
        hidden_size=32,
        num_attention_heads=4,
        intermediate_size=64,
        conv_dim=[24] * 7,
        num_conv_pos_embedding_groups=8,
        vocab_size=12,
        **{"num_hidden_layers": 3, "num_conv_pos_embeddings": 32, **options},
    )
    return randomize(model_type(config).eval())


def fairseq_names(model):
    """Return the weights of a model of transformers by fairseq's names."""
    is_group = getattr(model.config, "feat_extract_norm", "layer") == "group"
    position = 1 if getattr(model.config, "conv_pos_batch_norm", False) else 0
    renamed = {}
    for name, tensor in model.state_dict().items():
        if name.startswith("feature_extractor."):
            _, _, i, part, end = name.split(".")
            number = {"conv": "0", "layer_norm": "2" if is_group else "2.1"}[part]
            renamed[f"feature_extractor.conv_layers.{i}.{number}.{end}"] = tensor
            continue
        if name.startswith("encoder.layers."):
            block, part = name.split(".", 3)[2], name.split(".", 3)[3]
            if part.startswith("layer_norm."):
                renamed[f"encoder.layers.{block}.self_attn_{part}"] = tensor
                continue
        if name.startswith("encoder.pos_conv_embed.layers."):
            i, end = name.split(".")[3], name.rpartition(".")[2]
            renamed[f"encoder.pos_conv.{i}.0.{end}"] = tensor
            continue
        if position and name.startswith("encoder.pos_conv_embed.conv."):
            renamed[f"encoder.pos_conv.{position}.{name.rpartition('.')[2]}"] = tensor
            continue
        for theirs, fairseqs in FAIRSEQ:
            if theirs in name:
                name = name.replace(theirs, fairseqs)
                break
        renamed[name] = tensor
    return renamed


def model_settings(model, **others):
    """Return the settings of a model in the words of fairseq."""
    config = model.config
    is_layer = getattr(config, "feat_extract_norm", "layer") == "layer"
    return {
        "extractor_mode": "layer_norm" if is_layer else "default",
        "encoder_layers": config.num_hidden_layers,
        "encoder_embed_dim": config.hidden_size,
        "encoder_ffn_embed_dim": config.intermediate_size,
        "encoder_attention_heads": config.num_attention_heads,
        "activation_fn": "gelu",
        "layer_norm_first": getattr(config, "do_stable_layer_norm", False),
        "conv_feature_layers": CONVOLUTIONS,
        "conv_bias": config.conv_bias,
        "conv_pos": config.num_conv_pos_embeddings,
        "conv_pos_groups": config.num_conv_pos_embedding_groups,
        "latent_temp": (2, 0.5, 0.999995),
        "dropout": 0.1,
        **others,
    }


def pretraining(dim=32):
    """Return weights that only the pretraining of wav2vec 2.0 and HuBERT uses."""
    return {
        "quantizer.vars": torch.zeros(1, 8, 4),
        "quantizer.weight_proj.weight": torch.zeros(8, 24),
        "quantizer.weight_proj.bias": torch.zeros(8),
        "project_q.weight": torch.zeros(8, 8),
        "project_q.bias": torch.zeros(8),
        "final_proj.weight": torch.zeros(8, dim),
        "final_proj.bias": torch.zeros(8),
        "label_embs_concat": torch.zeros(20, 8),
        "target_glu.0.weight": torch.zeros(16, 8),
    }


@contextmanager
def fairseq_classes():
    """Provide classes of fairseq for as long as a file is written."""
    dictionary = types.ModuleType("fairseq.data.dictionary")
    choices = types.ModuleType("fairseq.dataclass.constants")

    class Dictionary:
        def __init__(self):
            self.symbols, self.count, self.indices = ["a", "b"], [1, 2], {"a": 0, "b": 1}

    class Backends(Enum):
        c10d = "c10d"

    for module, one in ((dictionary, Dictionary), (choices, Backends)):
        one.__module__, one.__qualname__ = module.__name__, one.__name__
        setattr(module, one.__name__, one)
    modules = {module.__name__: module for module in (dictionary, choices)}
    modules |= {name: types.ModuleType(name) for name in ("fairseq", "fairseq.data")}
    modules |= {"fairseq.dataclass": types.ModuleType("fairseq.dataclass")}
    sys.modules.update(modules)
    try:
        yield Dictionary, Backends
    finally:
        for name in modules:
            del sys.modules[name]


def save_namespace(path, model, *, legacy=True, **settings):
    """Write what fairseq wrote in 2020: a namespace of arguments, in PyTorch's older format."""
    args = argparse.Namespace(
        arch="wav2vec2", task="audio_pretraining", **model_settings(model, **settings)
    )
    with fairseq_classes() as (dictionary, _):
        content = {
            "args": args,
            "model": fairseq_names(model) | pretraining(),
            "optimizer_history": [{"criterion_name": "Wav2vecCriterion", "num_updates": 5}],
            "extra_state": {"train_iterator": {"epoch": 3}, "metrics": [dictionary()]},
            "last_optimizer_state": {"state": {0: {"exp_avg": torch.zeros(4)}}},
        }
        torch.save(content, path, _use_new_zipfile_serialization=not legacy)


def save_config(path, model, *, name="hubert", normalize=False, container=True, prefix="", **more):
    """Write what fairseq writes since 2021: a configuration of omegaconf, or a plain dict of it."""
    with fairseq_classes() as (dictionary, choice):
        cfg = {
            "_name": None,
            "common": {"fp16": True, "ddp_backend": choice.c10d},
            "task": {"_name": "hubert_pretraining", "normalize": normalize, "sample_rate": 16000},
            "model": {"_name": name, **model_settings(model), **more.pop("settings", {})},
        }
        weights = fairseq_names(model) | pretraining() | more.pop("weights", {})
        content = {
            "args": None,
            "cfg": OmegaConf.create(cfg, flags={"allow_objects": True}) if container else cfg,
            "model": {f"{prefix}{key}": tensor for key, tensor in weights.items()},
            "task_state": {"dictionaries": [dictionary()]},
            **more,
        }
        torch.save(content, path)


def save_fine_tuned(path, model, *, prefix="w2v_encoder.", normalize=True):
    """Write a model fine-tuned for recognition, which holds the settings of its encoder."""
    encoder = argparse.Namespace(arch="wav2vec2", normalize=normalize, **model_settings(model))
    weights = {f"{prefix}w2v_model.{key}": one for key, one in fairseq_names(model).items()}
    weights |= {f"{prefix}proj.weight": torch.zeros(12, 32), f"{prefix}proj.bias": torch.zeros(12)}
    if prefix == "encoder.":
        weights["decoder.layers.0.encoder_attn.k_proj.weight"] = torch.zeros(8, 8)
    cfg = {
        "model": {
            "_name": "wav2vec_ctc",
            "w2v_path": "/a/b.pt",
            "w2v_args": None,
            "layerdrop": 0.1,
        },
        "task": {"_name": "audio_finetuning", "normalize": normalize, "labels": "ltr"},
    }
    cfg["model"] |= {"normalize": "${task.normalize}", "w2v_args": encoder}
    torch.save({"args": None, "cfg": cfg, "model": weights}, path)


def save_unilm(path, model, *, normalize=False, weights=None, **settings):
    """Write what unilm publishes for WavLM: a flat dict of settings, and the weights."""
    cfg = model_settings(model, normalize=normalize, **settings)
    torch.save({"cfg": cfg, "model": fairseq_names(model) | (weights or {})}, path)


def save_s3prl(path, model, *, normalize=False):
    """Write what s3prl converts a checkpoint of fairseq to."""
    content = {
        "task_cfg": {"_name": "hubert_pretraining", "normalize": normalize, "sample_rate": 16000},
        "model_cfg": {"_name": "hubert", **model_settings(model)},
        "model_weight": fairseq_names(model) | pretraining(),
        "dictionaries_symbols": [["a", "b"]],
    }
    torch.save(content, path)


def save_data2vec(path, model):
    """Write data2vec-audio: a deep positional convolution, and the teacher's weights in a dict."""
    depth, kernel = model.config.num_conv_pos_embeddings, model.config.conv_pos_kernel_size
    settings = {"pos_conv_depth": depth, "conv_pos": depth * kernel, "average_top_k_layers": 8}
    teacher = {"_ema": {"layers.0.fc1.weight": torch.zeros(4, 4)}}
    options = {"settings": settings, "weights": teacher, "normalize": True}
    save_config(path, model, name="data2vec_audio", **options)


def save_distiller(path, model):
    """Write DistilHuBERT of s3prl: a training state with the parsed YAML, without a schema."""
    settings = model_settings(model, task_emb_type="expand-last", n_tasks=3, final_dim=32)
    settings["extractor_conv_feature_layers"] = settings.pop("conv_feature_layers")
    del settings["conv_bias"]
    weights = fairseq_names(model)
    del weights["mask_emb"]
    heads = {"output_layer.0.weight": torch.zeros(96, 32), "output_layer.2.bias": torch.zeros(96)}
    content = {
        "Optimizer": {"state": {}, "param_groups": [{"lr": 2e-4}]},
        "Step": 200_000,
        "Args": argparse.Namespace(upstream="distiller", seed=1337),
        "Config": {"distiller": settings, "teacher": {"model": "hubert_base"}},
        "Runner": argparse.Namespace(),
        "Distiller": weights | heads,
    }
    torch.save(content, path)


def save_safetensors(path, model, metadata=None):
    """Write a state dict by fairseq's names, with metadata in the header."""
    weights = {name: tensor.contiguous() for name, tensor in fairseq_names(model).items()}
    save_file(weights, path, metadata=metadata)
