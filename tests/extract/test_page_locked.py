"""Memory that a GPU copies into; CUDA is replaced where there is none."""

from __future__ import annotations

import gc
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from pipeline.extract.stages.page_locked import allocator, page_locked
from pipeline.store.format.layout import Layout
from pipeline.store.write.buffer import UnitBuffer

LAYOUT = Layout((1, 2), 8, 256, 4)


def test_a_buffer_has_the_memory_that_it_is_given() -> None:
    """Its frames only; on a CPU they are ordinary memory."""
    given = []

    def allocate(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        given.append(np.empty(shape, dtype))
        return given[-1]

    buffer = UnitBuffer(LAYOUT, allocate)
    assert [array is buffer.frames for array in given] == [True]
    assert allocator(torch.device("cpu")) is np.empty
    assert allocator(torch.device("cuda")) is page_locked


def test_all_of_the_frames_is_registered_with_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the address and size of the array, until it is deleted; an error of CUDA is raised."""
    registered, released, codes = [], [], [0, 2]

    def register(address: int, n_bytes: int, flags: int) -> int:
        registered.append((address, n_bytes, flags))
        return codes.pop(0)

    library = SimpleNamespace(cudaHostRegister=register, cudaHostUnregister=released.append)
    monkeypatch.setattr(torch.cuda, "cudart", lambda: library)
    monkeypatch.setattr(torch.cuda, "check_error", check_error)
    buffer = UnitBuffer(LAYOUT, page_locked)
    buffer.start(256)
    assert buffer.frames.shape == (2, 256, 8)
    assert buffer.frames.dtype == LAYOUT.codec.dtype
    address = buffer.frames.ctypes.data
    assert registered == [(address, buffer.frames.nbytes, 0)]
    part = torch.from_numpy(buffer.frames[1, 10:20])
    del buffer
    gc.collect()
    assert not released  # a view is in use
    del part
    gc.collect()
    assert released == [address]
    with pytest.raises(RuntimeError, match="2"):
        UnitBuffer(LAYOUT, page_locked)


def check_error(code: int) -> None:
    if code:
        raise RuntimeError(str(code))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_torch_takes_the_memory_for_page_locked() -> None:
    """Else copies would go through pageable memory, ten times as slowly."""
    frames = UnitBuffer(LAYOUT, page_locked).frames
    assert torch.from_numpy(frames).is_pinned()
    assert torch.from_numpy(frames[1, 10:20]).is_pinned()
