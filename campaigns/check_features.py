"""Compare a store with stock torchaudio, one clip at a time: an independent check of a whole run.

    python campaigns/check_features.py STORE AUDIO_FOLDER [--clips 24]

The store must have been made from AUDIO_FOLDER with a torchaudio model and random weights (seed 0).
The script decodes and resamples clips of mixed lengths itself, runs
`model.extract_features(waveform[None])` with the same weights, and prints the largest relative
error of each layer, max|a - b| / max|b|, for our encoder in one mixed batch before storage and for
the stored features.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import soundfile
import torch
import torchaudio

import pipeline
from pipeline.encoders.wav2vec2.bundles import find_model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("store", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--clips", type=int, default=24)
    arguments = parser.parse_args()
    store = pipeline.open_store(arguments.store)
    encoder_facts = store.attributes["identity"]["encoder"]
    spec = find_model(encoder_facts["model"])
    encoder = pipeline.load_encoder(spec.name, weights="random", layers=store.layers)
    if encoder.identity["weights"] != encoder_facts["weights"]:
        raise SystemExit("the store was not made with random weights of seed 0")
    stock = encoder._model  # the same torchaudio module

    lengths = np.array([store.n_frames(i) for i in range(len(store))])
    chosen = np.argsort(lengths)[np.linspace(0, len(store) - 1, arguments.clips).astype(int)]
    names = [store.ids[int(i)] for i in chosen]
    waveforms = [load(arguments.folder / name, encoder.sample_rate_hz) for name in names]
    ours = encoder(waveforms)
    before = torch.zeros(len(store.layers))
    after = torch.zeros(len(store.layers))
    for name, waveform, batched in zip(names, waveforms, ours, strict=True):
        if spec.normalize_waveform:
            waveform = torch.nn.functional.layer_norm(waveform, waveform.shape)
        with torch.inference_mode():
            reference, _ = stock.extract_features(waveform[None])
        expected = torch.stack([reference[layer - 1][0] for layer in store.layers])
        before = torch.maximum(before, relative_error(batched, expected))
        after = torch.maximum(after, relative_error(store.read(name).float(), expected))
    print(f"{len(names)} clips of {lengths[chosen].min()} to {lengths[chosen].max()} frames")
    for i, layer in enumerate(store.layers):
        print(f"layer {layer:2d}: {before[i]:.1e} before storage, {after[i]:.1e} as stored")
    print(f"largest: {before.max():.1e} before storage, {after.max():.1e} as stored")


def load(path: Path, rate_hz: int) -> torch.Tensor:
    samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
    waveform = torch.from_numpy(samples.mean(axis=1))
    return torchaudio.functional.resample(waveform, rate, rate_hz)


def relative_error(ours: torch.Tensor, expected: torch.Tensor) -> torch.Tensor:
    """Compute the relative error of each layer of `[n_layers, n_frames, dim]`: `[n_layers]`."""
    difference = (ours - expected).abs().flatten(1).amax(1)
    return difference / expected.abs().flatten(1).amax(1)


if __name__ == "__main__":
    main()
