"""A batch on a GPU: a fixed number of operations and no synchronisation, whatever its clips."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from pipeline.encoders.kernels import cuda
from pipeline.encoders.kernels.cuda import CudaKernels
from pipeline.encoders.wav2vec2.stream import Stream
from pipeline.extract.stages.receive import DeviceReceiver, ScaledClip
from pipeline.store.format.codecs import FLOAT16, INT8, Codec
from pipeline.store.format.pooling import STATISTICS
from tests.helpers.encoder_kinds import VARIANTS, small_encoder, speech

FILL = Stream.fill
SYNCHRONISING = (
    "_local_scalar_dense",  # item(), float(), int(), bool(), `if` and `range` of a tensor
    "item",
    "is_nonzero",
    "nonzero",  # also where() with one argument and argwhere()
    "unique",
    "_unique2",
    "unique_dim",
    "unique_consecutive",
    "unique_dim_consecutive",
    "masked_select",
    "equal",
    "allclose",
    "bincount",
    "repeat_interleave without output_size",
    "index by mask",
    "segment_reduce that checks its lengths",
)
"""Operations of which the host must know the result, or its shape, before it goes on."""
VALUES = torch.arange(6.0)
MASK = VALUES > 2
COUNTS = torch.tensor([1, 2, 1, 3, 0, 1])


class OperationCount(TorchDispatchMode):
    """Counts the operations that reach a device."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls[_name(func, args, kwargs or {})] += 1
        return func(*args, **(kwargs or {}))

    @property
    def waits(self) -> list[str]:
        """Operations among them for which the host waits for the device."""
        return [operation for operation in SYNCHRONISING if self.calls[operation]]


def _name(func: Any, args: Any, kwargs: dict[str, Any]) -> str:
    """Return the name of an operation; where it waits only for some arguments, with these."""
    name, _, overload = str(func.name()).removeprefix("aten::").partition(".")
    if name in ("index", "index_put", "index_put_"):
        masks = [i for i in args[1] if i is not None and i.dtype in (torch.bool, torch.uint8)]
        # One value for all of a mask is a masked_fill, which needs no count.
        if masks and not (name != "index" and args[2].numel() == 1):
            return "index by mask"
    if name == "repeat_interleave" and overload == "Tensor" and kwargs.get("output_size") is None:
        return "repeat_interleave without output_size"
    if name == "segment_reduce" and not kwargs.get("unsafe"):
        return "segment_reduce that checks its lengths"
    return name


def count_operations(
    name: str, n_clips: int, monkeypatch: pytest.MonkeyPatch, codec: Codec = FLOAT16
) -> OperationCount:
    """Encode and receive a batch of about 8 s as on a GPU; count the operations."""
    encoder = small_encoder(name, precision="fp16")
    encoder._kernels = CudaKernels()
    waveforms = [speech(128_000 // n_clips, seed) for seed in range(n_clips)]
    n_frames = sum(encoder.geometry.n_frames(len(waveform)) for waveform in waveforms)
    stored = np.zeros((len(encoder.layers), n_frames, encoder.dim), codec.dtype)
    counts = [encoder.geometry.n_frames(len(waveform)) for waveform in waveforms]
    filled: list[torch.Tensor] = []
    with pytest.MonkeyPatch.context() as patch:
        # The clips are copied on the host, one by one, into the memory of one transfer.
        patch.setattr(Stream, "fill", lambda *args: filled.append(FILL(*args)) or filled[0])
        for _ in encoder.encode_batch(waveforms):  # prepares the weights, too
            pass
    monkeypatch.setattr(Stream, "fill", lambda *args: filled[0])
    receiver = DeviceReceiver(torch.device("cpu"), codec, STATISTICS)
    scales = np.zeros((n_clips, len(encoder.layers), codec.n_scales, encoder.dim), np.float32)
    scaled = [ScaledClip(part) for part in scales] if codec.n_scales else None
    with OperationCount() as count:
        receiver.receive(encoder.encode_batch(waveforms), None, counts, stored, scaled)()
    return count


@pytest.mark.parametrize("name", ["hubert_base", "hubert_large"])
def test_the_number_of_operations_does_not_depend_on_the_clips(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """2 and 40 clips of the same total length: no operation and no copy for each clip."""
    monkeypatch.setattr(cuda, "can_use_varlen", lambda projected, n_heads: True)
    monkeypatch.setattr(
        cuda, "_varlen_attention", lambda: lambda query, key, value, pack: query + key + value
    )
    few, many = (count_operations(name, n, monkeypatch).calls for n in (2, 40))
    assert few == many
    assert sum(few.values()) < 550


@pytest.mark.parametrize(
    "name", ["hubert_base", "wavlm_base", "hubert_large", "wavlm_large", *VARIANTS]
)
def test_nothing_waits_for_the_device(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """No value is read on the host before the end of the batch, with any kind of attention."""
    assert not count_operations(name, 7, monkeypatch).waits


def test_nothing_waits_for_the_device_with_scales(monkeypatch: pytest.MonkeyPatch) -> None:
    """The ranges of the clips, of which the scales of int8 are made, are found on the device."""
    assert not count_operations("hubert_base", 7, monkeypatch, INT8).waits


def assign_by_mask() -> None:
    """Assign several values by a mask."""
    VALUES.clone()[MASK] = torch.ones(3)


WAITING: dict[str, Callable[[], object]] = {
    "item": lambda: VALUES[1].item(),
    "float": lambda: float(VALUES[1]),
    "int": lambda: int(COUNTS[1]),
    "bool": lambda: bool(MASK[0]),
    "if": lambda: 1 if VALUES.sum() > 1 else 0,
    "range": lambda: range(COUNTS[1]),
    "mask": lambda: VALUES[MASK],
    "second mask": lambda: VALUES.view(1, 6)[:, MASK],
    "assigned by a mask": assign_by_mask,
    "masked_select": lambda: VALUES.masked_select(MASK),
    "nonzero": lambda: MASK.nonzero(),
    "where": lambda: torch.where(MASK),
    "argwhere": lambda: torch.argwhere(MASK),
    "unique": lambda: VALUES.unique(),
    "unique of a dimension": lambda: torch.unique(VALUES.view(2, 3), dim=0),
    "unique_consecutive": lambda: VALUES.unique_consecutive(),
    "repeat_interleave": lambda: VALUES.repeat_interleave(COUNTS),
    "repeat_interleave of counts": lambda: torch.repeat_interleave(COUNTS),
    "bincount": lambda: torch.bincount(COUNTS),
    "equal": lambda: torch.equal(VALUES, VALUES),
    "allclose": lambda: torch.allclose(VALUES, VALUES),
    "segment_reduce": lambda: torch.segment_reduce(VALUES, "max", lengths=COUNTS[1:4], axis=0),
}


@pytest.mark.parametrize("name", WAITING)
def test_what_waits_is_counted(name: str) -> None:
    """Each operation that would wait for a device is noticed by the test above."""
    with OperationCount() as count:
        WAITING[name]()
    assert len(count.waits) == 1


def test_what_does_not_wait_is_not_counted() -> None:
    """Of the same operations, those whose shapes the host knows."""
    with OperationCount() as count:
        VALUES[COUNTS]
        VALUES.repeat_interleave(2)
        VALUES.repeat_interleave(COUNTS, output_size=8)
        VALUES.clone()[MASK] = 0.0
        torch.where(MASK, VALUES, 0.0)
        torch.segment_reduce(VALUES, "max", lengths=COUNTS[1:4], axis=0, unsafe=True)
    assert sum(count.calls.values()) >= 5
    assert not count.waits
