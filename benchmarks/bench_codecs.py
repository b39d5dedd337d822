"""Compare ways to store frame values in few bits: what is lost, and in how many bytes.

    python benchmarks/bench_codecs.py AUDIO_FOLDER... [--model hubert_base] [--clips 20]

Clips of 2 to 20 s are encoded in fp32. Their layers get the outliers that trained encoders have:
four features with 80 times the variance of the others, and four with a constant part of 60 times
their deviation. Each scheme stores every utterance by itself. The figures are 10 log10(what varies
/ what is lost), in dB, where what varies is the variance over the frames of an utterance:

layer      all features of a layer of an utterance together; the lowest one
median     single features; the median
worst      single features; a thousandth of them is below

`--joined` adds all clips as one utterance, `--short` clips of a few frames, and `--long-s 1200` a
recording of 20 minutes: all files joined, encoded in windows, in three layers.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

import pipeline
from pipeline.audio.decode import decode
from pipeline.sources.base import Segment
from pipeline.store.format.codecs import FLOAT16, INT8

Values = npt.NDArray[np.float32]
SUFFIXES = {".wav", ".flac", ".ogg", ".opus", ".mp3"}
SHORTEST_S, LONGEST_S, RATE_HZ = 2, 20, 16_000
SHORT_FRAMES = (2, 5, 20)
LONG_LAYERS = (1, 6, 12)
"""Of a long recording, whose layers have 184 MB each."""
GROUP = 256


@dataclass(frozen=True)
class Scheme:
    """A way to store the frames of a layer of an utterance, [n_frames, dim].

    Attributes:
        bits: Bits of a value.
        n_scales: float32 numbers for each feature and group of frames.
        group: Frames of a group; None: the whole utterance.
        restore: Stores the frames of a group and reads them again.
    """

    bits: float
    n_scales: int
    group: int | None
    restore: Callable[[Values], Values]

    def __call__(self, values: Values) -> Values:
        step = self.group or len(values)
        parts = [self.restore(values[at : at + step]) for at in range(0, len(values), step)]
        return np.concatenate(parts)

    def bytes_of(self, n_frames: int, dim: int) -> float:
        n_groups = -(-n_frames // (self.group or n_frames))
        return dim * (n_frames * self.bits / 8 + 4 * self.n_scales * n_groups)


def middle(bits: int) -> Callable[[Values], Values]:
    """Offset: the middle of the range of a feature; scale: its width."""

    def restore(values: Values) -> Values:
        low, high = values.min(0), values.max(0)
        return steps(values, (low + high) / 2, (high - low) / (2**bits - 2), bits)

    return restore


def mean(values: Values) -> Values:
    """Offset: the mean of a feature; scale: its largest deviation."""
    offset = values.mean(0)
    return steps(values, offset, np.abs(values - offset).max(0) / 127, 8)


def symmetric(values: Values) -> Values:
    """No offset; scale: the largest value of a feature."""
    return steps(values, np.zeros(values.shape[1], "f4"), np.abs(values).max(0) / 127, 8)


def clipped(values: Values) -> Values:
    """As `middle`, of the range without a thousandth of the frames at each end."""
    low, high = np.quantile(values, [0.001, 0.999], axis=0).astype("f4")
    return steps(values, (low + high) / 2, (high - low) / 254, 8)


def rotated(bits: int) -> Callable[[Values], Values]:
    """As `middle`, of features that an orthogonal matrix has mixed after the mean was removed."""

    def restore(values: Values) -> Values:
        centre, matrix = values.mean(0), orthogonal(values.shape[1])
        return middle(bits)((values - centre) @ matrix) @ matrix.T + centre

    return restore


@cache
def orthogonal(dim: int) -> Values:
    random = np.random.default_rng(0)
    return np.linalg.qr(random.standard_normal((dim, dim)))[0].astype("f4")


def steps(values: Values, offset: Values, scale: Values, bits: int) -> Values:
    inverse = np.divide(1, scale, out=np.zeros_like(scale), where=scale > 0)
    largest = 2 ** (bits - 1) - 1
    q = np.clip(np.rint((values - offset) * inverse), -largest, largest)
    return (q * scale + offset).astype("f4")


def stored(values: Values) -> Values:
    """int8 as Strata stores it, and as its readers return it."""
    scales = INT8.measure(values)
    return INT8.decode(INT8.encode(values, scales), scales).astype("f2").astype("f4")


def half(values: Values) -> Values:
    none = FLOAT16.measure(values)
    return FLOAT16.decode(FLOAT16.encode(values, none), none)


SCHEMES = {
    "float16": Scheme(16, 0, None, half),
    "int8, as read": Scheme(8, 2, None, stored),
    "8 bits, middle": Scheme(8, 2, None, middle(8)),
    "8 bits, mean": Scheme(8, 2, None, mean),
    "8 bits, no offset": Scheme(8, 1, None, symmetric),
    "8 bits, clipped": Scheme(8, 2, None, clipped),
    "8 bits, 256 frames": Scheme(8, 2, GROUP, middle(8)),
    "8 bits, rotated": Scheme(8, 3, None, rotated(8)),
    "6 bits, middle": Scheme(6, 2, None, middle(6)),
    "6 bits, 256 frames": Scheme(6, 2, GROUP, middle(6)),
    "5 bits, middle": Scheme(5, 2, None, middle(5)),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", type=Path, nargs="+")
    parser.add_argument("--model", default="hubert_base")
    parser.add_argument("--weights", default="random")
    parser.add_argument("--clips", type=int, default=20)
    parser.add_argument("--joined", action="store_true", help="all clips as one utterance, too")
    parser.add_argument("--short", action="store_true", help="clips of a few frames, too")
    parser.add_argument("--long-s", type=float, help="a recording of so many seconds, too")
    arguments = parser.parse_args()
    encoder = pipeline.load_encoder(arguments.model, weights=arguments.weights)
    clips = [plant(features) for features in encode(encoder, arguments.folders, arguments.clips)]
    n_frames = sum(clip.shape[1] for clip in clips)
    print(f"{len(clips)} clips, {n_frames / 50:.0f} s, {arguments.model}, {arguments.weights}")
    rows = [table("clips", clips)]
    if arguments.joined:
        rows.append(table("one utterance", [np.concatenate(clips, axis=1)]))
    if arguments.short:
        for length in SHORT_FRAMES:
            short = [clip[:, at : at + length] for clip in clips for at in (10, 60)]
            rows.append(table(f"{length} frames", short))
    if arguments.long_s:
        encoder = pipeline.load_encoder(
            arguments.model, weights=arguments.weights, layers=list(LONG_LAYERS)
        )
        long = encoder([join(arguments.folders, arguments.long_s)])[0].numpy()
        rows.append(table(f"one recording of {long.shape[1] / 50:.0f} s", [plant(long)]))
    print(json.dumps(rows))


def encode(encoder: pipeline.SpeechEncoder, folders: Sequence[Path], n_clips: int) -> list[Values]:
    """Return the features of clips of the right length, spread over the folders."""
    shortest, longest = SHORTEST_S * RATE_HZ, LONGEST_S * RATE_HZ
    found = [wave for wave in waveforms(folders) if shortest <= len(wave) <= longest]
    chosen = found[:: max(1, len(found) // n_clips)][:n_clips]
    return [encoder([waveform])[0].float().numpy() for waveform in chosen]


def join(folders: Sequence[Path], seconds: float) -> Tensor:
    """Return the sound of all files, one after the other, cut to a length."""
    joined = torch.cat(list(waveforms(folders)))
    wanted = round(seconds * RATE_HZ)
    if len(joined) < wanted:
        sys.exit(f"the folders have {len(joined) / RATE_HZ:.0f} s of sound, not {seconds:.0f}")
    return joined[:wanted]


def waveforms(folders: Sequence[Path]) -> Iterator[Tensor]:
    """Decode all sound files."""
    for folder in folders:
        for path in sorted(path for path in folder.rglob("*") if path.suffix in SUFFIXES):
            yield decode(Segment(str(path), str(path)), RATE_HZ).waveform


def plant(features: Values) -> Values:
    """Add the outliers of trained encoders to [n_layers, n_frames, dim]."""
    deviation = features.std(1)  # [n_layers, dim]
    planted = features.copy()
    usual = np.median(deviation, axis=1, keepdims=True)
    planted[..., :4] *= (80**0.5 * usual / deviation[:, :4])[:, None]
    planted[..., 4:8] += (60 * deviation[:, 4:8])[:, None]
    return planted


def table(name: str, clips: list[Values]) -> dict[str, object]:
    """Print and return the figures of all schemes."""
    print(f"\n{name}\n{'scheme':20} {'GB/h':>6} {'layer':>6} {'median':>7} {'worst':>6}")
    rows = {}
    n_frames = sum(clip.shape[1] for clip in clips)
    for scheme_name, scheme in SCHEMES.items():
        layers, features, n_bytes = [], [], 0.0
        for clip in clips:
            for values in clip:
                lost = np.square(scheme(values).astype("f8") - values).mean(0)
                varies = values.astype("f8").var(0)
                layers.append(decibels(varies.sum(), lost.sum()))
                features.append(decibels(varies, lost))
                n_bytes += scheme.bytes_of(*values.shape)
        each = np.concatenate(features)
        row = (
            n_bytes / (n_frames / 50) * 3600 / 1e9,
            float(np.min(layers)),
            float(np.median(each)),
            float(np.quantile(each, 0.001)),
        )
        rows[scheme_name] = [round(value, 2) for value in row]
        print(f"{scheme_name:20} {row[0]:6.2f} {row[1]:6.1f} {row[2]:7.1f} {row[3]:6.1f}")
    return {"what": name, "n_frames": n_frames, "rows": rows}


def decibels(varies: npt.NDArray[np.float64], lost: npt.NDArray[np.float64]) -> Values:
    return np.asarray(10 * np.log10(np.maximum(varies, 1e-30) / np.maximum(lost, 1e-30)))


if __name__ == "__main__":
    main()
