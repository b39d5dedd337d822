"""Times of frames, parts of an utterance in seconds, and frames at a lower rate."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import ConfigError, UtteranceNotFoundError
from pipeline.store.format.codecs import INT8
from pipeline.store.format.geometry import FrameGeometry
from pipeline.store.read.features import FeatureStore
from pipeline.store.read.opening import open_store
from pipeline.store.read.timing import frame_times, frames_between, join_frames
from tests.helpers.feature_stores import make_store

WAV2VEC2 = FrameGeometry(16_000, 320, 400)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> FeatureStore:
    """Utterances of 101, 7 and 1 frames; the first is in two pieces."""
    root = tmp_path_factory.mktemp("timing") / "store"
    make_store(root, [101, 7, 1], pieces={0: 2})
    return open_store(root)


def test_times_are_those_of_what_the_encoder_sees(store: FeatureStore) -> None:
    """Frame f of wav2vec 2.0 sees 25 ms from 20 f ms, across pieces, too."""
    times = store.times(0)
    assert [len(array) for array in times] == [101] * 3
    assert times.start_s[[0, 1, 100]] == pytest.approx([0.0, 0.02, 2.0])
    assert times.centre_s[[0, 1, 100]] == pytest.approx([0.0125, 0.0325, 2.0125])
    assert times.stop_s[[0, 1, 100]] == pytest.approx([0.025, 0.045, 2.025])
    with pytest.raises(UtteranceNotFoundError):
        store.times("none")


@given(
    start_s=st.floats(0, 3),
    length_s=st.floats(0, 3),
    hop=st.sampled_from([160, 320]),
    field=st.sampled_from([320, 400]),
)
def test_a_part_in_seconds_has_the_frames_whose_centres_lie_in_it(
    start_s: float, length_s: float, hop: int, field: int
) -> None:
    """Compared with all centres, one by one; parts side by side share no frame and miss none."""
    geometry = FrameGeometry(16_000, hop, field)
    stop_s = start_s + length_s
    centres = frame_times(geometry, 900).centre_s
    away = (np.abs(centres - start_s) > 1e-9) & (np.abs(centres - stop_s) > 1e-9)
    first, last = frames_between(geometry, start_s, stop_s)
    assert first is not None
    assert last is not None
    chosen = np.zeros(900, bool)
    chosen[first:last] = True
    expected = (centres >= start_s) & (centres < stop_s)
    assert (chosen == expected)[away].all()
    assert frames_between(geometry, stop_s, None) == (last, None)


def test_a_frame_on_the_bound_belongs_to_what_begins_there() -> None:
    """Whatever the rounding of its time."""
    for frame in range(0, 3000, 7):
        centre_s = 0.0125 + frame * 0.02
        assert frames_between(WAV2VEC2, centre_s, centre_s) == (frame, frame)


@pytest.mark.parametrize("key", [0, 1, 2])
def test_reads_in_seconds_are_reads_of_these_frames(store: FeatureStore, key: int) -> None:
    """A part beyond the end has no frames."""
    whole, centres = store.read(key), torch.from_numpy(store.times(key).centre_s)
    for start_s, stop_s in (
        (None, None),
        (0, 0.06),
        (0.05, None),
        (None, 1.0),
        (1.0, 1.5),
        (9, 10),
    ):
        chosen = (centres >= (start_s or 0)) & (centres < (100 if stop_s is None else stop_s))
        found = store.read(key, start_s=start_s, stop_s=stop_s)
        assert torch.equal(found, whole[:, chosen])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"start": 1, "stop_s": 2.0}, "not both"),
        ({"start_s": -0.1}, "start_s is -0.1; expected seconds"),
        ({"stop_s": "2"}, "stop_s is '2'; expected seconds"),
        ({"stop_s": float("nan")}, "stop_s is nan"),
        ({"rate_hz": 30}, "expected 50 divided by a whole number, such as 50, 25, 12.5, 10"),
        ({"rate_hz": 100}, "rate_hz is 100"),
        ({"rate_hz": 0}, "rate_hz is 0"),
        ({"rate_hz": 1e-320}, "rate_hz is 1e-320"),
        ({"rate_hz": "25"}, "rate_hz is '25'"),
        ({"rate_hz": 25, "reduction": "max"}, "reduction is 'max'; expected one of mean, stride"),
    ],
)
def test_what_is_no_part_or_rate_is_refused(
    store: FeatureStore, arguments: dict[str, Any], message: str
) -> None:
    """Before anything is read."""
    with pytest.raises(ConfigError, match=message):
        store.read(0, **arguments)


@pytest.mark.parametrize("n_joined", [1, 2, 3, 5, 50])
@pytest.mark.parametrize("key", [0, 1, 2])
def test_frames_at_a_lower_rate_are_means_or_every_nth(
    store: FeatureStore, key: int, n_joined: int
) -> None:
    """Means in float32 of groups from the first frame that is read; the last may be smaller."""
    frames = store.read(key, start=1 if key == 0 else 0)
    arguments = {"rate_hz": 50 / n_joined, "start": 1 if key == 0 else 0}
    n = frames.shape[1]
    expected = torch.stack(
        [frames[:, i : i + n_joined].float().mean(1) for i in range(0, n, n_joined)], dim=1
    ).half()
    assert torch.equal(store.read(key, **arguments), expected)
    strided = store.read(key, **arguments, reduction="stride")
    assert torch.equal(strided, frames[:, ::n_joined])
    assert strided.is_contiguous()
    for reduction in ("mean", "stride"):
        times = store.times(key, rate_hz=50 / n_joined, reduction=reduction)
        all_times = store.times(key)
        assert np.array_equal(times.start_s, all_times.start_s[::n_joined])
        lasts = [
            min(i + n_joined, len(all_times.stop_s)) - 1
            for i in range(0, len(all_times.stop_s), n_joined)
        ]
        stops = all_times.stop_s[lasts if reduction == "mean" else slice(None, None, n_joined)]
        assert np.array_equal(times.stop_s, stops)
        assert times.centre_s == pytest.approx((times.start_s + times.stop_s) / 2)


def test_no_frames_stay_none() -> None:
    """Of an empty part."""
    assert join_frames(torch.zeros(2, 0, 4), 3, "mean").shape == (2, 0, 4)


def test_int8_and_several_stores_read_so_too(tmp_path: Path) -> None:
    """Of what `read` returns otherwise."""
    for name in ("a", "b"):
        make_store(tmp_path / name, [60], codec=INT8, ids=[name])
    store = open_store([tmp_path / "a", tmp_path / "b"])
    for key in ("a", "b"):
        frames = store.read(key, [2])
        assert torch.equal(store.read(key, [2], start_s=0.5), frames[:, 25:])
        expected = torch.stack([frames[:, i : i + 2].float().mean(1) for i in range(0, 60, 2)], 1)
        assert torch.equal(store.read(key, [2], rate_hz=25), expected.half())
        assert len(store.times(key).start_s) == 60
