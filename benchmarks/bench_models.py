"""Measure encoders of many architectures against transformers, in times real time.

    python -m benchmarks.bench_models [--models NAME …] [--rounds 3] [--device cpu]
        [--precision fp32] [--threads 2] [--audio-s 60] [--clip-s 2 15] [--batch N] [--clock cpu]

Every method takes the same clips from waveforms to all hidden layers; weights are random.

ours            `encode_batch` on batches of clips of similar length
one by one      transformers' feature extractor and model, one clip at a time
padded          the same on batches, padded to the longest clip, with a mask
padded forward  the model alone on those batches; its inputs are computed before

Methods take turns, round after round, in one run; the figures are medians. "ratio" is ours over the
fastest of the others. The padded forward pass is no fair peer where padding changes the features
(column "padding": how far, relative error of the last layer). Clips are synthetic. With
`--clock cpu` the seconds are those of CPU time of this process, which other load on the machine
changes less; take one thread then.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
import transformers
from torch import Tensor

from benchmarks.published_models import GENERAL, PACKED, Published
from pipeline.encoders.general.encoder import GeneralEncoder
from pipeline.encoders.loading import load_encoder
from pipeline.testing.signals import speech

RATE_HZ = 16_000
BATCH = {"cpu": 4, "cuda": 32}
MODELS: dict[str, Published] = {**PACKED, **GENERAL}
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
METHODS = ("ours", "one by one", "padded", "padded forward")


def clips_of(audio_s: float, shortest_s: float, longest_s: float) -> list[Tensor]:
    """Make clips of lengths in this range, sorted, of about `audio_s` seconds together."""
    generator = torch.Generator().manual_seed(0)
    clips: list[Tensor] = []
    while sum(map(len, clips)) < audio_s * RATE_HZ:
        share = torch.rand((), generator=generator).item()
        seconds = shortest_s + (longest_s - shortest_s) * share
        clips.append(speech(round(seconds * RATE_HZ), len(clips)))
    return sorted(clips, key=len)


class Peer:
    """transformers' feature extractor and model."""

    def __init__(self, extractor: Any, model: Any, device: str, dtype: torch.dtype) -> None:
        self._extractor, self._device, self._dtype = extractor, device, dtype
        self._model = model.to(device, dtype).eval()
        self._is_whisper = type(extractor).__name__ == "WhisperFeatureExtractor"

    def inputs(self, clips: Sequence[Tensor]) -> dict[str, Any]:
        """Compute the model's input of clips, padded if they are several."""
        options: dict[str, Any] = {"sampling_rate": RATE_HZ, "return_tensors": "pt"}
        if not self._is_whisper:
            options |= {"padding": True, "return_attention_mask": True}
        found = dict(self._extractor([clip.numpy() for clip in clips], **options))
        if len(clips) == 1 or self._is_whisper:
            found.pop("attention_mask", None)
        return {
            key: value.to(self._device, self._dtype if value.is_floating_point() else value.dtype)
            for key, value in found.items()
        }

    @torch.inference_mode()
    def forward(self, inputs: dict[str, Any]) -> Any:
        """Return all hidden states."""
        return self._model(**inputs, output_hidden_states=True).hidden_states


def measure(name: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Measure one model: times real time of each method."""
    device, precision = arguments.device, arguments.precision
    with tempfile.TemporaryDirectory() as folder:
        extractor = MODELS[name].save(folder)
        encoder = load_encoder(
            folder, "random", source="huggingface", device=device, precision=precision
        )
        config = transformers.AutoConfig.from_pretrained(folder)
    is_general = isinstance(encoder, GeneralEncoder)
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    model = encoder._module if is_general else transformers.AutoModel.from_config(config)
    peer = Peer(extractor, model, device, dtype)
    clips = clips_of(arguments.audio_s, *arguments.clip_s)
    size = arguments.batch or BATCH[device]
    batches = [clips[at : at + size] for at in range(0, len(clips), size)]
    ready = [peer.inputs(batch) for batch in batches]
    methods: dict[str, Callable[[], object]] = {
        "ours": lambda: [list(encoder.encode_batch(batch)) for batch in batches],
        "one by one": lambda: [peer.forward(peer.inputs([clip])) for clip in clips],
        "padded": lambda: [peer.forward(peer.inputs(batch)) for batch in batches],
        "padded forward": lambda: [peer.forward(inputs) for inputs in ready],
    }
    list(encoder.encode_batch(batches[0]))  # prepares the weights, and probes for leaks
    seconds: dict[str, list[float]] = {method: [] for method in methods}
    for _ in range(arguments.rounds):
        for method, run in methods.items():
            start = CLOCKS[arguments.clock]()
            run()
            if device == "cuda":
                torch.cuda.synchronize()
            seconds[method].append(CLOCKS[arguments.clock]() - start)
    audio_s = sum(map(len, clips)) / RATE_HZ
    speeds = {method: audio_s / statistics.median(times) for method, times in seconds.items()}
    return {
        "model": name,
        "path": "general" if is_general else "packed",
        "layers": encoder.n_model_layers,
        "dim": encoder.dim,
        **{method: round(speed, 2) for method, speed in speeds.items()},
        "ratio": round(speeds["ours"] / max(speeds[m] for m in METHODS if m != "ours"), 3),
        "padding": leak(peer, batches[0]),
    }


def leak(peer: Peer, batch: Sequence[Tensor]) -> float:
    """Return how far padding moves the last layer of the shortest clip of a batch."""
    clip = batch[0]
    alone = peer.forward(peer.inputs([clip]))[-1][0].float()
    together = peer.forward(peer.inputs(batch))[-1][0].float()[: len(alone)]
    return float((together - alone).abs().max() / alone.abs().max())


def main(argv: Sequence[str] | None = None) -> list[dict[str, Any]]:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--models", nargs="*", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--precision", default="fp32", choices=["fp32", "bf16", "fp16"])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--audio-s", type=float, default=60.0, help="audio of a round")
    parser.add_argument("--clip-s", type=float, nargs=2, default=[2.0, 15.0], help="of clips")
    parser.add_argument("--batch", type=int, help="clips of a batch; 4 on a CPU, 32 on CUDA")
    parser.add_argument("--clock", default="wall", choices=list(CLOCKS))
    arguments = parser.parse_args(argv)
    torch.set_num_threads(arguments.threads)
    print(f"| model | path | {' | '.join(METHODS)} | ratio | padding |", flush=True)
    print("|" + "---|" * (len(METHODS) + 4))
    results = []
    for name in arguments.models:
        row = measure(name, arguments)
        results.append(row)
        speeds = " | ".join(f"{row[method]:.1f}" for method in METHODS)
        cells = f"{speeds} | {row['ratio']:.2f} | {row['padding']:.0e}"
        print(f"| {name} | {row['path']} | {cells} |", flush=True)
    print(json.dumps(results))
    return results


if __name__ == "__main__":
    main()
