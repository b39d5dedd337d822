"""What every encoder must do; see `pipeline.encoders.base.Encoder`."""

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
from pipeline.encoders.registry import find_family, register_family
from pipeline.encoders.selfcheck import relative_errors, selfcheck
from pipeline.encoders.settings import PRECISIONS, resolve_settings
from pipeline.errors import ConfigError
from pipeline.store.format.geometry import FrameGeometry
from tests.helpers.encoder_kinds import small_encoder, speech
from tests.helpers.fake_encoders import FIXED_WINDOW, NARROW, FakeFamily

WINDOWS = {"max_window_s": 4.0, "context_s": 0.5}
FAMILIES = {
    "tiny": (find_family("torchaudio"), ModelConfig("tiny", weights="random")),
    "narrow-band": (FakeFamily(NARROW), ModelConfig("narrow-band")),
    "fixed-window": (FakeFamily(FIXED_WINDOW), ModelConfig("fixed-window")),
}


def loader(name: str) -> Callable[[], Encoder]:
    """What loads an encoder of `FAMILIES`, as a worker gets it."""
    family, model = FAMILIES[name]
    settings = resolve_settings(family.describe(model), device="cpu", **WINDOWS)
    return partial(family.load, model, settings)


@dataclass(frozen=True)
class Case:
    """One encoder, and the relative error that rounding explains."""

    encoder: Encoder
    tolerance: float = 1e-5


@cache
def case(name: str) -> Case:
    if name in FAMILIES:
        return Case(loader(name)())
    return Case(small_encoder(name, **WINDOWS))


@pytest.fixture(params=[*FAMILIES, "wavlm_base", "wavlm_large", "hubert_large"])
def one(request: pytest.FixtureRequest) -> Case:
    """An encoder of each family; of the small kinds one with position bias, and pre-norm ones."""
    return case(request.param)


def wave(encoder: Encoder, n_samples: int, seed: int = 0) -> torch.Tensor:
    """A waveform of that many samples, whatever the encoder's rate."""
    return speech(n_samples, seed)


def interesting_lengths(geometry: FrameGeometry) -> list[int]:
    """Lengths around the borders of the first frames, and some beyond."""
    one, hop = geometry.n_samples(1), geometry.hop_samples
    borders = [one - 1, one, one + 1, one + hop - 1, one + hop, one + hop + 1]
    return sorted({1, *borders, 7 * hop, 50 * hop + 13})


def test_as_many_frames_as_the_geometry_says(one: Case) -> None:
    """For every length around the first frames' borders, alone and in a batch."""
    encoder = one.encoder
    lengths = interesting_lengths(encoder.geometry)
    waveforms = [wave(encoder, n, seed) for seed, n in enumerate(lengths)]
    features, counts = encoder.encode_batch(waveforms)
    assert counts == [encoder.geometry.n_frames(n) for n in lengths]
    assert features.shape == (len(encoder.layers), len(lengths), max(counts), encoder.dim)
    for waveform, count in zip(waveforms, counts, strict=True):
        alone, [n_frames] = encoder.encode_batch([waveform])
        assert n_frames == count == alone.shape[2]


def test_batch_mates_change_nothing(one: Case) -> None:
    """A loud long and a quiet short neighbour leave an utterance as it is alone."""
    encoder = one.encoder
    rate_hz = encoder.geometry.sample_rate_hz
    mine = wave(encoder, rate_hz, 1)
    mates = [30 * wave(encoder, 3 * rate_hz, 2), 0.01 * wave(encoder, rate_hz // 10, 3)]
    alone = encoder.encode_batch([mine])[0][:, 0]
    for batch, row in (([mine, *mates], 0), ([*mates, mine], 2)):
        features, counts = encoder.encode_batch(batch)
        errors = relative_errors(features[:, row, : counts[row]], alone)
        assert errors.max() <= one.tolerance
    assert selfcheck(encoder, [mine, *mates]).ok


def test_windows_cover_an_utterance_exactly(one: Case) -> None:
    """Their kept frames are all frames, in order, as many as the geometry says."""
    encoder = one.encoder
    waveform = wave(encoder, 11 * encoder.geometry.sample_rate_hz + 17)
    windows = encoder.windows.plan(waveform.numel())
    assert len(windows) > 2
    stats = encoder.utterance_stats(waveform)
    at = 0
    for (start, features), window in zip(
        encoder.encode_windows(waveform, windows, stats), windows, strict=True
    ):
        assert start == window.keep_start == at
        n_kept = window.keep_stop - window.keep_start
        assert features.shape == (len(encoder.layers), n_kept, encoder.dim)
        at += n_kept
    assert at == encoder.geometry.n_frames(waveform.numel())


def test_a_window_needs_only_its_samples_and_the_statistics(one: Case) -> None:
    """A worker that streams the recording and keeps one window's samples gets the same bits."""
    encoder = one.encoder
    waveform = wave(encoder, 11 * encoder.geometry.sample_rate_hz)
    windows = encoder.windows.plan(waveform.numel())
    together = dict(encoder.encode_windows(waveform, windows, encoder.utterance_stats(waveform)))
    for window in windows[::-1]:
        accumulator = encoder.statistics_accumulator()
        for block in waveform.split(12_345):
            accumulator.update(block)
        part = waveform[window.sample_start : window.sample_stop]
        [(start, alone)] = encoder.encode_windows(
            part,
            [window],
            encoder.utterance_stats(accumulator.finish()),
            sample_start=window.sample_start,
        )
        assert start == window.keep_start
        assert torch.equal(alone, together[start])


def test_fp32_may_be_asked_for(one: Case) -> None:
    """The worker reruns a batch in it, or a window; here it is the encoder's own precision."""
    encoder = one.encoder
    assert encoder.precision in PRECISIONS
    waveform = wave(encoder, encoder.geometry.sample_rate_hz)
    rerun, _ = encoder.encode_batch([waveform], precision="fp32")
    assert torch.isfinite(rerun).all()
    assert torch.equal(rerun, encoder.encode_batch([waveform], precision=None)[0])
    long = wave(encoder, 9 * encoder.geometry.sample_rate_hz)
    [window, *_] = encoder.windows.plan(long.numel())
    stats = encoder.utterance_stats(long)
    [(_, kept)] = encoder.encode_windows(long, [window], stats, precision="fp32")
    assert torch.isfinite(kept).all()


def test_it_says_what_it_is(one: Case) -> None:
    """Ascending layers, a JSON identity with precision and layers, and the origin of weights."""
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


def test_the_clock_is_entered_around_its_parts(one: Case) -> None:
    """Front end and transformer, in this order, once for a batch."""
    entered = []

    @contextmanager
    def clock(stage: str) -> Iterator[None]:
        entered.append(stage)
        yield

    encoder, before = one.encoder, one.encoder.clock
    encoder.clock = clock
    try:
        encoder.encode_batch([wave(encoder, encoder.geometry.sample_rate_hz)])
    finally:
        encoder.clock = before
    assert entered == ["front_end", "transformer"]


@pytest.mark.parametrize("name", FAMILIES)
def test_what_loads_it_pickles(name: str) -> None:
    """Another process makes the same encoder of it; the family need not be registered there."""
    first, second = loader(name)(), pickle.loads(pickle.dumps(loader(name)))()
    assert first.identity == second.identity
    waveform = wave(first, first.geometry.sample_rate_hz)
    assert torch.equal(first.encode_batch([waveform])[0], second.encode_batch([waveform])[0])


@pytest.mark.parametrize("name", FAMILIES)
def test_a_description_is_that_of_the_encoder(name: str) -> None:
    """What planning knows without the weights is what the encoder does."""
    family, model = FAMILIES[name]
    description, encoder = family.describe(model), loader(name)()
    assert (description.name, description.dim) == (encoder.name, encoder.dim)
    assert description.geometry == encoder.geometry
    assert encoder.layers == tuple(range(1, description.n_layers + 1))
    with pytest.raises(ConfigError, match="no model is called 'nothing_such'"):
        family.describe(ModelConfig("nothing_such"))


def test_families_are_found_by_source(monkeypatch: pytest.MonkeyPatch) -> None:
    """A family that was registered is found; an unknown source is refused with the known ones."""
    monkeypatch.setattr(registry, "_FAMILIES", dict(registry._FAMILIES))
    with pytest.raises(ConfigError, match="'mine'; expected torchaudio or huggingface"):
        find_family("mine")
    family = FakeFamily(NARROW)
    register_family("mine", family)
    assert find_family("mine") is family
