"""What every codec must satisfy.

A new codec is one more entry in `CODECS` of the format.
"""

from __future__ import annotations

import pickle

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from pipeline.errors import StoreError
from pipeline.store.documents import layout_of
from pipeline.store.format.codecs import (
    BFLOAT16,
    CODECS,
    DEFAULT_CODEC,
    FLOAT16,
    INT8,
    Codec,
    codec_of,
)
from pipeline.store.format.identity import make_identity
from pipeline.store.format.layout import CHUNK_FRAMES, Layout
from pipeline.store.tensors import as_tensor, decode_into, encode_into, measure, torch_dtype
from pipeline.store.write.buffer import UnitBuffer
from tests.helpers.fake_store import attributes

each_codec = pytest.mark.parametrize("codec", CODECS, ids=lambda codec: codec.name)


def finite(codec: Codec, least_dims: int = 2) -> st.SearchStrategy[npt.NDArray[np.float32]]:
    """Arrays [..., n_frames, dim] of values that the codec can store, of any magnitude."""
    largest = float(np.nextafter(np.float32(codec.largest), np.float32(0)))
    values = st.floats(-largest, largest, width=32)
    shapes = hnp.array_shapes(min_dims=least_dims, max_dims=3, max_side=8)
    return hnp.arrays(np.float32, shapes, elements=values)


@each_codec
@given(data=st.data())
def test_a_stored_value_survives_the_round_trip(codec: Codec, data: st.DataObject) -> None:
    """Encoding is deterministic, keeps the shape, and encodes its own result to the same bytes."""
    values = data.draw(finite(codec))
    scales = codec.measure(values)
    assert scales.shape == (*values.shape[:-2], codec.n_scales, values.shape[-1])
    assert scales.dtype == np.float32
    stored = codec.encode(values, scales)
    assert stored.shape == values.shape
    assert stored.dtype == codec.dtype
    assert stored.nbytes == values.size * codec.bytes_per_value
    decoded = codec.decode(stored, scales)
    assert decoded.dtype == np.float32
    assert np.isfinite(decoded).all()
    assert np.isfinite(decoded.astype(codec.value_dtype)).all()
    again = codec.encode(decoded, scales)
    if codec.n_scales:  # a step may be below the resolution of float32 at a large offset
        resolution = np.spacing(np.abs(values).max(axis=-2, keepdims=True).astype(np.float32))
        is_resolved = np.broadcast_to(scales[..., 1:, :] > 8 * resolution, values.shape)
        assert (again == stored)[is_resolved].all()
    else:
        assert again.tobytes() == stored.tobytes()
    assert codec.encode(values.copy(), scales.copy()).tobytes() == stored.tobytes()


@each_codec
@given(data=st.data())
def test_a_value_depends_on_no_other_utterance_layer_or_feature(
    codec: Codec, data: st.DataObject
) -> None:
    """A layer, or a feature, that is encoded separately has the same bytes and scales."""
    values = data.draw(finite(codec, 3))
    scales = codec.measure(values)
    whole = codec.encode(values, scales)
    for i, layer in enumerate(values):
        own = codec.measure(layer)
        assert own.tobytes() == scales[i].tobytes()
        assert codec.encode(layer, own).tobytes() == whole[i].tobytes()
    first = codec.measure(values[..., :1])
    assert codec.encode(values[..., :1], first).tobytes() == whole[..., :1].tobytes()


@given(data=st.data())
def test_int8_errs_by_half_a_step_at_most(data: st.DataObject) -> None:
    """And a step is 1/254 of what the feature varies; a constant feature is exact."""
    values = data.draw(finite(INT8))
    scales = INT8.measure(values)
    error = np.abs(INT8.decode(INT8.encode(values, scales), scales).astype("f8") - values)
    width = (values.max(-2, keepdims=True).astype("f8") - values.min(-2, keepdims=True)) / 254
    largest = np.abs(values).max(-2, keepdims=True)
    assert (error <= 0.5 * width + 2 * np.spacing(largest) + 1e-28).all()
    smallest = 2e-45  # half of the smallest float32 is no float32
    assert (error[np.broadcast_to(width == 0, error.shape)] <= smallest).all()


def test_int8_frames_do_not_depend_on_their_order() -> None:
    """Scales follow from the smallest and the largest value alone."""
    values = np.random.default_rng(0).normal(3, 2, (300, 5)).astype("f4")
    order = np.random.default_rng(1).permutation(300)
    scales = INT8.measure(values)
    assert INT8.measure(values[order]).tobytes() == scales.tobytes()
    whole = INT8.encode(values, scales)
    assert INT8.encode(values[order], scales).tobytes() == whole[order].tobytes()
    assert whole.min() == -127
    assert whole.max() == 127


def test_bfloat16_is_that_of_torch() -> None:
    """Bit for bit, with ties to even."""
    bits = np.random.default_rng(0).integers(0, 0x7F7F_0000, 10_000, np.uint32)
    ties = np.array([0x3F80_8000, 0x3F81_8000, 0xBF80_8000, 0, 0x8000_0000], np.uint32)
    values = np.concatenate([bits, ties]).view(np.float32)[None]
    expected = torch.from_numpy(values).bfloat16()
    stored = BFLOAT16.encode(values, BFLOAT16.measure(values))
    assert torch.equal(torch.from_numpy(stored).view(torch.bfloat16), expected)
    decoded = BFLOAT16.decode(stored, BFLOAT16.measure(values))
    assert torch.equal(torch.from_numpy(decoded), expected.float())


@each_codec
@given(
    low=st.floats(allow_nan=True, allow_infinity=True),
    high=st.floats(allow_nan=True, allow_infinity=True),
)
def test_the_range_rule(codec: Codec, low: float, high: float) -> None:
    """Values fit if and only if both ends are within the range; NaN and infinity never do."""
    expected = abs(low) <= codec.largest and abs(high) <= codec.largest
    if low <= high or np.isnan(low) or np.isnan(high):
        assert codec.fits(low, high) == expected


@each_codec
def test_the_ends_of_the_range_fit(codec: Codec) -> None:
    """And decode to themselves; the next float32 does not fit."""
    ends = np.array([[-codec.largest], [codec.largest]], np.float32)
    assert codec.fits(-codec.largest, codec.largest)
    scales = codec.measure(ends)
    decoded = codec.decode(codec.encode(ends, scales), scales)
    np.testing.assert_allclose(decoded, ends, rtol=1e-6 if codec.n_scales else 0)
    assert np.isfinite(decoded.astype(codec.value_dtype)).all()
    assert not codec.fits(0.0, 1.0001 * codec.largest)


@each_codec
@given(data=st.data())
def test_the_fill_is_distinguished_from_values(codec: Codec, data: st.DataObject) -> None:
    """Bit for bit; a single flipped bit of it is found, even if the value is another NaN."""
    shape = data.draw(hnp.array_shapes(max_dims=2, max_side=8))
    blank = np.full(shape, codec.fill, codec.dtype)
    assert codec.is_fill(blank)
    values = data.draw(finite(codec))
    assert not codec.is_fill(codec.encode(values, codec.measure(values)))
    raw = blank.reshape(-1).view(np.uint8)
    at = data.draw(st.integers(0, len(raw) - 1))
    raw[at] ^= 1 << data.draw(st.integers(0, 7))
    assert not codec.is_fill(blank)


@each_codec
def test_it_is_little_endian_and_a_zarr_data_type(codec: Codec) -> None:
    """The array's metadata names the type of the stored values."""
    assert np.dtype(codec.zarr_type) == codec.dtype.newbyteorder("=")
    assert codec.dtype.str[0] in "<|"
    assert codec.bytes_per_value == codec.dtype.itemsize


@each_codec
def test_it_is_found_by_its_name_and_pickles(codec: Codec) -> None:
    """A pickled layout names its codec."""
    assert codec_of(codec.name) is codec
    copy = pickle.loads(pickle.dumps(Layout((1,), 2, CHUNK_FRAMES, 1, codec)))
    assert copy.codec == codec
    assert repr(codec.name) in repr(codec)


@each_codec
@given(data=st.data())
def test_torch_and_numpy_give_the_same_bytes(codec: Codec, data: st.DataObject) -> None:
    """Whether features are encoded by the worker or by the codec itself."""
    values = data.draw(finite(codec, 3))[0]
    scales = measure(codec, torch.from_numpy(values))
    assert scales.tobytes() == codec.measure(values).tobytes()
    stored = np.empty(values.shape, codec.dtype)
    encode_into(codec, torch.from_numpy(values), stored, scales)
    assert stored.tobytes() == codec.encode(values, scales).tobytes()
    for dtype in (torch.float32, torch.from_numpy(np.empty(0, codec.value_dtype)).dtype):
        decoded = torch.empty(values.shape, dtype=dtype)
        decode_into(codec, stored, decoded, scales)
        expected = torch.from_numpy(codec.decode(stored, scales)).to(dtype)
        assert torch.equal(decoded, expected)
    if codec.is_rounding:
        rounded = torch.from_numpy(values).to(torch_dtype(codec))
        assert torch.equal(rounded, as_tensor(codec, stored))


def test_long_utterances_are_decoded_by_blocks() -> None:
    """Blocks of any length give the bytes of the whole."""
    values = torch.randn(500, 300, generator=torch.Generator().manual_seed(0))
    scales = measure(INT8, values)
    stored, decoded = np.empty((500, 300), np.int8), torch.empty(500, 300)
    encode_into(INT8, values, stored, scales)
    decode_into(INT8, stored, decoded, scales)
    assert decoded.numpy().tobytes() == INT8.decode(stored, scales).tobytes()


class Halving:
    """A codec that is neither: values in steps of a half, in one byte."""

    name, dtype, bytes_per_value, largest = "halves", np.dtype(np.int8), 1, 63.0
    fill, is_rounding, n_scales = -128, False, 0

    def measure(self, values: np.ndarray) -> np.ndarray:
        return np.empty((0, values.shape[-1]), np.float32)

    def encode(self, values: np.ndarray, scales: np.ndarray) -> np.ndarray:
        return np.rint(values * 2).astype(np.int8)

    def decode(self, stored: np.ndarray, scales: np.ndarray) -> np.ndarray:
        return stored.astype(np.float32) / 2


def test_a_codec_that_does_not_round_encodes_itself() -> None:
    """Torch's own conversion would give other values."""
    codec, values = Halving(), torch.tensor([[1.0, -2.5], [0.5, 63.0]])
    out = np.zeros((2, 3), np.int8)
    scales = measure(codec, values)
    encode_into(codec, values, out[:, 1:], scales)
    assert out.tolist() == [[0, 2, -5], [0, 1, 126]]
    decoded = torch.empty(2, 3)
    decode_into(codec, out, decoded, scales)
    assert decoded.tolist() == [[0, 1, -2.5], [0, 0.5, 63]]


@each_codec
def test_layouts_and_buffers_follow_the_codec(codec: Codec) -> None:
    """Sizes, metadata and unused frames."""
    layout = Layout((1, 2), 3, CHUNK_FRAMES, 4, codec)
    assert layout.chunk_bytes == CHUNK_FRAMES * 3 * codec.bytes_per_value
    assert layout.frames_document(1)["data_type"] == codec.zarr_type
    assert layout.format_version == (1 if codec == FLOAT16 else 2)
    buffer = UnitBuffer(layout)
    buffer.start(0)
    assert buffer.frames.dtype == codec.dtype
    assert codec.is_fill(buffer.frames)


def test_the_codec_is_identity() -> None:
    """Stores whose attributes name none are of format 1, and hold its codec."""
    assert make_identity({}, {}, {})["dtype"] == "float16" == DEFAULT_CODEC.name
    layout = Layout((1, 2), 3, CHUNK_FRAMES, 4)
    group = attributes(layout)
    assert layout_of(group).codec is FLOAT16
    group["identity"] |= {"dtype": "float16"}
    assert layout_of(group).codec is FLOAT16


def test_an_unknown_codec_is_refused() -> None:
    """The message has its name and the known ones."""
    group = attributes(Layout((1, 2), 3, CHUNK_FRAMES, 4))
    group["identity"] |= {"dtype": "int4"}
    with pytest.raises(
        StoreError, match="stored as int4; this strata reads float16, float32, bfloat16, int8"
    ):
        layout_of(group)
