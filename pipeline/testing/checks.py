"""The conformance checks of an encoder and its family; contracts in `pipeline/encoders/base.py`.

Each check raises an AssertionError that says what is wrong. Load the encoder with short windows
(`WINDOWS`), so that a recording of some seconds has several.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from pipeline.config import ModelConfig
from pipeline.encoders.base import Encoder, EncoderFamily
from pipeline.encoders.clips import encode_clips, encode_windows
from pipeline.encoders.selfcheck import relative_errors, selfcheck
from pipeline.encoders.settings import PRECISIONS, resolve_settings
from pipeline.store.format.geometry import FrameGeometry
from pipeline.testing.signals import speech

WINDOWS: dict[str, Any] = {"max_window_s": 4.0, "context_s": 0.5}
"""Windows of the encoders that are checked, in seconds."""
_LONG_S = 11  # a recording of several windows


@dataclass(frozen=True)
class EncoderCase:
    """An encoder to check.

    Attributes:
        encoder: The encoder, on the CPU in fp32, with `WINDOWS`.
        tolerance: Largest relative error due to rounding.
    """

    encoder: Encoder
    tolerance: float = 1e-5


@dataclass(frozen=True)
class FamilyCase:
    """A model of a family to check.

    Attributes:
        family: The family.
        model: The model.
    """

    family: EncoderFamily
    model: ModelConfig

    def loader(self) -> Callable[[], Encoder]:
        """Return a function that loads the encoder, as in a worker's job."""
        description = self.family.describe(self.model)
        settings = resolve_settings(description, precision="fp32", device="cpu", **WINDOWS)
        return partial(self.family.load, self.model, settings)


def frame_counts_are_those_of_the_geometry(case: EncoderCase) -> None:
    """For lengths around the borders of the first frames, separately and in a batch."""
    encoder = case.encoder
    lengths = _border_lengths(encoder.geometry)
    waveforms = [_speech(case, n, seed) for seed, n in enumerate(lengths)]
    counts = [encoder.geometry.n_frames(n) for n in lengths]
    for layer in encoder.encode_batch(waveforms):
        _check_shape(layer, sum(counts), encoder, f"clips of {lengths} samples together")
    for waveform, count in zip(waveforms, counts, strict=True):
        layers = list(encoder.encode_batch([waveform]))
        assert len(layers) == len(encoder.layers), (
            f"encode_batch gives {len(layers)} layers, and `layers` has {len(encoder.layers)}"
        )
        for layer in layers:
            _check_shape(layer, count, encoder, f"a clip of {len(waveform)} samples")


def a_layer_stays_as_it_is_while_the_next_ones_are_computed(case: EncoderCase) -> None:
    """The caller may copy it meanwhile."""
    layers = case.encoder.encode_batch([_second(case)])
    pairs = [(layer, layer.clone()) for layer in layers]
    for i, (kept, copy) in enumerate(pairs):
        assert torch.equal(kept, copy), (
            f"layer {case.encoder.layers[i]} was changed after it was yielded; yield a copy"
        )


def batch_mates_change_nothing(case: EncoderCase) -> None:
    """Features are the same with a long loud and a short quiet batch-mate as without."""
    encoder, rate_hz = case.encoder, case.encoder.geometry.sample_rate_hz
    utterance = _second(case, 1)
    mates = [30 * _speech(case, 3 * rate_hz, 2), 0.01 * _speech(case, rate_hz // 10, 3)]
    [alone] = encode_clips(encoder, [utterance])
    for batch, place in (([utterance, *mates], 0), ([*mates, utterance], 2)):
        together = encode_clips(encoder, batch)[place]
        _check_same(case, together, alone, "a clip in a batch and alone")
    found = selfcheck(encoder, [utterance, *mates])
    assert found.ok, f"the self-check is not ok: {found}"


def windows_cover_an_utterance_exactly(case: EncoderCase) -> None:
    """Together, the windows keep every frame once, in order."""
    encoder = case.encoder
    waveform = _speech(case, _LONG_S * encoder.geometry.sample_rate_hz + 17)
    windows = encoder.windows.plan(waveform.numel())
    assert len(windows) > 2, f"{_LONG_S} s are {len(windows)} windows; load it with {WINDOWS}"
    stats = encoder.utterance_stats(waveform)
    at = 0
    encoded = encode_windows(encoder, waveform, windows, stats)
    for (start, features), window in zip(encoded, windows, strict=True):
        assert start == window.keep_start == at, f"a window starts at {start}, not at {at}"
        expected = (len(encoder.layers), window.keep_stop - window.keep_start, encoder.dim)
        assert features.shape == expected, f"a window is {[*features.shape]}, not {[*expected]}"
        at = window.keep_stop
    assert at == encoder.geometry.n_frames(waveform.numel()), f"the windows end at frame {at}"


def a_window_needs_only_its_samples_and_the_statistics(case: EncoderCase) -> None:
    """A worker that streams the recording and keeps one window gets identical features."""
    encoder = case.encoder
    waveform = _speech(case, _LONG_S * encoder.geometry.sample_rate_hz)
    windows = encoder.windows.plan(waveform.numel())
    stats = encoder.utterance_stats(waveform)
    together = dict(encode_windows(encoder, waveform, windows, stats))
    for window in windows[::-1]:
        accumulator = encoder.statistics_accumulator()
        for block in torch.split(waveform, 12_345):
            accumulator.update(block)
        part = waveform[window.sample_start : window.sample_stop]
        streamed = encoder.utterance_stats(accumulator.finish())
        place = window.sample_start
        [(start, alone)] = encode_windows(encoder, part, [window], streamed, sample_start=place)
        assert start == window.keep_start, f"a window starts at {start}, not {window.keep_start}"
        assert torch.equal(alone, together[start]), (
            f"the window at frame {start} is another with the statistics of a stream of blocks, or "
            "after other windows"
        )


def windows_may_share_a_batch(case: EncoderCase) -> None:
    """With each other and with whole utterances, each with its own statistics."""
    encoder = case.encoder
    waveform = _speech(case, _LONG_S * encoder.geometry.sample_rate_hz)
    windows = encoder.windows.plan(waveform.numel())
    stats = encoder.utterance_stats(waveform)
    whole = 0.3 * _second(case, 4) + 0.2
    parts = [waveform[window.sample_start : window.sample_stop] for window in windows]
    found = encode_clips(encoder, [*parts, whole], stats=[stats] * len(parts) + [None])
    [alone] = encode_clips(encoder, [whole])
    _check_same(case, found[-1], alone, "a clip in a batch with windows and alone")
    kept = encode_windows(encoder, waveform, windows, stats)
    for features, window, (_, separate) in zip(found[:-1], windows, kept, strict=True):
        first = window.keep_start - window.feed_start
        part = features[:, first : first + separate.shape[1]]
        _check_same(case, part, separate, "a window in a batch and alone")


def precision_can_be_fp32(case: EncoderCase) -> None:
    """The worker reruns batches and windows in fp32, the precision of the encoder to check."""
    encoder = case.encoder
    assert encoder.precision in PRECISIONS, f"precision is {encoder.precision!r}"
    waveform = _second(case)
    [rerun] = encode_clips(encoder, [waveform], precision="fp32")
    assert torch.isfinite(rerun).all(), "features in fp32 are not finite"
    [own] = encode_clips(encoder, [waveform], precision=None)
    assert torch.equal(rerun, own), "a rerun in fp32 gives other features; is it deterministic?"
    long = _speech(case, 9 * encoder.geometry.sample_rate_hz)
    [window, *_] = encoder.windows.plan(long.numel())
    stats = encoder.utterance_stats(long)
    [(_, kept)] = encode_windows(encoder, long, [window], stats, precision="fp32")
    assert torch.isfinite(kept).all(), "features of a window in fp32 are not finite"


def attributes_describe_the_encoder(case: EncoderCase) -> None:
    """Layers ascend; the identity is JSON, holds precision and layers, and no device."""
    encoder = case.encoder
    layers, identity = encoder.layers, encoder.identity
    assert list(layers) == sorted(set(layers)), f"layers {layers} do not ascend"
    assert len(encoder.layer_names) == len(layers), f"{encoder.layer_names} are not {layers}"
    assert json.loads(json.dumps(identity)) == identity, f"the identity {identity} is not JSON"
    assert identity["precision"] == encoder.precision, "the identity has another precision"
    assert identity["layers"] == list(layers), "the identity has other layers"
    assert "device" not in json.dumps(identity), "the identity has a device"
    assert encoder.windows.geometry == encoder.geometry, "the windows have another geometry"
    source = encoder.weights_source
    assert isinstance(source, str), f"weights_source is {source!r}"
    assert encoder.is_random == (source == "random"), f"is_random is not that of {source!r}"
    if encoder.final_norm is not None:
        assert encoder.final_norm["weight"].shape == (encoder.dim,), "final_norm has another size"
        assert encoder.final_norm.keys() == {"weight", "bias", "eps"}, "final_norm has other keys"


def the_clock_is_entered_around_each_part(case: EncoderCase) -> None:
    """Front end, then transformer, and never while the caller has a layer."""
    entered, inside = [], []

    @contextmanager
    def clock(stage: str) -> Iterator[None]:
        entered.append(stage)
        inside.append(stage)
        yield
        inside.pop()

    encoder, before = case.encoder, case.encoder.clock
    encoder.clock = clock
    try:
        for _ in encoder.encode_batch([_second(case)]):
            assert not inside, f"{inside[0]} is timed while the caller has a layer"
    finally:
        encoder.clock = before
    assert entered[:1] == ["front_end"], f"the clock is entered for {entered}"
    assert set(entered[1:]) == {"transformer"}, f"the clock is entered for {entered}"


def loaders_pickle(case: FamilyCase) -> None:
    """A worker loads the same encoder; the family need not be registered in its process."""
    loader = case.loader()
    first, second = loader(), pickle.loads(pickle.dumps(loader))()
    assert first.identity == second.identity, (
        f"a second process has another identity: {second.identity}, not {first.identity}"
    )
    rate_hz = first.geometry.sample_rate_hz
    waveform = speech(rate_hz, rate_hz=rate_hz)
    pairs = zip(first.encode_batch([waveform]), second.encode_batch([waveform]), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs), "a second process has other features"


def descriptions_match_the_encoder(case: FamilyCase) -> None:
    """Name, size, layers and geometry are those of the description."""
    description, encoder = case.family.describe(case.model), case.loader()()
    assert description.name == encoder.name, f"{description.name} is {encoder.name}"
    assert description.dim_of(encoder.layers) == encoder.dim, f"dim is {encoder.dim}"
    assert description.geometry == encoder.geometry, f"the geometry is {encoder.geometry}"
    expected = tuple(range(1, description.n_layers + 1))
    assert encoder.layers == expected, f"layers are {encoder.layers}, not {expected}"
    names = tuple(description.names[layer] for layer in expected)
    assert encoder.layer_names == names, f"layer_names are {encoder.layer_names}, not {names}"


ENCODER_CHECKS: tuple[Callable[[EncoderCase], None], ...] = (
    frame_counts_are_those_of_the_geometry,
    a_layer_stays_as_it_is_while_the_next_ones_are_computed,
    batch_mates_change_nothing,
    windows_cover_an_utterance_exactly,
    a_window_needs_only_its_samples_and_the_statistics,
    windows_may_share_a_batch,
    precision_can_be_fp32,
    attributes_describe_the_encoder,
    the_clock_is_entered_around_each_part,
)
"""What every encoder must pass."""
FAMILY_CHECKS: tuple[Callable[[FamilyCase], None], ...] = (
    loaders_pickle,
    descriptions_match_the_encoder,
)
"""What every family must pass."""


def _border_lengths(geometry: FrameGeometry) -> list[int]:
    """Lengths around the borders of the first frames, and two longer ones."""
    one, hop = geometry.n_samples(1), geometry.hop_samples
    borders = [one - 1, one, one + 1, one + hop - 1, one + hop, one + hop + 1]
    return sorted({1, *(n for n in borders if n > 0), 7 * hop, 50 * hop + 13})


def _speech(case: EncoderCase, n_samples: int, seed: int = 0) -> Tensor:
    return speech(n_samples, seed, rate_hz=case.encoder.geometry.sample_rate_hz)


def _second(case: EncoderCase, seed: int = 0) -> Tensor:
    return _speech(case, case.encoder.geometry.sample_rate_hz, seed)


def _check_shape(layer: Tensor, n_frames: int, encoder: Encoder, of: str) -> None:
    assert layer.shape == (n_frames, encoder.dim), (
        f"a layer of {of} is {[*layer.shape]}; the geometry and dim say {[n_frames, encoder.dim]}"
    )


def _check_same(case: EncoderCase, found: Tensor, reference: Tensor, what: str) -> None:
    errors: Sequence[float] = relative_errors(found, reference).tolist()
    assert max(errors) <= case.tolerance, (
        f"{what} differ by {max(errors):.1e}, more than {case.tolerance:g}, in layer "
        f"{case.encoder.layers[errors.index(max(errors))]}"
    )
