"""Receivers: the layers of a batch in the buffer, with their range and statistics."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pipeline.extract.stages.clip_statistics import ClipFrames
from pipeline.extract.stages.receive import (
    DeviceReceiver,
    HostReceiver,
    Receiver,
    ScaledClip,
    open_receiver,
)
from pipeline.store.format.codecs import BFLOAT16, FLOAT16, FLOAT32, INT8, Codec
from pipeline.store.format.pooling import STATISTICS, is_same, pool
from pipeline.store.tensors import as_tensor

DEVICES = [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")),
]
COUNTS = [4, 1, 7]
NO_SCALES = np.empty((3, 0, 6), np.float32)


def features(seed: int = 0, device: str = "cpu") -> list[torch.Tensor]:
    """Three layers of 12 frames."""
    random = torch.Generator().manual_seed(seed)
    return [(100 * torch.randn(12, 6, generator=random)).to(device) for _ in range(3)]


def receivers(device: str) -> list:
    return [HostReceiver(FLOAT16), DeviceReceiver(torch.device(device), FLOAT16)]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("kind", [0, 1])
def test_layers_arrive_rounded_with_their_range(device: str, kind: int) -> None:
    """All frames, in order, as the codec rounds them."""
    layers = features(device=device)
    buffer = np.full((3, 20, 6), np.nan, np.float16)
    received = receivers(device)[kind].receive(layers, None, COUNTS, buffer[:, 5:17])()
    expected = torch.stack(layers).cpu()
    assert np.array_equal(buffer[:, 5:17], expected.half().numpy())
    assert np.isnan(buffer[:, :5]).all()
    assert np.isnan(buffer[:, 17:]).all()
    assert np.array_equal(received.lowest, expected.amin((1, 2)).numpy())
    assert np.array_equal(received.highest, expected.amax((1, 2)).numpy())
    assert received.fits(FLOAT16)


@pytest.mark.parametrize("device", DEVICES)
def test_means_are_those_of_the_stored_values(device: str) -> None:
    """As the host computes them from the buffer, for each clip."""
    layers, stored = features(device=device), np.empty((3, 12, 6), np.float16)
    received = DeviceReceiver(torch.device(device), FLOAT16).receive(layers, None, COUNTS, stored)()
    assert received.statistics is not None
    start = 0
    for count, means in zip(COUNTS, received.statistics, strict=True):
        expected = pool(FLOAT16, stored[:, start : start + count], NO_SCALES)
        np.testing.assert_array_equal(means, expected)  # `verify` compares bits
        start += count
    assert received.statistics.dtype == np.float32


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("kind", [0, 1])
def test_context_is_dropped(device: str, kind: int) -> None:
    """Only the kept frames count, for the values, the range and the means."""
    layers = features(device=device)
    kept = np.array([1, 2, 3, 4, 9, 10])
    layers[1][0, 0], layers[1][11, 5] = torch.nan, 1e9
    stored = np.empty((3, 6, 6), np.float16)
    received = receivers(device)[kind].receive(layers, kept, [4, 2], stored)()
    expected = torch.stack(layers).cpu()[:, torch.from_numpy(kept)]
    assert np.array_equal(stored, expected.half().numpy())
    assert received.fits(FLOAT16)
    if received.statistics is not None:
        expected = pool(FLOAT16, stored[:, 4:], NO_SCALES)
        np.testing.assert_array_equal(received.statistics[1], expected)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("kind", [0, 1])
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf, 65_505.0, -1e6])
def test_values_that_cannot_be_stored_are_reported(device: str, kind: int, value: float) -> None:
    """Without another pass, and without a warning from a library."""
    layers, stored = features(device=device), np.empty((3, 12, 6), np.float16)
    layers[2][7, 3] = value
    assert not receivers(device)[kind].receive(layers, None, COUNTS, stored)().fits(FLOAT16)


@pytest.mark.parametrize("device", DEVICES)
def test_two_batches_can_be_pending(device: str) -> None:
    """Each result is that of its own batch, although the next one was started before."""
    receiver = DeviceReceiver(torch.device(device), FLOAT16)
    sent = [features(seed, device) for seed in range(3)]
    outs = [np.empty((3, 12, 6), np.float16) for _ in sent]
    pending = [
        receiver.receive(layers, None, COUNTS, out) for layers, out in zip(sent, outs, strict=True)
    ]
    for layers, stored, wait in zip(sent, outs, pending, strict=True):
        expected = torch.stack(layers).cpu()
        assert np.array_equal(wait().highest, expected.amax((1, 2)).numpy())
        assert np.array_equal(stored, expected.half().numpy())


def test_frames_that_are_not_kept_stay_on_the_device() -> None:
    """Range and means are the same."""
    receiver, stored = (
        DeviceReceiver(torch.device("cpu"), FLOAT16),
        np.empty((3, 12, 6), np.float16),
    )
    with_frames = receiver.receive(features(), None, COUNTS, stored)()
    without = receiver.receive(features(), None, COUNTS, None)()
    assert np.array_equal(without.statistics, with_frames.statistics)
    assert np.array_equal(without.lowest, with_frames.lowest)


def test_the_device_decides() -> None:
    """A CPU copies nothing, so nothing is pending there."""
    receiver = open_receiver(torch.device("cpu"), FLOAT16)
    assert isinstance(receiver, HostReceiver)
    assert receiver.depth == 0
    assert DeviceReceiver(torch.device("cpu"), FLOAT16).depth == 1


def scaled_receivers(device: str) -> list[Receiver]:
    return [HostReceiver(INT8), DeviceReceiver(torch.device(device), INT8, STATISTICS)]


def scaled_clips(held: dict[int, int]) -> list[ScaledClip]:
    """Destinations of three clips; `held` has the frames of those that are windows."""
    return [
        ScaledClip(
            np.full((3, 2, 6), np.nan, np.float32),
            np.full((3, held[i], 6), np.nan, np.float32) if i in held else None,
        )
        for i in range(len(COUNTS))
    ]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("kind", [0, 1])
def test_int8_layers_arrive_as_the_codec_encodes_them(device: str, kind: int) -> None:
    """Each clip by its own scales, on the host and on the device alike."""
    layers = features(device=device)
    layers[1][4:5] *= 50  # the clip of one frame
    stored, clips = np.full((3, 12, 6), -128, np.int8), scaled_clips({})
    receiver = scaled_receivers(device)[kind]
    received = receiver.receive(layers, None, COUNTS, stored, clips)()
    values, first = torch.stack(layers).cpu().numpy(), 0
    assert np.array_equal(received.highest, values.max((1, 2)))
    for i, count in enumerate(COUNTS):
        part = values[:, first : first + count]
        scales = INT8.measure(part)
        assert clips[i].scales.tobytes() == scales.tobytes()
        assert np.array_equal(stored[:, first : first + count], INT8.encode(part, scales))
        if received.statistics is not None:
            expected = pool(INT8, stored[:, first : first + count], scales, STATISTICS)
            for name, found, right in zip(
                STATISTICS, received.statistics[i], expected, strict=True
            ):
                assert is_same(INT8, name, found, right), name
        first += count


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("kind", [0, 1])
def test_windows_wait_for_their_whole_utterance(device: str, kind: int) -> None:
    """Their values are held as they are; the other clips are encoded."""
    layers, clips = features(device=device), scaled_clips({2: 7})
    stored = np.full((3, 12, 6), -128, np.int8)
    scaled_receivers(device)[kind].receive(layers, None, COUNTS, stored, clips)()
    values = torch.stack(layers).cpu().numpy()
    assert np.array_equal(clips[2].held, values[:, 5:])
    assert np.isnan(clips[2].scales).all()
    assert np.array_equal(clips[0].scales, INT8.measure(values[:, :4]))


@pytest.mark.parametrize("codec", [FLOAT16, FLOAT32, BFLOAT16], ids=lambda codec: codec.name)
def test_a_device_computes_all_statistics(codec: Codec) -> None:
    """Those of the stored values, clip by clip, as the host does."""
    stored = np.empty((3, 12, 6), codec.dtype)
    receiver = DeviceReceiver(torch.device("cpu"), codec, STATISTICS)
    received = receiver.receive(features(), None, COUNTS, stored)()
    assert torch.equal(
        as_tensor(codec, stored), torch.stack(features()).to(as_tensor(codec, stored))
    )
    assert received.statistics.shape == (3, len(STATISTICS), 3, 6)
    first = 0
    for found, count in zip(received.statistics, COUNTS, strict=True):
        expected = pool(codec, stored[:, first : first + count], NO_SCALES, STATISTICS)
        for name, one, right in zip(STATISTICS, found, expected, strict=True):
            assert is_same(codec, name, one, right), name
        first += count


def test_statistics_of_a_clip_do_not_depend_on_the_others() -> None:
    """Of whole numbers, whose sums are exact, bit for bit."""
    steps = torch.randint(-127, 128, (12, 6), generator=torch.Generator().manual_seed(0))
    scales = torch.rand(3, 2, 6, generator=torch.Generator().manual_seed(1))
    together = ClipFrames(COUNTS, torch.device("cpu")).pool(steps.char(), STATISTICS, scales)
    alone = ClipFrames(COUNTS[2:], torch.device("cpu")).pool(
        steps[5:].char(), STATISTICS, scales[2:]
    )
    means = [STATISTICS.index(name) for name in ("mean", "max", "first", "last")]
    assert torch.equal(together[2, means], alone[0, means])
    torch.testing.assert_close(together[2], alone[0])


def test_other_statistics_do_not_match() -> None:
    """`is_same` tells rounding from another value."""
    right = np.random.default_rng(0).standard_normal((3, 6)).astype(np.float32)
    assert is_same(FLOAT32, "std", right, np.nextafter(right, np.float32(9)))
    assert not is_same(FLOAT32, "std", right, right * np.float32(1.001))
    assert not is_same(FLOAT16, "mean", right, np.nextafter(right, np.float32(9)))
    assert not is_same(INT8, "max", right, np.nextafter(right, np.float32(9)))
