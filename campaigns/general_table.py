"""Measure the errors of the general path against transformers, with models of their true sizes.

    python -m campaigns.general_table DATA [--models NAME …] [--clips N] [--threads N]

DATA has the folders `read_speech` and `long` with 16 kHz FLAC files of real speech. The
architectures are the published ones, with random weights that are moved off their initial values,
so that no norm is the identity. "vs transformers" is the encoder's own forward pass on one clip at
a time, after transformers' feature extractor, with hooks of this script on the blocks; "alone" is
the same clip in a batch of one. Clips with fewer than two frames, which transformers refuses, are
left out. The error of a layer of an utterance is max |a - b| / max |b| over its frames and
features; each figure is the largest over the utterances and the layers 0 to N.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

from benchmarks.published_models import GENERAL
from campaigns.encoder_table import RATE_HZ, in_batches, real_clips, worst
from pipeline.encoders.clips import encode_clips
from pipeline.encoders.loading import load_encoder

_NOISE = 0.02


def load(name: str, **settings: Any) -> tuple[Any, Any]:
    """Load an encoder with random weights, and return it with the feature extractor."""
    with tempfile.TemporaryDirectory() as folder:
        extractor = GENERAL[name].save(folder)
        encoder = load_encoder(folder, "random", source="huggingface", **settings)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in encoder._module.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.add_(noise.to(parameter.device), alpha=_NOISE)
    return encoder, extractor


def by_transformers(module: torch.nn.Module, blocks: str, extractor: Any, clip: torch.Tensor):
    """Run transformers on one clip: layers 0 to N, `[layers, frames, dim]`."""
    inputs = dict(extractor(clip.numpy(), sampling_rate=RATE_HZ, return_tensors="pt"))
    states: list[torch.Tensor] = []

    def before(block, args, kwargs):
        states.append((args[0] if args else kwargs["hidden_states"]).clone())

    def after(block, args, output):
        states.append((output[0] if isinstance(output, tuple) else output).clone())

    with ExitStack() as stack, torch.inference_mode():
        layers = module.get_submodule(blocks)
        handles = [layers[0].register_forward_pre_hook(before, with_kwargs=True)]
        handles += [layer.register_forward_hook(after) for layer in layers]
        for handle in handles:
            stack.callback(handle.remove)
        module(**inputs)
    return torch.stack(states)[:, 0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--models", nargs="*", default=list(GENERAL), choices=list(GENERAL))
    parser.add_argument("--clips", type=int, default=12)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(
        "| model | weights | layers | clips | padded | alone vs batch | ours vs transformers | s |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for name in arguments.models:
        start = time.perf_counter()
        encoder, extractor = load(name, layers="superb", precision="fp32", device="cpu")
        least = encoder.geometry.n_samples(2)
        clips = [clip for clip in real_clips(arguments.data, arguments.clips) if len(clip) >= least]
        batched = in_batches(encoder, clips)
        alone = [encode_clips(encoder, [clip])[0] for clip in clips]
        pairs = []
        for clip, found in zip(clips, batched, strict=True):
            states = by_transformers(encoder._module, encoder._kind.blocks, extractor, clip)
            pairs.append((found, states[:, : found.shape[1]]))
        millions = sum(p.numel() for p in encoder._module.parameters()) / 1e6
        padded = "yes" if encoder._padding_changes_nothing else "no"
        cells = [
            f"{millions:.0f} M",
            f"{encoder.n_model_layers} × {encoder.dim}",
            str(len(clips)),
            padded,
            f"{worst(zip(batched, alone, strict=True)):.1e}",
            f"{worst(pairs):.1e}",
            f"{time.perf_counter() - start:.0f}",
        ]
        print(f"| {name} | {' | '.join(cells)} |", flush=True)
        del encoder, batched, alone, pairs


if __name__ == "__main__":
    main()
