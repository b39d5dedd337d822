"""Receivers: the layers of a batch in the buffer, with their range and means."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pipeline.extract.stages.receive import DeviceReceiver, HostReceiver, open_receiver
from pipeline.store.format.codecs import FLOAT16
from pipeline.store.format.pooling import pool

DEVICES = [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")),
]
COUNTS = [4, 1, 7]


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
    assert received.means is not None
    start = 0
    for count, means in zip(COUNTS, received.means, strict=True):
        expected = pool(stored[:, start : start + count])
        np.testing.assert_array_equal(means, expected)  # `verify` compares bits
        start += count
    assert received.means.dtype == np.float32


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
    if received.means is not None:
        np.testing.assert_array_equal(received.means[1], pool(stored[:, 4:]))


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
    assert np.array_equal(without.means, with_frames.means)
    assert np.array_equal(without.lowest, with_frames.lowest)


def test_the_device_decides() -> None:
    """A CPU copies nothing, so nothing is pending there."""
    receiver = open_receiver(torch.device("cpu"), FLOAT16)
    assert isinstance(receiver, HostReceiver)
    assert receiver.depth == 0
    assert DeviceReceiver(torch.device("cpu"), FLOAT16).depth == 1
