"""The optional C code gives the bits of the codec, and copies rows to their places."""

from __future__ import annotations

import ctypes
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.store.format.codecs import INT8
from pipeline.store.native import int8, mapped, rows
from pipeline.store.native.rows import RowPlaces, RowScatter
from pipeline.store.tensors import decode_into

needs_library = pytest.mark.skipif(not int8.best_level(), reason="no C compiler, or another CPU")


def case(n_frames: int, dim: int) -> tuple[np.ndarray, np.ndarray]:
    """Stored values and scales, with features that are constant, large and tiny."""
    random = np.random.default_rng(dim)
    values = random.standard_normal((n_frames, dim)).astype(np.float32)
    values *= 10.0 ** random.uniform(-9, 4, dim).astype(np.float32)
    values[:, ::5] = 3.25
    scales = INT8.measure(values)
    return INT8.encode(values, scales), scales


@needs_library
@pytest.mark.parametrize("level", [int8.AVX2, int8.AVX512])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize("dim", [1, 7, 8, 16, 23, 48, 768])
def test_it_gives_the_bits_of_the_codec(level: int, dtype: torch.dtype, dim: int) -> None:
    """For any number of features, with all instructions that this machine has."""
    if level > int8.best_level():
        pytest.skip("not on this CPU")
    stored, scales = case(33, dim)
    guarded = torch.full((35, dim), 7.0, dtype=dtype)
    out = guarded[1:34]
    assert int8.decode(torch.from_numpy(stored), torch.from_numpy(scales), out, level)
    expected = torch.from_numpy(INT8.decode(stored, scales)).to(dtype)
    assert out.numpy().tobytes() == expected.numpy().tobytes()
    assert (guarded[[0, 34]] == 7).all()


@needs_library
def test_all_steps_at_all_scales_are_equal() -> None:
    """Ties between two float16 values go to the even one, and overflow to infinity, as in torch."""
    steps = np.arange(-127, 128, dtype=np.int8)[:, None].repeat(64, 1)
    scales = np.stack([np.linspace(-9, 9, 64), 2.0 ** np.arange(-30, 34) * 1.00048828125])
    scales = scales.astype(np.float32)
    out = torch.empty(steps.shape, dtype=torch.float16)
    assert int8.decode(torch.from_numpy(steps), torch.from_numpy(scales), out)
    expected = torch.from_numpy(INT8.decode(steps, scales)).half()
    assert torch.equal(out, expected)


@needs_library
def test_other_destinations_are_left_to_torch() -> None:
    """Of another type, or not contiguous."""
    stored, scales = (torch.from_numpy(array) for array in case(4, 8))
    assert not int8.decode(stored, scales, torch.empty(4, 8, dtype=torch.float64))
    assert not int8.decode(stored, scales, torch.empty(4, 16)[:, ::2])


def test_without_the_library_torch_decodes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """To the same bits."""
    monkeypatch.setattr(int8, "LIBRARY", tmp_path / "none.so")
    int8._load.cache_clear()
    try:
        assert int8.best_level() == 0
        stored, scales = case(50, 768)
        out = torch.empty(50, 768)
        decode_into(INT8, stored, out, scales)
        assert out.numpy().tobytes() == INT8.decode(stored, scales).tobytes()
    finally:
        int8._load.cache_clear()


@needs_library
@pytest.mark.parametrize("number", [int8.INTERFACE + 1, None])
def test_a_decoder_of_another_version_is_not_used(
    number: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its functions may take other arguments, or be missing. Libraries of before have no number."""
    if number is None:
        monkeypatch.setattr(int8, "LIBRARY", rows.LIBRARY)
    else:
        monkeypatch.setattr(int8, "INTERFACE", number)
    int8._load.cache_clear()
    try:
        assert int8.best_level() == 0
        stored, scales = (torch.from_numpy(array) for array in case(4, 8))
        assert not int8.decode(stored, scales, torch.empty(4, 8))
    finally:
        int8._load.cache_clear()


@needs_library
@pytest.mark.parametrize("number", [rows.INTERFACE + 1, None])
def test_copies_of_another_version_are_not_used(
    number: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NumPy copies the rows."""
    if number is None:
        monkeypatch.setattr(rows, "LIBRARY", int8.LIBRARY)
    else:
        monkeypatch.setattr(rows, "INTERFACE", number)
    rows._load.cache_clear()
    try:
        assert not rows.is_compiled()
    finally:
        rows._load.cache_clear()


@needs_library
def test_the_library_is_that_of_this_source() -> None:
    """It exports what the module calls."""
    library = ctypes.CDLL(str(int8.LIBRARY))
    assert library.strata_int8_level() == int8.best_level()


@pytest.mark.parametrize("dim", [1, 31, 32, 768])
@pytest.mark.parametrize("is_compiled", [True, False])
def test_rows_go_to_their_places(
    dim: int, is_compiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of a part of the rows, in one column of two arrays; nothing else changes."""
    if not is_compiled:
        monkeypatch.setattr(rows, "_load", lambda: None)
    elif not rows.is_compiled():
        pytest.skip("no C compiler")
    random = np.random.default_rng(dim)
    memory = np.zeros(2 * 40 * 3 * dim + 64, np.float16)
    start = -memory.ctypes.data % 64 // 2  # the first array begins with a cache line
    out = memory[start : start + 2 * 40 * 3 * dim].reshape(2, 40, 3, dim)
    values = random.standard_normal((50, dim)).astype(np.float16)
    sources = np.arange(1, 50, 3), np.arange(2, 50, 3)
    places = [random.permutation(40)[: len(some)] for some in sources]
    scatter = RowScatter(50, [RowPlaces(*item) for item in zip(sources, places, out, strict=True)])
    for first in range(0, 50, 20):
        scatter.copy(values[first : first + 20], first, column=1)
    expected = np.zeros_like(out)
    for i in range(2):
        expected[i, places[i], 1] = values[sources[i]]
    assert np.array_equal(out, expected)
    assert not memory[:start].any()
    assert not memory[start + out.size :].any()


@pytest.mark.parametrize(
    ("sources", "places", "shape", "message"),
    [
        ([0, 1], [0, 4], (4, 1, 8), "places 0 to 4 of 4"),
        ([0, 1], [-1, 2], (4, 1, 8), "places -1 to 2 of 4"),
        ([-1, 1], [0, 2], (4, 1, 8), "rows -1 to 1 of 3"),
        ([0, 3], [0, 2], (4, 1, 8), "rows 0 to 3 of 3"),
        ([1, 1], [0, 2], (4, 1, 8), "not ascending"),
        ([0, 1], [0], (4, 1, 8), "cannot place rows int64"),
        ([0, 1], [0, 2], (4, 8), "of an array"),
    ],
)
def test_wrong_places_are_refused(
    sources: list[int], places: list[int], shape: tuple[int, ...], message: str
) -> None:
    """The C code writes wherever it is told to."""
    with pytest.raises(ValueError, match=message):
        RowScatter(3, [RowPlaces(np.array(sources), np.array(places), np.zeros(shape, np.float16))])


def test_wrong_rows_are_refused() -> None:
    """Of another type or size, not contiguous, or for a column that there is not."""
    out = np.zeros((4, 2, 8), np.float16)
    scatter = RowScatter(4, [RowPlaces(np.arange(4), np.arange(4), out)])
    good = np.zeros((4, 8), np.float16)
    for values, column in [
        (good.astype(np.float32), 0),
        (good[:, :4], 0),
        (np.zeros((4, 16), np.float16)[:, ::2], 0),
        (good, 2),
    ]:
        with pytest.raises(ValueError, match=r"cannot copy rows|no column 2"):
            scatter.copy(values, 0, column)
    with pytest.raises(ValueError, match="no rows 2 to 6 of 4"):
        scatter.copy(good, 2)
    others = [RowPlaces(np.arange(2), np.arange(2), np.zeros((2, 1, 8), t)) for t in "ef"]
    with pytest.raises(ValueError, match="different kinds"):
        RowScatter(4, others)


@needs_library
@pytest.mark.skipif(mapped.MappedFile is None, reason="not compiled")
@pytest.mark.parametrize("streams", [False, True])
@pytest.mark.parametrize("dim", [1, 7, 8, 24, 768])
@pytest.mark.parametrize("shift", [0, 1, 8])
def test_a_map_is_decoded_to_the_same_bits(
    tmp_path: Path, streams: bool, dim: int, shift: int
) -> None:
    """Past the CPU's cache or not, at any place of the destination, and nothing beside it."""
    stored, scales = case(33, dim)
    path = tmp_path / "file"
    path.write_bytes(b"before" + stored.tobytes())
    memory = np.full(shift + 35 * dim + 16, 7, np.float16)
    out = memory[shift + dim : shift + 34 * dim].reshape(33, dim)
    with path.open("rb") as file:
        opened = mapped.map_file(file.fileno(), True)
        if opened is None:
            pytest.skip("this file system is not mapped")
        assert opened.decode_int8(6, scales, out, streams)
        assert not opened.decode_int8(7, scales, out, streams)  # ends beyond the file
    expected = INT8.decode(stored, scales).astype(np.float16)
    assert out.tobytes() == expected.tobytes()
    assert (memory[: shift + dim] == 7).all()
    assert (memory[shift + 34 * dim :] == 7).all()
