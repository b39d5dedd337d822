"""Conformance suite of encoders and families; contracts in `pipeline/encoders/base.py`."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial

import pytest
import torch

from pipeline.config import ModelConfig
from pipeline.encoders import registry
from pipeline.encoders.base import Encoder
from pipeline.encoders.clips import encode_clips, encode_windows
from pipeline.encoders.registry import find_family, register_family
from pipeline.encoders.selfcheck import relative_errors, selfcheck
from pipeline.encoders.settings import PRECISIONS, resolve_settings
from pipeline.errors import ConfigError
from pipeline.store.format.geometry import FrameGeometry
from tests.helpers.encoder_kinds import VARIANTS, small_encoder, speech
from tests.helpers.fake_encoders import FIXED_WINDOW, NARROW, FakeFamily

WINDOWS = {"max_window_s": 4.0, "context_s": 0.5}
FAMILIES = {
    "tiny": (find_family("torchaudio"), ModelConfig("tiny", weights="random")),
    "narrow-band": (FakeFamily(NARROW), ModelConfig("narrow-band")),
    "fixed-window": (FakeFamily(FIXED_WINDOW), ModelConfig("fixed-window")),
}


def loader(name: str) -> Callable[[], Encoder]:
    """Return the loader of an encoder of `FAMILIES`, as in a worker's job."""
    family, model = FAMILIES[name]
    settings = resolve_settings(family.describe(model), device="cpu", **WINDOWS)
    return partial(family.load, model, settings)


@dataclass(frozen=True)
class Case:
    """One encoder, and the relative error due to rounding."""

    encoder: Encoder
    tolerance: float = 1e-5


@cache
def case(name: str) -> Case:
    if name in FAMILIES:
        return Case(loader(name)())
    return Case(small_encoder(name, **WINDOWS))


@pytest.fixture(params=[*FAMILIES, "wavlm_base", "wavlm_large", "hubert_large", *VARIANTS])
def one(request: pytest.FixtureRequest) -> Case:
    """One encoder of each family, and small ones of the kinds that differ in their blocks."""
    return case(request.param)


def border_lengths(geometry: FrameGeometry) -> list[int]:
    """Lengths around the borders of the first frames, and two longer ones."""
    one, hop = geometry.n_samples(1), geometry.hop_samples
    borders = [one - 1, one, one + 1, one + hop - 1, one + hop, one + hop + 1]
    return sorted({1, *borders, 7 * hop, 50 * hop + 13})


def test_frame_counts_are_those_of_the_geometry(one: Case) -> None:
    """For lengths around the borders of the first frames, separately and in a batch."""
    encoder = one.encoder
    lengths = border_lengths(encoder.geometry)
    waveforms = [speech(n, seed) for seed, n in enumerate(lengths)]
    counts = [encoder.geometry.n_frames(n) for n in lengths]
    layers = list(encoder.encode_batch(waveforms))
    assert [layer.shape for layer in layers] == [(sum(counts), encoder.dim)] * len(encoder.layers)
    for waveform, count in zip(waveforms, counts, strict=True):
        assert {len(layer) for layer in encoder.encode_batch([waveform])} == {count}


def test_a_layer_stays_as_it_is_while_the_next_ones_are_computed(one: Case) -> None:
    """The caller may copy it meanwhile."""
    layers = one.encoder.encode_batch([speech(one.encoder.geometry.sample_rate_hz)])
    pairs = [(layer, layer.clone()) for layer in layers]
    assert all(torch.equal(kept, copy) for kept, copy in pairs)


def test_batch_mates_change_nothing(one: Case) -> None:
    """Features are the same with a long loud and a short quiet batch-mate as without."""
    encoder = one.encoder
    rate_hz = encoder.geometry.sample_rate_hz
    utterance = speech(rate_hz, 1)
    mates = [30 * speech(3 * rate_hz, 2), 0.01 * speech(rate_hz // 10, 3)]
    [alone] = encode_clips(encoder, [utterance])
    for batch, place in (([utterance, *mates], 0), ([*mates, utterance], 2)):
        errors = relative_errors(encode_clips(encoder, batch)[place], alone)
        assert errors.max() <= one.tolerance
    assert selfcheck(encoder, [utterance, *mates]).ok


def test_windows_cover_an_utterance_exactly(one: Case) -> None:
    """Together, the windows keep every frame once, in order."""
    encoder = one.encoder
    waveform = speech(11 * encoder.geometry.sample_rate_hz + 17)
    windows = encoder.windows.plan(waveform.numel())
    assert len(windows) > 2
    stats = encoder.utterance_stats(waveform)
    at = 0
    for (start, features), window in zip(
        encode_windows(encoder, waveform, windows, stats), windows, strict=True
    ):
        assert start == window.keep_start == at
        n_kept = window.keep_stop - window.keep_start
        assert features.shape == (len(encoder.layers), n_kept, encoder.dim)
        at += n_kept
    assert at == encoder.geometry.n_frames(waveform.numel())


def test_a_window_needs_only_its_samples_and_the_statistics(one: Case) -> None:
    """A worker that streams the recording and keeps one window gets identical features."""
    encoder = one.encoder
    waveform = speech(11 * encoder.geometry.sample_rate_hz)
    windows = encoder.windows.plan(waveform.numel())
    stats = encoder.utterance_stats(waveform)
    together = dict(encode_windows(encoder, waveform, windows, stats))
    for window in windows[::-1]:
        accumulator = encoder.statistics_accumulator()
        for block in waveform.split(12_345):
            accumulator.update(block)
        part = waveform[window.sample_start : window.sample_stop]
        [(start, alone)] = encode_windows(
            encoder,
            part,
            [window],
            encoder.utterance_stats(accumulator.finish()),
            sample_start=window.sample_start,
        )
        assert start == window.keep_start
        assert torch.equal(alone, together[start])


def test_windows_may_share_a_batch(one: Case) -> None:
    """With each other and with whole utterances, each with its own statistics."""
    encoder = one.encoder
    waveform = speech(11 * encoder.geometry.sample_rate_hz)
    windows = encoder.windows.plan(waveform.numel())
    stats = encoder.utterance_stats(waveform)
    whole = 0.3 * speech(encoder.geometry.sample_rate_hz, 4) + 0.2
    parts = [waveform[window.sample_start : window.sample_stop] for window in windows]
    found = encode_clips(encoder, [*parts, whole], stats=[stats] * len(parts) + [None])
    [alone] = encode_clips(encoder, [whole])
    assert relative_errors(found[-1], alone).max() <= one.tolerance
    kept = encode_windows(encoder, waveform, windows, stats)
    for features, window, (_, separate) in zip(found[:-1], windows, kept, strict=True):
        first = window.keep_start - window.feed_start
        part = features[:, first : first + separate.shape[1]]
        assert relative_errors(part, separate).max() <= one.tolerance


def test_precision_can_be_fp32(one: Case) -> None:
    """The worker reruns batches and windows in fp32, which is these encoders' own precision."""
    encoder = one.encoder
    assert encoder.precision in PRECISIONS
    waveform = speech(encoder.geometry.sample_rate_hz)
    [rerun] = encode_clips(encoder, [waveform], precision="fp32")
    assert torch.isfinite(rerun).all()
    assert torch.equal(rerun, encode_clips(encoder, [waveform], precision=None)[0])
    long = speech(9 * encoder.geometry.sample_rate_hz)
    [window, *_] = encoder.windows.plan(long.numel())
    stats = encoder.utterance_stats(long)
    [(_, kept)] = encode_windows(encoder, long, [window], stats, precision="fp32")
    assert torch.isfinite(kept).all()


def test_attributes_describe_the_encoder(one: Case) -> None:
    """Layers ascend; the identity is JSON, holds precision and layers, and no device."""
    encoder = one.encoder
    assert list(encoder.layers) == sorted(set(encoder.layers))
    assert json.loads(json.dumps(encoder.identity)) == encoder.identity
    assert encoder.identity["precision"] == encoder.precision
    assert encoder.identity["layers"] == list(encoder.layers)
    assert "device" not in json.dumps(encoder.identity)
    assert encoder.windows.geometry == encoder.geometry
    assert isinstance(encoder.weights_source, str)
    assert encoder.is_random == (encoder.weights_source == "random")
    if encoder.final_norm is not None:
        assert encoder.final_norm["weight"].shape == (encoder.dim,)
        assert encoder.final_norm.keys() == {"weight", "bias", "eps"}


def test_the_clock_is_entered_around_each_part(one: Case) -> None:
    """Front end, then transformer, and never while the caller has a layer."""
    entered, inside = [], []

    @contextmanager
    def clock(stage: str) -> Iterator[None]:
        entered.append(stage)
        inside.append(stage)
        yield
        inside.pop()

    encoder, before = one.encoder, one.encoder.clock
    encoder.clock = clock
    try:
        for _ in encoder.encode_batch([speech(encoder.geometry.sample_rate_hz)]):
            assert not inside
    finally:
        encoder.clock = before
    assert entered[0] == "front_end"
    assert set(entered[1:]) == {"transformer"}


@pytest.mark.parametrize("name", FAMILIES)
def test_loaders_pickle(name: str) -> None:
    """A worker loads the same encoder; the family need not be registered in its process."""
    first, second = loader(name)(), pickle.loads(pickle.dumps(loader(name)))()
    assert first.identity == second.identity
    waveform = speech(first.geometry.sample_rate_hz)
    pairs = zip(first.encode_batch([waveform]), second.encode_batch([waveform]), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("name", FAMILIES)
def test_descriptions_match_the_encoder(name: str) -> None:
    """Name, size, layers and geometry are known without weights; unknown models are refused."""
    family, model = FAMILIES[name]
    description, encoder = family.describe(model), loader(name)()
    assert (description.name, description.dim) == (encoder.name, encoder.dim)
    assert description.geometry == encoder.geometry
    assert encoder.layers == tuple(range(1, description.n_layers + 1))
    with pytest.raises(ConfigError, match="no model is called 'nothing_such'"):
        family.describe(ModelConfig("nothing_such"))


def test_families_are_found_by_source(monkeypatch: pytest.MonkeyPatch) -> None:
    """Registered families are found; the error for an unknown source names the known ones."""
    monkeypatch.setattr(registry, "_FAMILIES", dict(registry._FAMILIES))
    with pytest.raises(ConfigError, match="'mine'; expected torchaudio or huggingface"):
        find_family("mine")
    family = FakeFamily(NARROW)
    register_family("mine", family)
    assert find_family("mine") is family
