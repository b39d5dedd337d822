"""Frame counts, and the geometry in a store's attributes."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import DamagedError
from pipeline.store.format.geometry import FrameGeometry
from pipeline.store.read.timing import frame_times

WAV2VEC2 = FrameGeometry(16_000, 320, 400)


@st.composite
def geometries(draw: st.DrawFn) -> FrameGeometry:
    """Any hop, a receptive field of at least one hop, and any padding that it can hold."""
    hop = draw(st.integers(1, 500))
    field = draw(st.integers(hop, 2000))
    left = draw(st.integers(0, field))
    pads_end = draw(st.booleans())
    least = 1 if hop == 1 else 0  # samples of a frame beside the padding
    left = min(left, field - least)
    right = 0 if pads_end else draw(st.integers(0, field - left - least))
    return FrameGeometry(draw(st.integers(1, 48_000)), hop, field, pads_end, left, right)


@given(geometries(), st.integers(1, 5_000))
def test_the_samples_of_frames_give_exactly_these_frames(
    geometry: FrameGeometry, n_frames: int
) -> None:
    """`n_samples` and `n_frames` agree, so windows of whole hops move no frame."""
    n_samples = geometry.n_samples(n_frames)
    assert geometry.n_frames(n_samples) == n_frames
    if geometry.pads_end:
        assert geometry.n_frames(n_samples + 1) == n_frames + 1
    elif n_frames > 1:
        assert geometry.n_frames(n_samples - 1) == n_frames - 1


@given(geometries(), st.integers(1, 100_000))
def test_the_count_is_that_of_the_definition(geometry: FrameGeometry, n_samples: int) -> None:
    """Whole receptive fields, padding included, or started hops; never none."""
    if geometry.pads_end:
        whole = len(range(0, n_samples, geometry.hop_samples))
    else:
        padding = geometry.left_padding_samples + geometry.right_padding_samples
        starts = range(0, n_samples + padding, geometry.hop_samples)
        field = geometry.receptive_field_samples
        whole = sum(start + field <= n_samples + padding for start in starts)
    assert geometry.n_frames(n_samples) == max(1, whole)


PADDED = FrameGeometry(16_000, 1280, 2640, False, 1320, 1320)


def test_the_centre_of_the_first_frame_is_without_the_padding() -> None:
    """200 samples after the start for wav2vec 2.0, at the start where half a field is padded."""
    assert WAV2VEC2.centre_samples == 200
    assert PADDED.centre_samples == 0
    assert frame_times(PADDED, 2).centre_s.tolist() == [0.0, 0.08]
    assert frame_times(PADDED, 2).start_s.tolist() == [0.0, 0.0]


@pytest.mark.parametrize(
    "geometry", [WAV2VEC2, FrameGeometry(8_000, 80, 240, pads_end=True), PADDED]
)
def test_it_survives_the_attributes(geometry: FrameGeometry) -> None:
    """What is written as JSON is read back equal."""
    attributes = json.loads(json.dumps({"geometry": geometry.to_dict()}))
    assert FrameGeometry.from_attributes(attributes) == geometry


def test_early_stores_have_the_geometry_of_wav2vec2() -> None:
    """Stores of format version 1 that do not name any."""
    assert FrameGeometry.from_attributes({"sample_rate_hz": 16_000}) == WAV2VEC2
    assert WAV2VEC2.frame_rate_hz == 50.0


@pytest.mark.parametrize("damaged", [[], {"hop": 3}, {"sample_rate_hz": 0}, "50 Hz"])
def test_a_damaged_geometry_is_named(damaged: object) -> None:
    """A store whose attributes were edited says so."""
    with pytest.raises(DamagedError, match=r"geometry in features\.zarr/zarr\.json"):
        FrameGeometry.from_attributes({"geometry": damaged})


@pytest.mark.parametrize(
    "wrong",
    [
        (0, 320, 400),
        (16_000, 320.0, 400),
        (16_000, 320, True),
        (16_000, 320, 400, False, -1),
        (16_000, 320, 400, False, 201, 200),
        (16_000, 1, 400, False, 200, 200),
    ],
)
def test_what_is_no_geometry_is_refused(wrong: tuple[int, ...]) -> None:
    """Numbers must be whole and positive, and a frame sees more than padding."""
    with pytest.raises(ValueError, match="is no geometry"):
        FrameGeometry(*wrong)
