"""What every codec must satisfy.

A new codec is one more entry in `CODECS`.
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
from pipeline.store.format.codecs import DEFAULT_CODEC, FLOAT16, Codec, codec_of
from pipeline.store.format.identity import make_identity
from pipeline.store.format.layout import CHUNK_FRAMES, Layout
from pipeline.store.tensors import decode_into, encode_into, torch_dtype
from pipeline.store.write.buffer import UnitBuffer
from tests.helpers.fake_store import attributes

CODECS = (FLOAT16,)
each_codec = pytest.mark.parametrize("codec", CODECS, ids=lambda codec: codec.name)


def finite(codec: Codec) -> st.SearchStrategy[npt.NDArray[np.float32]]:
    """Arrays of values that the codec can store, of any magnitude."""
    largest = float(np.nextafter(np.float32(codec.largest), np.float32(0)))
    values = st.floats(-largest, largest, width=32)
    return hnp.arrays(np.float32, hnp.array_shapes(max_dims=3, max_side=8), elements=values)


@each_codec
@given(data=st.data())
def test_a_stored_value_survives_the_round_trip(codec: Codec, data: st.DataObject) -> None:
    """Encoding is deterministic, keeps the shape, and encodes its own result to the same bytes."""
    values = data.draw(finite(codec))
    stored = codec.encode(values)
    assert stored.shape == values.shape
    assert stored.dtype == codec.dtype
    assert stored.nbytes == values.size * codec.bytes_per_value
    decoded = codec.decode(stored)
    assert decoded.dtype == np.float32
    assert np.isfinite(decoded).all()
    assert codec.encode(decoded).tobytes() == stored.tobytes()
    assert codec.encode(values.copy()).tobytes() == stored.tobytes()


@each_codec
@given(data=st.data())
def test_a_value_depends_on_no_other(codec: Codec, data: st.DataObject) -> None:
    """A frame that is encoded separately has the same bytes."""
    values = data.draw(finite(codec))
    whole = codec.encode(values)
    for i in range(len(values)):
        assert codec.encode(values[i : i + 1]).tobytes() == whole[i : i + 1].tobytes()


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
    ends = np.array([-codec.largest, codec.largest], np.float32)
    assert codec.fits(-codec.largest, codec.largest)
    np.testing.assert_array_equal(codec.decode(codec.encode(ends)), ends)
    assert not codec.fits(0.0, float(np.nextafter(ends[1], np.float32(np.inf))))


@each_codec
@given(data=st.data())
def test_the_fill_is_distinguished_from_values(codec: Codec, data: st.DataObject) -> None:
    """Bit for bit; a single flipped bit of it is found, even if the value is another NaN."""
    shape = data.draw(hnp.array_shapes(max_dims=2, max_side=8))
    blank = np.full(shape, codec.fill, codec.dtype)
    assert codec.is_fill(blank)
    assert not codec.is_fill(codec.encode(data.draw(finite(codec))))
    raw = blank.reshape(-1).view(np.uint8)
    at = data.draw(st.integers(0, len(raw) - 1))
    raw[at] ^= 1 << data.draw(st.integers(0, 7))
    assert not codec.is_fill(blank)


@each_codec
def test_it_is_little_endian_and_a_zarr_data_type(codec: Codec) -> None:
    """The name is the one that the array's metadata uses."""
    assert np.dtype(codec.name) == codec.dtype.newbyteorder("=")
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
    values = data.draw(finite(codec))
    stored = np.empty(values.shape, codec.dtype)
    encode_into(codec, torch.from_numpy(values), stored)
    assert stored.tobytes() == codec.encode(values).tobytes()
    decoded = torch.empty(values.shape)
    decode_into(codec, stored, decoded)
    assert decoded.numpy().tobytes() == codec.decode(stored).tobytes()
    if codec.is_rounding:
        rounded = torch.from_numpy(values).to(torch_dtype(codec))
        assert rounded.numpy().tobytes() == stored.tobytes()


class Halving:
    """A codec that does not round to its dtype: values in steps of a half, in one byte."""

    name, dtype, bytes_per_value, largest = "int8", np.dtype(np.int8), 1, 63.0
    fill, is_rounding = -128, False

    def encode(self, values: np.ndarray) -> np.ndarray:
        return np.rint(values * 2).astype(np.int8)

    def decode(self, stored: np.ndarray) -> np.ndarray:
        return stored.astype(np.float32) / 2


def test_a_codec_that_does_not_round_encodes_itself() -> None:
    """Torch's own conversion would give other values."""
    codec = Halving()
    out = np.zeros((2, 3), np.int8)
    encode_into(codec, torch.tensor([[1.0, -2.5], [0.5, 63.0]]), out[:, 1:])
    assert out.tolist() == [[0, 2, -5], [0, 1, 126]]
    decoded = torch.empty(2, 3)
    decode_into(codec, out, decoded)
    assert decoded.tolist() == [[0, 1, -2.5], [0, 0.5, 63]]


@each_codec
def test_layouts_and_buffers_follow_the_codec(codec: Codec) -> None:
    """Sizes, metadata and unused frames."""
    layout = Layout((1, 2), 3, CHUNK_FRAMES, 4, codec)
    assert layout.chunk_bytes == CHUNK_FRAMES * 3 * codec.bytes_per_value
    assert layout.frames_document(1)["data_type"] == codec.name
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
    with pytest.raises(StoreError, match="stored as int4; this strata reads float16"):
        layout_of(group)
